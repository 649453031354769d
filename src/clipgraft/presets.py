"""Named recipes: each a function whose docstring says the command and what to expect of it."""

from clipgraft.config import BridgeSettings, DataSettings, FinetuneSettings, Recipe


def demo() -> Recipe:
    """The whole system on flatland, in minutes on two cores.

    `clipgraft demo` fine-tunes flatland's CLIP with the seed recipe's nine epochs on a part of flatland8k, at
    a learning rate that suits its size (2.4 M parameters against B/32's 151 M), then bridges it and draws.
    """
    return Recipe(
        data=DataSettings(max_train_images=1500, max_test_images=500),
        finetune=FinetuneSettings(learning_rate=3e-4, checkpoint_every=100),
        bridge=BridgeSettings(num_epochs=2, batch_size=64, hidden_size=256),
    )
