"""Fetch beforehand all that a recipe needs of the model hub, and say how much that is first."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import constants
from rich.console import Console
from rich.table import Table

from clipgraft.config import ModelSettings, Recipe
from clipgraft.models import clip
from clipgraft.models.base import COMPONENTS, needed_files
from clipgraft.models.hub import Download, fetch, find_model
from clipgraft.models.weight_files import Needed
from clipgraft.runtime import choose_device, inference_dtype


def prefetch(recipe: Recipe) -> int:
    """Fetch and verify the models of a recipe; what is in the hub's cache already is only verified.

    Args:
        recipe: Its clip, base, evaluate and device settings are read; the device decides the precision.

    Returns:
        Bytes that were fetched.

    Raises:
        ValueError: If the disk has too little room.
        FileNotFoundError: If a model is neither on this machine nor a hub id.
        CheckpointError: If the hub cannot be reached, has no such model, or gives other files than it should.
    """
    downloads: list[Download] = []
    table = Table("model", "revision", "files", "to fetch", box=None, pad_edge=False)
    dtype = inference_dtype(choose_device(recipe.device))
    models = [(recipe.clip, clip.NEEDED), (recipe.base, run_files(dtype))]
    if recipe.evaluate.scorer:
        settings = recipe.evaluate
        scorer = ModelSettings(name=settings.scorer, revision=settings.scorer_revision)
        models.append((scorer, clip.NEEDED))
    for model, needed in models:
        found = _find(model, needed)
        if isinstance(found, Download):
            downloads.append(found)
            table.add_row(model.name, found.revision[:12], str(len(found.files)), _size(found.num_bytes))
        else:
            where = "" if found is None else found.name[:12]
            table.add_row(model.name, where, "", "nothing: it is on this machine")
    num_bytes = sum(download.num_bytes for download in downloads)
    console = Console()
    console.print(table)
    console.print(f"to fetch: {_size(num_bytes)}, into the hub's cache", highlight=False)
    _refuse_without_room(num_bytes)
    for download in downloads:
        fetch(download)
        console.print(f"fetched and verified: {download.name}", highlight=False)
    return num_bytes


def run_files(dtype: torch.dtype) -> Needed:
    """Files of a base for a whole run: the teacher in full precision, to bridge to; the rest to draw with."""
    needed = needed_files((*COMPONENTS, "safety_checker"), dtype)
    weights = (
        weights._replace(prefer_half=weights.prefer_half and "text_encoder" not in weights.stem)
        for weights in needed.weights
    )
    return Needed(needed.texts, tuple(weights))


def _find(model: ModelSettings, needed: Needed) -> Path | Download | None:
    """None for what is no model of the hub's."""
    if model.name == "flatland" or Path(model.name).expanduser().exists():
        return None
    return find_model(model.name, model.revision or None, needed)


def _refuse_without_room(num_bytes: int) -> None:
    folder = Path(constants.HF_HUB_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise ValueError(
            f"{_size(num_bytes)} are to be fetched into {folder}, which has {_size(free)} free; "
            "free some, or set HF_HOME to another disk"
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
