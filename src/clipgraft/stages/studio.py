"""What the studio offers: text encoders of runs to draw with, and CLIPs before and after fine-tuning.

A client names them; which folder that is, is decided here alone, so no path ever comes from outside.
"""

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from clipgraft.config import ModelSettings, Recipe, load_recipe
from clipgraft.data.records import CaptionedImage
from clipgraft.data.transforms import tokenize
from clipgraft.errors import UserError
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.models.base import FrozenBase
from clipgraft.models.checkpoint import MANIFEST_NAME
from clipgraft.models.clip import ClipParts, encode_text, load_clip
from clipgraft.models.defaults import STABLE_DIFFUSION, DrawingDefaults, find_defaults
from clipgraft.models.encoder import BASE_RECORD
from clipgraft.models.loading import refuse_links_out
from clipgraft.models.tokenizer import load_tokenizer
from clipgraft.run_folder import RECIPE_NAME
from clipgraft.runtime import choose_device
from clipgraft.stages.data import load_source, select
from clipgraft.stages.folder import run_encoders
from clipgraft.stages.measure import embed_images

DEFAULT_BASE = "flatland"

logger = logging.getLogger(__name__)


class UnknownModelError(LookupError):
    """There is no model of that name."""


@dataclass(frozen=True)
class ModelGroup:
    """Text encoders that share a base, and so its memory."""

    name: str
    encoders: dict[str, Path | None]
    """Name -> graft folder, or None for the base's own."""
    base: str = ""
    """Where no graft names it."""
    defaults: DrawingDefaults = STABLE_DIFFUSION
    """A run's own where its recipe says them, else those that suit the base."""

    def load(self, device: str) -> dict[str, ImageGenerator]:
        """Load all of them, ready to draw.

        Raises:
            CheckpointError: If one is damaged.
            FileNotFoundError: If one is gone.
        """
        return dict(load_generators(self.encoders, base=self.base, device=device))

    def load_tokenizer(self) -> CLIPTokenizer:
        """Load what reads prompts for all of them: text encoders that share a base share its vocabulary.

        Raises:
            CheckpointError: If there is none.
        """
        graft = next((folder for folder in self.encoders.values() if folder), None)
        if graft:
            refuse_links_out(graft, [graft])
            return load_tokenizer(graft)
        tokenizer = FrozenBase.load(self.base, components=["tokenizer"]).tokenizer
        assert tokenizer is not None
        return tokenizer

    @property
    def version(self) -> Hashable:
        """Another one when a text encoder has come, gone or been written anew."""
        return tuple((name, folder and _written(folder)) for name, folder in self.encoders.items())


def find_groups(runs_dir: Path) -> dict[str, ModelGroup]:
    """Find what can be drawn with.

    Args:
        runs_dir: Its folders that hold whole runs, or single grafts (`clipgraft bridge`); may be missing.

    Returns:
        Groups by name: `flatland` with its own text encoder, then each run with `teacher`, `before` and
        `after`, as far as its grafts are there.
    """
    own = _defaults(Recipe())
    groups = {DEFAULT_BASE: ModelGroup(DEFAULT_BASE, {"teacher": None}, DEFAULT_BASE, own)}
    for folder in run_folders(runs_dir):
        encoders = run_encoders(folder)
        if _is_graft(folder / "graft"):
            encoders["graft"] = folder / "graft"
        if len(encoders) == 1:
            continue
        groups[folder.name] = ModelGroup(folder.name, encoders, defaults=_defaults(_recipe(folder)))
    return groups


def _defaults(recipe: Recipe) -> DrawingDefaults:
    try:
        base = find_defaults(recipe.base.name, recipe.base.revision)
    except UserError:  # whoever draws with it is told so
        base = STABLE_DIFFUSION
    said = recipe.generate
    return DrawingDefaults(
        said.guidance_scale or base.guidance_scale, said.num_inference_steps or base.num_inference_steps
    )


def run_folders(runs_dir: Path) -> list[Path]:
    """Folders of runs and single stages, by name.

    Hidden folders are left alone; one whose recipe cannot be read is left out and named in the log.
    """
    if not runs_dir.is_dir():
        return []
    folders = sorted(path for path in runs_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [folder for folder in folders if (folder / RECIPE_NAME).is_file()]
    return [folder for folder in found if _is_readable(folder, (folder / RECIPE_NAME).stat().st_mtime_ns)]


def find_clips(runs_dir: Path) -> dict[str, ModelSettings]:
    """Find the CLIPs that can embed, by the name that clients use."""
    clips = {DEFAULT_BASE: ModelSettings(name=DEFAULT_BASE)}
    for folder in run_folders(runs_dir):
        after = next(
            (path for path in (folder / "finetune" / "clip", folder / "clip") if path.is_dir()), None
        )
        if after:
            clips[f"{folder.name}/before"] = _recipe(folder).clip
            clips[f"{folder.name}/after"] = ModelSettings(name=str(after))
    return clips


def clip_version(clip: ModelSettings) -> Hashable:
    """Another one when a CLIP is another, or its folder has been written anew."""
    return clip.name, clip.revision, _written(Path(clip.name))


def load_embedder(model: ModelSettings, device: str) -> ClipParts:
    """Load a CLIP for embedding, on a device."""
    clip = load_clip(model.name, revision=model.revision or None)
    clip.model.to(choose_device(device)).eval().requires_grad_(False)
    return clip


@torch.inference_mode()
def embed_texts(clip: ClipParts, texts: list[str]) -> torch.Tensor:
    """Embed texts: unit-norm float32 (N, P) on the CPU; what lies behind position 77 is not read."""
    ids = tokenize(texts, clip.tokenizer).input_ids.to(clip.model.device)
    return encode_text(clip.model, ids).cpu()


def searchable_images(runs_dir: Path, run: str, limit: int) -> tuple[CaptionedImage, ...]:
    """The test images of a run's data (validation where it has none), at most `limit`."""
    source = load_source(_recipe(runs_dir / run).data)
    return select(source, "test", limit) or select(source, "val", limit)


def embed_searchable(
    clip: ClipParts, images: tuple[CaptionedImage, ...], update: Callable[[int], None]
) -> torch.Tensor:
    """Embed images: unit-norm float32 (N, P) on the CPU."""
    return embed_images(clip, images, update)


def _recipe(folder: Path) -> Recipe:
    path = folder / RECIPE_NAME
    return _read_recipe(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _read_recipe(path: Path, _changed: int) -> Recipe:
    return load_recipe(path)


@lru_cache(maxsize=256)
def _is_readable(folder: Path, _changed: int) -> bool:
    """Whether a folder's recipe is one of this version's; said once where it is not."""
    try:
        load_recipe(folder / RECIPE_NAME)
    except ValueError as error:
        logger.warning("the studio leaves out run %s: %s", folder.name, error)
        return False
    return True


def _written(folder: Path) -> int | None:
    """When a folder of weights was written, in nanoseconds; None where it is no such folder."""
    manifest = folder / MANIFEST_NAME
    return manifest.stat().st_mtime_ns if manifest.is_file() else None


def _is_graft(folder: Path) -> bool:
    return (folder / BASE_RECORD).is_file()
