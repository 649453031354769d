"""Download a recipe's models from the hub, after printing their size."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import constants
from rich.table import Table

from clipgraft.cache import cache_dir
from clipgraft.config import ModelSettings, Recipe
from clipgraft.console import print_line, print_table
from clipgraft.device import PRECISION_DTYPES, choose_device, choose_mixed_precision
from clipgraft.errors import UserError
from clipgraft.generation.engines.engine import engines_at_hand
from clipgraft.models import clip, controlnet, vae
from clipgraft.models.base import COMPONENTS, WEIGHT_STEMS, needed_files
from clipgraft.models.hub import Download, fetch, find_model
from clipgraft.models.weights import Needed
from clipgraft.sampling_params import InferenceConfig
from clipgraft.section import FLATLAND


def prefetch(recipe: Recipe) -> int:
    """Download a recipe's models; verify those that are cached.

    Returns:
        Bytes that were downloaded.

    Raises:
        UserError: If the disk has too little room.
        MissingFileError: If a model is neither on this machine nor a hub id.
        CheckpointError: See `resolve_model`.
    """
    downloads: list[Download] = []
    table = Table("model", "revision", "files", "to fetch", box=None, pad_edge=False)
    for model, needed in needed_models(recipe):
        found = _find(model, needed)
        if isinstance(found, Download):
            downloads.append(found)
            table.add_row(model.name, found.revision[:12], str(len(found.files)), _size(found.num_bytes))
        else:
            where = "" if found is None else found.name[:12]
            table.add_row(model.name, where, "", "nothing: it is on this machine")
    num_bytes = sum(download.num_bytes for download in downloads)
    print_table(table)
    print_line(f"to fetch: {_size(num_bytes)}, into the hub's cache")
    _refuse_without_room(num_bytes)
    for download in downloads:
        fetch(download)
        print_line(f"fetched and verified: {download.name}")
    return num_bytes


def needed_models(recipe: Recipe) -> list[tuple[ModelSettings, Needed]]:
    """Return the models that a whole run loads, each with its files."""
    models = [(recipe.clip, clip.NEEDED), (recipe.base, run_files(_unet_dtype(recipe)))]
    settings = recipe.evaluate
    if settings.scorer:
        models.append((ModelSettings(name=settings.scorer, revision=settings.scorer_revision), clip.NEEDED))
    if recipe.generate.vae:
        models.append((ModelSettings(name=recipe.generate.vae), vae.NEEDED))
    names = dict.fromkeys(control.model for control in recipe.generate.controls)
    return models + [(ModelSettings(name=name), controlnet.NEEDED) for name in names]


def run_files(unet_dtype: torch.dtype) -> Needed:
    """Return a base's files for a whole run, full precision except U-Net."""
    needed = needed_files((*COMPONENTS, "safety_checker"), torch.float32)
    is_half = unet_dtype != torch.float32
    weights = (
        weights._replace(prefer_half=is_half and weights.stem == WEIGHT_STEMS["unet"])
        for weights in needed.weights
    )
    return Needed(needed.texts, tuple(weights))


def _unet_dtype(recipe: Recipe) -> torch.dtype:
    """Return the widest dtype of the U-Net in any stage."""
    device = choose_device(recipe.device)
    configs = [recipe.generate, *([InferenceConfig()] if recipe.evaluate.num_prompts else [])]
    dtypes = [
        engine.dtype
        for config in configs
        for engine in engines_at_hand(config, device, cache_dir() / "openvino")
    ]
    if recipe.refine.num_epochs:
        dtypes.append(PRECISION_DTYPES[choose_mixed_precision(recipe.refine.mixed_precision, device)])
    return torch.float32 if torch.float32 in dtypes else dtypes[0]


def _find(model: ModelSettings, needed: Needed) -> Path | Download | None:
    if model.name == FLATLAND or Path(model.name).expanduser().exists():
        return None
    return find_model(model.name, model.revision, needed)


def _refuse_without_room(num_bytes: int) -> None:
    folder = Path(constants.HF_HUB_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{_size(num_bytes)} are to be fetched into {folder}, which has {_size(free)} free; "
            "free some, or set HF_HOME to another disk"
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
