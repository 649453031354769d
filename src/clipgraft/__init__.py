"""Fine-tune CLIP on captioned images and graft its text tower onto a frozen latent diffusion model."""

import os
from typing import Any

__version__ = "0.1.0"
__all__ = ["GraftedTextConfig", "GraftedTextEncoder", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: torch takes seconds.

    diffusers looks the encoder's class up here, by its module's first name, and asks for the class' base too
    (`PreTrainedModel`), to learn from it how the class is loaded.
    """
    if name in ("GraftedTextConfig", "GraftedTextEncoder", "PreTrainedModel"):
        from clipgraft.models import graft as encoder

        return getattr(encoder, name)
    if name == "load":
        # As in cli.py: else transformers advises on torchvision, which nothing here needs.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        from clipgraft.generation.generator import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
