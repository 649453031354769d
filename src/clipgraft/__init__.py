"""Fine-tune CLIP on captioned images and graft its text tower onto a frozen latent diffusion model."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["GraftedTextConfig", "GraftedTextEncoder", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the encoder when it is asked for: diffusers looks its class up here, and torch takes seconds.

    diffusers asks for the class' base too (`PreTrainedModel`), to learn from it how the class is loaded.
    """
    if name in ("GraftedTextConfig", "GraftedTextEncoder", "PreTrainedModel"):
        from clipgraft.models import encoder

        return getattr(encoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
