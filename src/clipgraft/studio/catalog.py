"""What the studio offers: text encoders of runs to draw with, and CLIPs before and after fine-tuning.

A client names them; which folder that is, is decided here alone, so no path ever comes from outside.
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from torch import nn
from transformers import CLIPTokenizer

from clipgraft.config import ModelSettings, Recipe, load_recipe
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import tokenize
from clipgraft.device import choose_device, without_folders
from clipgraft.errors import MissingFileError, UserError, is_user_error, one_line, printable
from clipgraft.files import inside
from clipgraft.finetuning.validate import embed_images
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import ClipParts, encode_text, load_clip
from clipgraft.models.defaults import STABLE_DIFFUSION, DrawingDefaults, find_defaults
from clipgraft.models.graft import BASE_RECORD
from clipgraft.models.loading import refuse_links_out
from clipgraft.models.tokenizer import load_tokenizer
from clipgraft.models.weights import MANIFEST_NAME
from clipgraft.runs.folder import RECIPE_NAME
from clipgraft.runs.run import run_encoders

DEFAULT_BASE = "flatland"
MAX_RECIPE_BYTES = 1 << 20
"""Of a run's recipe; one with every setting has some 4,000."""
OUR_BUG = "reading it went wrong here; the studio's log says how"
T = TypeVar("T")

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
    changed: float = 0.0
    """When the run's folder was last written to."""

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
    found, _ = read_runs(runs_dir, _group)
    own = ModelGroup(DEFAULT_BASE, {"teacher": None}, DEFAULT_BASE, _defaults(Recipe()))
    return {DEFAULT_BASE: own} | {name: group for name, group in found.items() if group}


def _defaults(recipe: Recipe) -> DrawingDefaults:
    try:
        base = find_defaults(recipe.base.name, recipe.base.revision)
    except UserError:  # whoever draws with it is told so
        base = STABLE_DIFFUSION
    said = recipe.generate
    return DrawingDefaults(
        said.guidance_scale or base.guidance_scale, said.num_inference_steps or base.num_inference_steps
    )


def read_runs(
    runs_dir: Path, read: Callable[[Path, Recipe], T], *, only: str | None = None
) -> tuple[dict[str, T], dict[str, str]]:
    """Read each run of a folder by itself, so that a bad one takes nothing else with it.

    Hidden folders, and those without a recipe, are left alone; one that is deleted meanwhile is left out.

    Args:
        runs_dir: Folder of runs and single stages; may be missing.
        read: Given a run's folder and recipe. Whatever it raises concerns that run alone.
        only: Name of the one run that is wanted.

    Returns:
        What was read, by the run's name, and why runs cannot be read, by theirs; the log says that once.
    """
    found, unreadable = {}, {}
    for folder in _folders(runs_dir):
        name = folder.name if _is_utf8(folder.name) else printable(folder.name)
        if only not in (None, name):
            continue
        try:
            if (folder / RECIPE_NAME).is_file():
                if name != folder.name:
                    raise UserError("its name is not UTF-8; rename it")
                found[name] = read(folder, _recipe(folder))
        except Exception as error:
            if os.path.lexists(folder):
                is_bug = not is_user_error(error)
                unreadable[name] = OUR_BUG if is_bug else without_folders(one_line(error))
                _say_once(folder, unreadable[name], is_bug)
    return found, unreadable


def find_clips(runs_dir: Path) -> dict[str, ModelSettings]:
    """Find the CLIPs that can embed, by the name that clients use."""
    clips = {DEFAULT_BASE: ModelSettings(name=DEFAULT_BASE)}
    for found in read_runs(runs_dir, _clips)[0].values():
        clips |= found
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
    recipes, unreadable = read_runs(runs_dir, lambda _, recipe: recipe, only=run)
    if run not in recipes:
        raise MissingFileError(f"run {run} cannot be read: {unreadable.get(run, 'it is gone')}")
    dataset = load_dataset(recipes[run].data.source, include_unsplit=recipes[run].data.include_unsplit)
    return dataset.test[: limit or None] or dataset.val[: limit or None]


def embed_searchable(
    clip: ClipParts, images: tuple[CaptionedImage, ...], update: Callable[[int], None]
) -> torch.Tensor:
    """Embed images: unit-norm float32 (N, P) on the CPU."""
    return embed_images(clip, images, update)


def _folders(runs_dir: Path) -> list[Path]:
    try:
        return sorted(path for path in runs_dir.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        _say_once(runs_dir, f"the folder of runs cannot be listed ({error.strerror})", is_bug=False)
        return []


def _is_utf8(name: str) -> bool:
    """Whether a name in the file system is text; other bytes stand in it as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _group(folder: Path, recipe: Recipe) -> ModelGroup | None:
    encoders = run_encoders(folder)
    if _is_graft(folder / "graft"):
        encoders["graft"] = folder / "graft"
    if len(encoders) == 1:
        return None
    return ModelGroup(folder.name, encoders, defaults=_defaults(recipe), changed=folder.stat().st_mtime)


def _clips(folder: Path, recipe: Recipe) -> dict[str, ModelSettings]:
    for after in (folder / "finetune" / "clip", folder / "clip"):
        if after.is_dir():
            name = folder.name
            return {f"{name}/before": recipe.clip, f"{name}/after": ModelSettings(name=str(after))}
    return {}


def _recipe(folder: Path) -> Recipe:
    path = inside(folder / RECIPE_NAME, folder)
    found = path.stat()
    if found.st_size > MAX_RECIPE_BYTES:
        raise UserError(f"{path} has {found.st_size:,} bytes; at most {MAX_RECIPE_BYTES:,} are read")
    recipe = _read_recipe(path, found.st_mtime_ns)
    if isinstance(recipe, UserError):
        raise recipe
    return recipe


@lru_cache(maxsize=4096)
def _read_recipe(path: Path, _changed: int) -> Recipe | UserError:
    """A recipe, or what is wrong with it: a bad one is not parsed again at each look either."""
    try:
        return load_recipe(path)
    except UserError as error:
        return error.with_traceback(None)


@lru_cache(maxsize=4096)
def _say_once(folder: Path, reason: str, is_bug: bool) -> None:
    """Tell the log of a run that cannot be read; within the handling of what it raised."""
    logger.warning("the studio leaves out run %s: %s", printable(folder.name), reason, exc_info=is_bug)


def _written(folder: Path) -> int | None:
    """When a folder of weights was written, in nanoseconds; None where it is no such folder."""
    try:
        return (folder / MANIFEST_NAME).stat().st_mtime_ns
    except OSError:
        return None


def _is_graft(folder: Path) -> bool:
    return (folder / BASE_RECORD).is_file()


def _resident_bytes() -> int:
    return psutil.Process().memory_info().rss


class Loaded:
    """Models by name, least recently used first out. For one thread at a time.

    Args:
        max_bytes: Of all weights together; 0 = half of the machine's memory. The model that is asked for is
            kept even where it is larger by itself.
        resident_bytes: Gives this process's memory.
    """

    def __init__(self, max_bytes: int = 0, resident_bytes: Callable[[], int] = _resident_bytes):
        self._resident_bytes = resident_bytes
        self.max_bytes = max_bytes or psutil.virtual_memory().total // 2
        self._models: OrderedDict[str, tuple[Any, int, Hashable]] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of all weights that are loaded."""
        return sum(size for _, size, _ in list(self._models.values()))

    def names(self) -> list[str]:
        """What is loaded, least recently used first."""
        return list(self._models)

    def get(
        self,
        name: str,
        load: Callable[[], Any],
        modules: Callable[[Any], Iterable[nn.Module]],
        version: Hashable = None,
    ) -> Any:
        """Return a model, loaded where it is not.

        Args:
            name: Of the model.
            load: Loads it.
            modules: Gives what holds its weights.
            version: Of its files; a model of another version is forgotten first.
        """
        if name in self._models and self._models[name][2] != version:
            del self._models[name]
        if name not in self._models:
            before = self._resident_bytes()
            model = load()
            # An engine holds copies that no module tells of.
            grown = self._resident_bytes() - before
            self._models[name] = model, max(weight_bytes(modules(model)), grown), version
        self._models.move_to_end(name)
        while len(self._models) > 1 and self.num_bytes > self.max_bytes:
            self._models.popitem(last=False)
        return self._models[name][0]


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights of modules; what they share counts once."""
    storages: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            storage: torch.UntypedStorage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
