"""Models, CLIPs, training curves and reports of a folder of runs.

Clients give names; which folder a name stands for is decided here alone, so no path comes from outside.
"""

import logging
import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import nn
from transformers import CLIPTokenizer

from clipgraft.config import ModelSettings, Recipe, load_recipe
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.device import without_folders
from clipgraft.errors import MissingFileError, UserError, is_user_error, one_line, printable
from clipgraft.files import inside
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.memory import release_memory
from clipgraft.models.base import FrozenBase
from clipgraft.models.defaults import STABLE_DIFFUSION, SamplingDefaults, find_defaults, find_text_width
from clipgraft.models.graft import BASE_RECORD
from clipgraft.models.loading import refuse_links_out
from clipgraft.models.tokenizer import load_tokenizer
from clipgraft.models.weights import MANIFEST_NAME
from clipgraft.reporting.plots import epoch_means, thin_out
from clipgraft.reporting.run_data import is_number, read_run
from clipgraft.runs.folder import RECIPE_NAME
from clipgraft.runs.folder_kinds import is_run
from clipgraft.runs.run import REPORT_NAME, Run
from clipgraft.sampling_params import InferenceConfig
from clipgraft.section import GIVEN

DEFAULT_BASE = "flatland"
SECONDS_BETWEEN_SCANS = 1.0
"""A request asks for the models several times over."""
MAX_RECIPE_BYTES = 1 << 20
"""A recipe with every setting has some 4,000."""
MAX_LOG_BYTES = 100_000_000
"""Half a million steps."""
OUR_BUG = "reading it went wrong here; the studio's log says how"
NO_CURVE: dict[str, Any] = {"steps": [], "losses": [], "epochs": [], "evaluations": []}
T = TypeVar("T")

logger = logging.getLogger(__name__)


class UnknownModelError(LookupError):
    """No model has that name."""

    def __init__(self, name: str, known: Iterable[str]):
        super().__init__(f"there is no model {name!r}; known are {', '.join(known)}")


@dataclass(frozen=True)
class ModelGroup:
    """Text encoders that share a base, and so its memory."""

    name: str
    encoders: dict[str, Path | None]
    """Variant -> graft folder, or None for the base's own text encoder."""
    base: str = ""
    """For a group without grafts, which name their base."""
    defaults: SamplingDefaults = STABLE_DIFFUSION
    """From the run's recipe, else from the base."""
    text_width: int | None = None
    """Of the states that the base's U-Net takes; None if unknown."""
    changed: float = 0.0
    """Time of the last write to the run's folder."""

    def load(self, device: str, inference: InferenceConfig) -> dict[str, ImageGenerator]:
        """Load all of them; a `UserError` if one is damaged or gone."""
        return dict(load_generators(self.encoders, base=self.base, device=device, inference=inference))

    def load_tokenizer(self) -> CLIPTokenizer:
        """Load the tokenizer that text encoders of one base share."""
        graft = next((folder for folder in self.encoders.values() if folder), None)
        if graft:
            refuse_links_out(graft, [graft])
            return load_tokenizer(graft)
        tokenizer = FrozenBase.load(self.base, components=["tokenizer"]).tokenizer
        assert tokenizer is not None
        return tokenizer

    @property
    def version(self) -> Hashable:
        """Changes when a text encoder is added, removed or rewritten."""
        return tuple((name, folder and _written(folder)) for name, folder in self.encoders.items())


class Catalog:
    """The runs of a folder; an unreadable run affects no other."""

    def __init__(self, runs_dir: Path):
        self.runs_dir = runs_dir
        self._scanned: tuple[float, dict[str, tuple[ModelGroup, str]]] | None = None

    def models(self) -> dict[str, tuple[ModelGroup, str]]:
        """Return models by name, `group/variant`; `flatland/teacher` comes first."""
        now = time.monotonic()
        if self._scanned is None or now - self._scanned[0] >= SECONDS_BETWEEN_SCANS:
            own = ModelGroup(
                DEFAULT_BASE,
                {"teacher": None},
                DEFAULT_BASE,
                _defaults(Recipe()),
                find_text_width(DEFAULT_BASE),
            )
            groups = [own, *filter(None, self.read(_group)[0].values())]
            found = {f"{group.name}/{name}": (group, name) for group in groups for name in group.encoders}
            self._scanned = now, found
        return self._scanned[1]

    def model(self, name: str) -> tuple[ModelGroup, str]:
        """Return a model's group and its variant, or raise `UnknownModelError`."""
        models = self.models()
        if name not in models:
            raise UnknownModelError(name, models)
        return models[name]

    def default_model(self) -> str:
        """Return the newest run's fine-tuned model, else the embedded base."""
        models = self.models()
        names = [name for name in models if name.endswith(("/after", "/graft"))]
        return max(names, key=lambda name: models[name][0].changed, default=next(iter(models)))

    def clips(self) -> dict[str, ModelSettings]:
        """Return CLIPs by name: `flatland`, and each fine-tuned run's `run/before` and `run/after`."""
        clips = {DEFAULT_BASE: ModelSettings(name=DEFAULT_BASE)}
        for found in self.read(_clips)[0].values():
            clips |= found
        return clips

    def searchable_runs(self) -> list[str]:
        """Return runs with a CLIP before and after fine-tuning."""
        return [name.removesuffix("/after") for name in self.clips() if name.endswith("/after")]

    def test_images(self, run: str, limit: int) -> tuple[CaptionedImage, ...]:
        """Return a run's first test images, else validation images."""
        recipes, unreadable = self.read(lambda _, recipe: recipe, only=run)
        if run not in recipes:
            raise MissingFileError(f"run {run} cannot be read: {unreadable.get(run, 'it is gone')}")
        dataset = load_dataset(recipes[run].data)
        return dataset.test[:limit] or dataset.val[:limit]

    def runs(self) -> list[dict[str, Any]]:
        """Summarise runs, newest first; unreadable ones, with the reason, last."""
        runs, unreadable = self.read(_summary)
        rows = sorted(runs.values(), key=lambda row: row["changed"], reverse=True)
        return rows + [_unreadable(name, reason) for name, reason in unreadable.items()]

    def run(self, name: str) -> dict[str, Any]:
        """Describe a run: its summary, loss curve, evaluations and problems.

        Returns:
            As `runs`, with `steps` and `losses` of its batches (None for a loss that is no number; of many
            steps the lowest and highest of every few), and `epochs` (number from 1, last step, mean loss).

        Raises:
            KeyError: If there is no such run.
        """
        runs, unreadable = self.read(_description, only=name)
        return runs[name] if name not in unreadable else _unreadable(name, unreadable[name]) | NO_CURVE

    def report(self, name: str) -> Path:
        """Return a run's report; KeyError if none, UserError if it is unreadable."""
        runs, unreadable = self.read(lambda run, _: run.path, only=name)
        if name in unreadable:
            raise UserError(f"run {name} cannot be read: {unreadable[name]}")
        path = inside(runs[name] / REPORT_NAME, runs[name])
        if not path.is_file():
            raise KeyError(name)
        return path

    def read(
        self, read: Callable[[Run, Recipe], T], *, only: str | None = None
    ) -> tuple[dict[str, T], dict[str, str]]:
        """Read each run by itself; folders that are none are skipped.

        Args:
            read: Any error that it raises is that run's alone.
            only: Name of the single run to read.

        Returns:
            Results, and reasons why runs cannot be read, both by name. The log gets each reason once.
        """
        found, unreadable = {}, {}
        for folder in _folders(self.runs_dir):
            name = folder.name if _is_utf8(folder.name) else printable(folder.name)
            if only not in (None, name):
                continue
            try:
                if (folder / RECIPE_NAME).is_file() and is_run(folder):
                    if name != folder.name:
                        raise UserError("its name is not UTF-8; rename it")
                    found[name] = read(Run(folder), _recipe(folder))
            except Exception as error:
                if os.path.lexists(folder):  # else it was deleted meanwhile
                    is_bug = not is_user_error(error)
                    unreadable[name] = OUR_BUG if is_bug else without_folders(one_line(error))
                    _warn_once(folder, unreadable[name], is_bug)
        return found, unreadable


class ModelCache:
    """Models in memory, least recently used dropped first; locked in use.

    Args:
        device: `auto`, `cpu`, `cuda` or `mps`.
        max_bytes: Of all weights; 0 = half of the machine's memory. A larger single model is kept.
        resident_bytes: Measures this process's memory.
    """

    def __init__(
        self, device: str = "auto", max_bytes: int = 0, resident_bytes: Callable[[], int] | None = None
    ):
        self.device, self.lock = device, threading.Lock()
        self._resident_bytes = resident_bytes or (lambda: psutil.Process().memory_info().rss)
        self.max_bytes = max_bytes or psutil.virtual_memory().total // 2
        self._models: OrderedDict[str, tuple[Any, int, Hashable]] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size, _ in self._models.values())

    def clear(self) -> None:
        """Drop all models, so that another process has the device's memory."""
        self._models.clear()
        release_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def names(self) -> list[str]:
        """Return loaded models, least recently used first."""
        return list(self._models)

    def get(
        self,
        name: str,
        load: Callable[[], T],
        modules: Callable[[T], Iterable[nn.Module]],
        version: Hashable = None,
    ) -> T:
        """Return a model, loaded unless this version of it is in memory."""
        if name in self._models and self._models[name][2] != version:
            del self._models[name]
            release_memory()
        if name not in self._models:
            before = self._resident_bytes()
            model = load()
            grown = self._resident_bytes() - before  # an engine holds copies outside the modules
            self._models[name] = model, max(weight_bytes(modules(model)), grown), version
        self._models.move_to_end(name)
        while len(self._models) > 1 and self.num_bytes > self.max_bytes:
            self._models.popitem(last=False)
            release_memory()
        return self._models[name][0]


def weight_bytes(modules: Iterable[nn.Module]) -> int:
    """Count the bytes of modules' weights, shared ones once."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def clip_version(clip: ModelSettings) -> Hashable:
    """Return a key that changes with the CLIP's name, revision or files."""
    return clip.name, clip.revision, _written(Path(clip.name))


def _folders(runs_dir: Path) -> list[Path]:
    try:
        return sorted(path for path in runs_dir.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        _warn_once(runs_dir, f"the folder of runs cannot be listed ({error.strerror})", is_bug=False)
        return []


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # other bytes stand in a name as lone surrogates
        return False
    return True


@lru_cache(maxsize=4096)
def _warn_once(folder: Path, reason: str, is_bug: bool) -> None:
    logger.warning("the studio leaves out run %s: %s", printable(folder.name), reason, exc_info=is_bug)


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
    """Read a recipe, or its error, once per change of the file."""
    try:
        return load_recipe(path)
    except UserError as error:
        return error.with_traceback(None)


def _group(run: Run, recipe: Recipe) -> ModelGroup | None:
    grafts = {name: folder for name, folder in run.grafts().items() if (folder / BASE_RECORD).is_file()}
    encoders = {"teacher": None, **grafts}
    changed = run.path.stat().st_mtime
    if not grafts:
        return None
    return ModelGroup(run.path.name, encoders, "", _defaults(recipe), _text_width(recipe), changed)


def _defaults(recipe: Recipe) -> SamplingDefaults:
    try:
        base = find_defaults(recipe.base.name, recipe.base.revision)
    except UserError:  # reported when the base is loaded
        base = STABLE_DIFFUSION
    own = recipe.generate
    return SamplingDefaults(
        own.guidance_scale or base.guidance_scale, own.num_inference_steps or base.num_inference_steps
    )


def _text_width(recipe: Recipe) -> int | None:
    try:
        return find_text_width(recipe.base.name, recipe.base.revision)
    except UserError:  # reported when the base is loaded
        return None


def _clips(run: Run, recipe: Recipe) -> dict[str, ModelSettings]:
    after, name = run.tuned_clip, run.path.name
    before = {} if recipe.clip.name == GIVEN else {f"{name}/before": recipe.clip}
    return before | {f"{name}/after": ModelSettings(name=str(after))} if after else {}


def _written(folder: Path) -> int | None:
    """Time of a weights folder's last write in nanoseconds, or None."""
    try:
        return (folder / MANIFEST_NAME).stat().st_mtime_ns
    except OSError:
        return None


def _summary(run: Run, _recipe: Recipe) -> dict[str, Any]:
    try:
        has_report = inside(run.path / REPORT_NAME, run.path).is_file()
    except UserError:  # a link out of the run
        has_report = False
    return {
        "name": run.path.name,
        "state": "running" if run.is_running else "finished" if run.is_finished else "stopped",
        "stages": list(run.stages),
        "has_report": has_report,
        "changed": run.path.stat().st_mtime,
    }


def _description(run: Run, recipe: Recipe) -> dict[str, Any]:
    data = read_run(run.path, max_bytes=MAX_LOG_BYTES)
    steps = np.array([row["step"] for row in data.log], dtype=float)
    losses = np.array([row["loss"] if is_number(row["loss"]) else np.nan for row in data.log], dtype=float)
    shown_steps, shown_losses, _ = thin_out(steps, losses) if data.log else (steps, losses, 1)
    return {
        **_summary(run, recipe),
        "steps": [int(step) for step in shown_steps],
        "losses": [None if math.isnan(loss) else loss for loss in shown_losses.tolist()],
        "epochs": [[epoch + 1, step, mean] for epoch, step, mean in epoch_means(data.log) if is_number(mean)],
        "evaluations": [{k: v for k, v in row.items() if is_number(v)} for row in data.validation],
        "problems": data.problems,
    }


def _unreadable(name: str, reason: str) -> dict[str, Any]:
    plain = {"stages": [], "has_report": False, "changed": 0.0}
    return {"name": name, "state": "unreadable", **plain, "problems": [f"It cannot be read: {reason}"]}
