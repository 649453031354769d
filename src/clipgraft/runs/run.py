"""A run: layout, settings, state and results, and its work."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from clipgraft.config import ModelSettings, Recipe, load_recipe, named_paths, to_toml
from clipgraft.errors import CheckpointError, MissingFileError, UserError, some_of
from clipgraft.files import inside, read_text, write_bytes, write_json
from clipgraft.runs.folder import (
    RECIPE_NAME,
    is_locked,
    refuse_inputs_within,
    run_folder,
)
from clipgraft.runs.folder_kinds import ENVIRONMENT_NAME, RUN, is_run, kind_of, wrong_kind
from clipgraft.runs.resources import recorded_resources
from clipgraft.runs.trackers import installed_trackers

STAGES = ("finetune", "new_words", "bridge_before", "bridge", "refine", "distill", "generate", "evaluate")
"""Folders of a whole run, in the order of work."""
NESTED_STAGES = frozenset({"generate", "evaluate"})
"""Stages that a single stage's run may hold too."""
GRAFTS = {
    "before": "bridge_before/graft",
    "after": "bridge/graft",
    "refined": "refine/graft",
    "distilled": "distill/text_encoder",
}
"""Variant -> the folder of its text encoder in a whole run."""
GRAFT_NAMES = ("graft", "text_encoder")
"""Names of text encoders' folders in a stage's."""
METRICS_NAME = "metrics.json"
REPORT_NAME = "report.html"
SECTIONS = {
    "run": ("data", "clip", "base", "finetune", "bridge", "refine", "distill"),
    "finetune": ("data", "clip", "finetune"),
    "interpolate": ("data", "clip"),
    "new_words": ("data", "clip", "base"),
    "bridge": ("data", "clip", "base", "bridge"),
    "refine": ("data", "base", "refine"),
    "distill": ("data", "base", "distill"),
    "pretrain": ("data", "pretrain"),
}
"""Sections of a recipe that decide a stage's result; resuming requires equal ones."""
NO_RESULT = ("num_workers", "log_every", "cache_gb", "checkpoint_every", "save_total_limit", "report_to")
"""Settings without influence on the result."""
BY_CONTENT = ("on_damaged",)
"""Settings that may change while the images stay the same; checkpoints compare these."""
LENGTHENED = ("run", "finetune", "bridge", "refine", "distill")
"""Stages resumable with more epochs."""


class StageResult(BaseModel):
    """Figures of a stage in `metrics.json`; each stage has a subclass."""

    model_config = ConfigDict(extra="allow")

    stage: str = ""
    schema_version: int = 1

    def save(self, folder: Path) -> None:
        """Write `metrics.json`; NaN becomes null."""
        write_bytes(folder / METRICS_NAME, (self.model_dump_json(indent=2) + "\n").encode())


R = TypeVar("R", bound=StageResult)


@dataclass(frozen=True)
class Run:
    """The folder of a whole run, or of a single stage.

    Reading never changes the folder and accepts incomplete runs.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Return the run in an existing folder.

        Raises:
            MissingFileError: If there is no such folder.
            CheckpointError: If it is of another kind.
        """
        path = Path(path).expanduser()
        if not path.exists():
            raise MissingFileError(f"run folder not found: {path}")
        if not is_run(path):
            advice = "a folder that `clipgraft run` or one of its stages wrote"
            raise CheckpointError(wrong_kind(path, "a run", f"../{ENVIRONMENT_NAME}", advice=advice))
        return cls(path)

    @classmethod
    @contextmanager
    def begin(
        cls,
        path: Path,
        recipe: Recipe,
        *,
        stage: str = "run",
        inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
        resume: bool = False,
        overwrite: bool = False,
        in_parallel: bool = False,
    ) -> Iterator["Run"]:
        """Lock the folder; write recipe and environment, at the end resources.

        Args:
            recipe: Written as recipe.toml; with `resume` first compared with the present one.
            stage: Key of `SECTIONS`, or "evaluate", whose recipe may change between calls.
            inputs: Files read besides the recipe's, by option.
            resume: Continue the run in the folder.
            overwrite: Replace the run in the folder; see `run_folder`.
            in_parallel: Whether several processes can share the work; the first one locks the folder.

        Raises:
            UserError: If the folder holds other files, an input lies in it or around it, or a tracker is
                not installed.
            CheckpointError: If the run began with settings for another result.
        """
        # torch takes seconds to import and is not needed to read runs.
        from accelerate import PartialState

        from clipgraft.device import choose_device, describe_environment, num_processes, quiet_libraries

        quiet_libraries()
        installed_trackers(trackers_of(recipe, stage))  # a whole run comes to its last one after hours
        device = choose_device(recipe.device)
        _refuse_inputs(path, {**named_paths(recipe), **inputs}, resume)
        several = num_processes() > 1
        if several:
            if not in_parallel:
                raise UserError(
                    "only finetune, generate, grid, compare and evaluate run in several processes, and "
                    f"{num_processes()} were started; start this command by itself"
                )
            processes = PartialState(cpu=device.type == "cpu")
            if not processes.is_main_process:
                processes.wait_for_everyone()
                yield cls(path)
                return
        with run_folder(path, resume=resume, overwrite=overwrite) as folder:
            _write_recipe(folder / RECIPE_NAME, recipe, stage)
            write_json(folder / ENVIRONMENT_NAME, describe_environment(device))
            if several:
                processes.wait_for_everyone()
            with recorded_resources(folder):
                yield cls(folder)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def recipe(self) -> Recipe:
        """Settings that the run began with, under their present names.

        Raises:
            CheckpointError: If the recipe is missing or unreadable.
        """
        path = self.path / RECIPE_NAME
        if not path.is_file():
            raise CheckpointError(
                f"{self.path} is {kind_of(self.path)} without {RECIPE_NAME}, which says what made it; name "
                "what `clipgraft run` wrote"
            )
        try:
            return load_recipe(path)
        except UserError as error:
            raise CheckpointError(
                f"{self.path} was written by a version with other settings ({error}); mend its "
                f"{RECIPE_NAME}, or run it again"
            ) from error

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages with a folder."""
        return tuple(stage for stage in STAGES if (self.path / stage).is_dir())

    @property
    def is_single_stage(self) -> bool:
        """Whether the folder is one stage's, not a whole run's."""
        return NESTED_STAGES.issuperset(self.stages)

    @property
    def is_running(self) -> bool:
        """Whether a process works in the folder or one of its stages."""
        return any(is_locked(self.path / stage) for stage in ("", *self.stages))

    @property
    def is_finished(self) -> bool:
        """Whether the last file (a run's report, a stage's metrics) was written."""
        return (self.path / (REPORT_NAME if self.stages else METRICS_NAME)).is_file()

    def stage(self, name: str) -> "Run":
        """Return a stage as a run, a single stage's folder as itself."""
        is_own = self.is_single_stage and name not in self.stages
        return self if is_own else Run(self.path / name)

    def grafts(self) -> dict[str, Path]:
        """Return text encoders' folders by variant; a stage's own is `graft` or `distilled`."""
        places = {name: self.path / folder for name, folder in GRAFTS.items()}
        own = {"graft": self.path / "graft", "distilled": self.path / "text_encoder"}
        places |= {name: place for name, place in own.items() if place.is_dir()}
        return {name: place for name, place in places.items() if place.is_dir()}

    def variants(self) -> dict[str, Path | None]:
        """Return "teacher", the base's own text encoder (None), and every graft.

        Raises:
            CheckpointError: If the run has no graft.
        """
        grafts = self.grafts()
        if not grafts and kind_of(self.path) != RUN:
            advice = "a run with one, or fit one with `clipgraft bridge`"
            raise CheckpointError(wrong_kind(self.path, "a run with a graft", advice=advice))
        if not grafts:
            raise CheckpointError(
                f"{self.path} has no weights to generate with (no bridge/graft); finish it with `clipgraft "
                f"run {self.path / RECIPE_NAME} --out {self.path} --resume`"
            )
        return {"teacher": None, **grafts}

    @property
    def tuned_clip(self) -> Path | None:
        """Folder of the fine-tuned CLIP, if there is one."""
        places = (self.path / "finetune" / "clip", self.path / "clip")
        return next((place for place in places if place.is_dir()), None)

    def clips(self) -> dict[str, ModelSettings]:
        """Return the CLIPs "before" and "after" fine-tuning, if there was any."""
        after = self.tuned_clip
        if after is None:
            return {}
        return {"before": self.recipe.clip, "after": ModelSettings(name=str(after.absolute()))}

    def result(self, kind: type[R]) -> R | None:
        """Read a stage's `metrics.json` as `kind`, or return None without one.

        Raises:
            CheckpointError: If the file is damaged or of a newer version; names it.
        """
        name, newest = (kind.model_fields[field].default for field in ("stage", "schema_version"))
        folder = self.stage(name).path
        path = folder / METRICS_NAME
        if not path.is_file():
            return None
        text = read_text(inside(path, folder), error=CheckpointError)
        try:
            if StageResult.model_validate_json(text).stage not in ("", name):
                return None
            found = kind.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise CheckpointError(f"{path}: {place and place + ': '}{first['msg']}") from error
        if found.schema_version > newest:
            raise CheckpointError(f"{path} was written by a newer clipgraft; update this one to read it")
        return found


def trackers_of(recipe: Recipe, stage: str) -> tuple[Any, ...]:
    """Return the trackers named by the sections of a stage."""
    sections = (getattr(recipe, name) for name in SECTIONS.get(stage, ()))
    return tuple(name for section in sections for name in getattr(section, "report_to", ()))


def _refuse_inputs(path: Path, inputs: Mapping[str, str | Path | None], resume: bool) -> None:
    """Refuse inputs within the run, except its own recipe on resuming."""
    own = (path / RECIPE_NAME).resolve() if resume else None
    others = {name: given for name, given in inputs.items() if given and Path(given).resolve() != own}
    refuse_inputs_within(path, others)


def _write_recipe(path: Path, recipe: Recipe, stage: str) -> None:
    """Write a run's recipe; refuse changes with effect on its result."""
    if path.is_file() and stage in SECTIONS:
        begun = _read_begun(path)
        differing = differing_settings(begun, recipe, stage)
        if differing:
            shown = some_of(differing, separator="; ")
            raise CheckpointError(
                f"{path.parent} was begun with other settings ({shown}); go on with its own {RECIPE_NAME}, "
                "or add --overwrite"
            )
        if begun == recipe:
            return
    write_bytes(path, to_toml(recipe).encode("utf-8"))


def _read_begun(path: Path) -> Recipe:
    try:
        if not path.read_bytes().strip():
            raise UserError("it is empty")
        return load_recipe(path)
    except UserError as error:
        raise CheckpointError(
            f"{path} does not say any more what the run was begun with ({error}); nothing was changed: put "
            "the run's recipe there, then --resume again"
        ) from error


def differing_settings(begun: Recipe, recipe: Recipe, stage: str) -> list[str]:
    """List changed settings with effect on a stage's result.

    Paths may differ, as training compares content by fingerprint; `num_epochs` may grow.
    """
    return [
        f"{name} was {value!r}, is {now!r}"
        for name, value, now in _read_settings(begun, recipe, stage)
        if not _is_alike(stage, name, value, now)
    ]


def ended_with(path: Path, recipe: Recipe, stage: str) -> bool:
    """Whether a finished stage ended with equal settings, apart from moved inputs."""
    written = path / RECIPE_NAME
    if not written.is_file():  # of an older version
        return True
    return all(
        value == now or name.rpartition(".")[2] in NO_RESULT + BY_CONTENT or _is_moved(value, now)
        for name, value, now in _read_settings(_read_begun(written), recipe, stage)
    )


def _read_settings(begun: Recipe, recipe: Recipe, stage: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield a stage's settings: dotted name, value before, value now."""
    before, now = (_by_name(settings.model_dump()) for settings in (begun, recipe))
    has_previews = stage == "finetune" and recipe.finetune.preview_steps
    sections = ("seed", "device", *SECTIONS[stage], *(["generate"] if has_previews else []))
    for name, value in before.items():
        if name.partition(".")[0] in sections:
            yield name, value, now[name]


def _is_moved(before: Any, now: Any) -> bool:
    paths = [Path(value) for value in (before, now) if isinstance(value, str) and os.path.isabs(value)]
    return len(paths) == 2 and not paths[0].exists() and paths[0].parts[-2:] == paths[1].parts[-2:]


def _is_alike(stage: str, name: str, before: Any, now: Any) -> bool:
    """Whether a stage can be resumed with another value of a setting."""
    key = name.rpartition(".")[2]
    if before == now or key in NO_RESULT + BY_CONTENT:
        return True
    if key == "num_epochs" and stage in LENGTHENED:
        return now > before
    if name == "pretrain.unet.num_epochs":
        return True  # the last part; shorter, too, for a run that had less time than planned
    return all(isinstance(value, str) and os.path.isabs(value) for value in (before, now))


def _by_name(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to settings by dotted name."""
    named: dict[str, Any] = {}
    for key, value in settings.items():
        named |= _by_name(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return named
