"""A stage's folder: the resolved recipe and the environment beside every result."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import PartialState

from clipgraft.config import Recipe, load_recipe, named_paths, to_toml
from clipgraft.device import choose_device, describe_environment, num_processes, quiet_libraries
from clipgraft.errors import CheckpointError, UserError
from clipgraft.files import write_bytes, write_json
from clipgraft.runs.folder import RECIPE_NAME, refuse_inputs_within, run_folder
from clipgraft.runs.resources import recorded_resources

MAX_NAMED = 3
"""Settings that differ, as an error names them."""
SECTIONS = {
    "run": ("data", "clip", "base", "finetune", "bridge", "refine"),
    "finetune": ("data", "clip", "finetune"),
    "interpolate": ("data", "clip"),
    "bridge": ("data", "clip", "base", "bridge"),
    "refine": ("data", "base", "refine"),
    "ladder": ("data", "clip", "base", "finetune", "bridge", "refine", "evaluate", "ladder"),
    "pretrain": ("data", "pretrain"),
}
"""Sections of a recipe that decide what a stage has trained, so that it goes on with equal ones alone."""
NO_RESULT = ("num_workers", "checkpoint_every", "keep_checkpoints", "track")
"""Settings that decide how fast a result comes and what lies beside it, not which."""
LENGTHENED = ("run", "finetune", "bridge", "refine")
"""Stages that train more epochs where they are asked to; of others, parts that are done stay as they are."""
GRAFT_STAGES = {"before": "bridge_before", "after": "bridge", "refined": "refine"}
"""Column of pictures -> stage of a run whose graft draws it."""


@contextmanager
def stage_folder(
    path: Path,
    recipe: Recipe,
    *,
    stage: str = "run",
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
    resume: bool,
    overwrite: bool,
    in_parallel: bool = False,
) -> Iterator[Path]:
    """Hold a run's folder while a stage works in it, with recipe and environment written first.

    Args:
        path: The folder.
        recipe: The run's.
        stage: A name of `SECTIONS`.
        inputs: By option, what is read beside what the recipe names.
        resume: Go on in a folder that holds a run.
        overwrite: Replace the run that the folder holds; see `run_folder`.
        in_parallel: Whether the stage can share its work among processes; the first one holds the folder.

    Raises:
        UserError: If the folder is another run's, holds what is not a run, or holds, or lies in, an input.
        CheckpointError: If a run is to go on with settings that would give another result than those it began
            with, or does not say any more what it began with.
    """
    quiet_libraries()
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
            yield path
            return
    with run_folder(path, resume=resume, overwrite=overwrite) as folder:
        _write_recipe(folder / RECIPE_NAME, recipe, stage)
        write_json(folder / "environment.json", describe_environment(device))
        if several:
            processes.wait_for_everyone()
        with recorded_resources(folder):
            yield folder


def _refuse_inputs(path: Path, inputs: Mapping[str, str | Path | None], resume: bool) -> None:
    """Look at inputs but for the run's own recipe, with which it goes on."""
    own = (path / RECIPE_NAME).resolve() if resume else None
    others = {name: given for name, given in inputs.items() if given and Path(given).resolve() != own}
    refuse_inputs_within(path, others)


def _write_recipe(path: Path, recipe: Recipe, stage: str) -> None:
    """Write a run's recipe, unless it is there already; refuse one that would give another result."""
    text = to_toml(recipe)
    if path.is_file():
        begun = _read_begun(path)
        differing = differing_settings(begun, recipe, stage)
        if differing:
            shown = "; ".join(differing[:MAX_NAMED]) + ("; ..." if len(differing) > MAX_NAMED else "")
            raise CheckpointError(
                f"{path.parent} was begun with other settings ({shown}); go on with its own {RECIPE_NAME}, "
                "or add --overwrite"
            )
        if begun == recipe:
            return
    write_bytes(path, text.encode("utf-8"))


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
    """Say what a stage reads of a recipe that would give another result than what it was begun with.

    Paths are let be, because it is the content that decides, and training knows that by its fingerprint; so
    are more epochs, with which it goes on.
    """
    before, now = (_by_name(settings.model_dump()) for settings in (begun, recipe))
    return [
        f"{name} was {value!r}, is {now[name]!r}"
        for name, value in before.items()
        if _is_read(name, stage, recipe) and not _is_alike(stage, name, value, now[name])
    ]


def ended_with(path: Path, recipe: Recipe, stage: str) -> bool:
    """Whether a finished stage ended with equal settings, from the same places or from where they were moved.

    Args:
        path: Its folder.
        recipe: With the settings that it should have.
        stage: A name of `SECTIONS`.
    """
    written = path / RECIPE_NAME
    if not written.is_file():  # of a version that wrote none
        return True
    before, now = (_by_name(settings.model_dump()) for settings in (_read_begun(written), recipe))
    return all(
        value == now[name] or name.rpartition(".")[2] in NO_RESULT or _is_moved(value, now[name])
        for name, value in before.items()
        if _is_read(name, stage, recipe)
    )


def _is_moved(before: Any, now: Any) -> bool:
    paths = [Path(value) for value in (before, now) if isinstance(value, str) and os.path.isabs(value)]
    return len(paths) == 2 and not paths[0].exists() and paths[0].parts[-2:] == paths[1].parts[-2:]


def _is_read(name: str, stage: str, recipe: Recipe) -> bool:
    section = name.partition(".")[0]
    is_drawn = stage == "finetune" and section == "generate" and bool(recipe.finetune.samples_every)
    return section in ("seed", "device", *SECTIONS[stage]) or is_drawn


def _is_alike(stage: str, name: str, before: Any, now: Any) -> bool:
    """Whether two values of a setting give the same result, or a stage goes on with the other one."""
    key = name.rpartition(".")[2]
    if before == now or key in NO_RESULT:
        return True
    if key == "num_epochs" and stage in LENGTHENED:
        return now > before
    return all(isinstance(value, str) and os.path.isabs(value) for value in (before, now))


def _by_name(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of nested sections by their dotted names."""
    named: dict[str, Any] = {}
    for key, value in settings.items():
        named |= _by_name(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return named


def run_encoders(folder: Path) -> dict[str, Path | None]:
    """Text encoders that a run has, by column: the base's own, and the graft of each stage that wrote one."""
    grafts = {column: folder / stage / "graft" for column, stage in GRAFT_STAGES.items()}
    return {"teacher": None, **{column: graft for column, graft in grafts.items() if graft.is_dir()}}
