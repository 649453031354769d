"""Fine-tune CLIP and graft its text tower onto a frozen diffusion model."""

import importlib
import os
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "MissingFileError": "errors",
    "UserError": "errors",
    "SamplingParams": "sampling_params",
    "Run": "runs.run",
    "load_dataset": "data.formats",
    "load_clip": "models.clip",
    "load_base": "models.base",
    "Bridge": "models.bridge",
    "RidgeRegression": "models.ridge",
    "Graft": "models.graft",
    "GraftedTextConfig": "models.graft",
    "GraftedTextEncoder": "models.graft",
    "ContrastiveObjective": "training.objectives",
    "contrastive_loss": "training.losses",
    "finetune": "finetuning.finetune",
    "interpolate": "finetuning.wise_ft",
    "fit_bridge": "bridging.fit",
    "refine": "bridging.refine",
    "distill": "distilling.distill",
    "find_new_words": "distilling.new_words",
    "export": "exporting.export",
    "load": "generation.generator",
    "save_image": "generation.metadata",
    "evaluate": "evaluation.evaluate",
    "retrieval_metrics": "evaluation.metrics.retrieval",
}
"""Public name -> the module that defines it, imported when the name is first used: torch takes seconds."""

__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> Any:
    # diffusers looks the encoder's class up here, and its base class too, to learn how the class is loaded.
    room = "models.graft" if name == "PreTrainedModel" else _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Before transformers is imported, else it advises on torchvision, which nothing here needs.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return getattr(importlib.import_module(f"clipgraft.{room}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
