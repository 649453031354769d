"""Named recipes: each a function whose docstring says the command and what to expect of it."""

from pathlib import Path

from clipgraft.config import (
    AutoencoderSettings,
    BridgeSettings,
    DataSettings,
    DenoiserSettings,
    FinetuneSettings,
    ModelSettings,
    PlainClipSettings,
    PretrainSettings,
    Recipe,
)

PRETRAIN_NAME = "pretrain"
"""Folder within a run for a base that the run trains itself."""


def demo(out: Path) -> Recipe:
    """Return the recipe of `clipgraft demo`: the whole system on flatland, in minutes on two cores.

    It trains a base for a minute or two, far too short for recognisable pictures, fine-tunes its CLIP with
    the seed recipe's nine epochs on a part of flatland8k, at a learning rate that suits its size (2.4 M
    parameters against B/32's 151 M), bridges it and draws both prompts.

    Args:
        out: The run's folder; the base is trained within it.
    """
    trained = out / PRETRAIN_NAME
    return Recipe(
        data=DataSettings(max_train_images=960, max_test_images=300),
        clip=ModelSettings(name=str(trained / "clip" / "model")),
        base=ModelSettings(name=str(trained / "base")),
        pretrain=PretrainSettings(
            vae=AutoencoderSettings(num_epochs=1, warmup_steps=20),
            unet=DenoiserSettings(num_epochs=1, batch_size=16, warmup_steps=10, ema_decay=0.0),
            clip=PlainClipSettings(num_epochs=8, warmup_steps=20),
        ),
        finetune=FinetuneSettings(learning_rate=3e-4, checkpoint_every=100),
        bridge=BridgeSettings(num_epochs=2, batch_size=64, hidden_size=256, max_captions=2000),
    )
