"""Named recipes: each a function whose docstring says the command and what to expect of it."""

from collections.abc import Callable
from pathlib import Path

from clipgraft.config import (
    BridgeSettings,
    DataSettings,
    EvaluateSettings,
    FinetuneSettings,
    ModelSettings,
    Recipe,
    RefineSettings,
    load_recipe,
)
from clipgraft.errors import MissingFileError


def demo() -> Recipe:
    """Return the recipe of `clipgraft demo`: the whole system on flatland, in minutes on two cores.

    It fine-tunes flatland's CLIP with the seed recipe's nine epochs on a part of flatland8k, at a learning
    rate that suits its size (2.4 M parameters against B/32's 151 M), bridges it and draws both prompts with
    the base's own text encoder, and with CLIP before and after.
    """
    return Recipe(
        data=DataSettings(max_train_images=960, max_val_images=100, max_test_images=300),
        finetune=FinetuneSettings(learning_rate=3e-4, checkpoint_every=100),
        bridge=BridgeSettings(num_epochs=5, hidden_size=512, max_captions=12_000),
        evaluate=EvaluateSettings(num_prompts=24, num_inference_steps=20),
    )


def flickr8k_sd15() -> Recipe:
    """Return the recipe of `clipgraft run flickr8k_sd15 --data FLICKR8K --out DIR`, for a GPU and the hub.

    CLIP B/32 fine-tuned on Flickr8k with AdamW at 1e-5, batch 32, gradient norm 1.0, nine epochs, fp16;
    bridged to Stable Diffusion v1.5, at its pinned commit, and refined; both prompts, and 100 held-out
    captions for the figures, drawn with the base's own text encoder, with CLIP before and after, and refined.
    What it needs and what to expect: docs/flickr8k_sd15.md.
    """
    return Recipe(
        clip=ModelSettings(name="openai/clip-vit-base-patch32"),
        base=ModelSettings(name="stable-diffusion-v1-5/stable-diffusion-v1-5"),
        finetune=FinetuneSettings(mixed_precision="fp16"),
        refine=RefineSettings(num_epochs=1, batch_size=8, gradient_checkpointing=True),
        evaluate=EvaluateSettings(num_prompts=100, num_inference_steps=20, batch_size=8),
    )


PRESETS: dict[str, Callable[[], Recipe]] = {"demo": demo, "flickr8k_sd15": flickr8k_sd15}
"""By the name that `clipgraft run` and `clipgraft prefetch` take."""


def named_recipe(name: str) -> Recipe:
    """Return the recipe of that name, or else that file's.

    Raises:
        FileNotFoundError: If there is neither.
    """
    if name in PRESETS:
        return PRESETS[name]()
    if not Path(name).is_file():
        raise MissingFileError(f"recipe not found: {name}; named ones are {', '.join(PRESETS)}")
    return load_recipe(Path(name))
