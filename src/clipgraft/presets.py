"""Named recipes: each a function whose docstring says the command and what to expect of it."""

from clipgraft.config import (
    BridgeSettings,
    DataSettings,
    EvaluateSettings,
    FinetuneSettings,
    GenerateSettings,
    Recipe,
    RefineSettings,
)


def demo() -> Recipe:
    """Return the recipe of `clipgraft demo`: the whole system on flatland, in minutes on two cores.

    It fine-tunes flatland's CLIP with the seed recipe's nine epochs on a part of flatland8k, at a learning
    rate that suits its size (2.4 M parameters against B/32's 151 M), bridges it and draws both prompts with
    the base's own text encoder, and with CLIP before and after. Guidance is 3, as in EvaluateSettings.
    """
    return Recipe(
        data=DataSettings(max_train_images=960, max_val_images=100, max_test_images=300),
        finetune=FinetuneSettings(learning_rate=3e-4, checkpoint_every=100),
        bridge=BridgeSettings(num_epochs=2, batch_size=64, hidden_size=256, max_captions=2000),
        generate=GenerateSettings(guidance_scale=3.0),
        evaluate=EvaluateSettings(num_prompts=40),
    )


def ladder() -> Recipe:
    """Return the recipe of `clipgraft ladder`: what each part of a bridge is worth on flatland.

    CLIP is fine-tuned on all five captions of each picture, synonyms included; the bridge is refined with a
    teacher whose weight falls to nothing, so that pictures can teach what it never read.
    """
    return Recipe(
        finetune=FinetuneSettings(
            learning_rate=3e-4, lr_schedule="cosine", num_epochs=5, batch_size=64, captions_per_image=5
        ),
        data=DataSettings(max_val_images=200, max_test_images=300),
        bridge=BridgeSettings(num_epochs=4, batch_size=64, hidden_size=512, max_captions=8000),
        refine=RefineSettings(num_epochs=2, learning_rate=5e-4, teacher_end=0.0),
    )
