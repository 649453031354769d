"""A stage's folder: the resolved recipe and the environment beside every result."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from clipgraft.config import Recipe, load_recipe, to_toml
from clipgraft.errors import CheckpointError, UserError
from clipgraft.runtime import (
    RECIPE_NAME,
    choose_device,
    describe_environment,
    quiet_libraries,
    run_folder,
    write_json,
)
from clipgraft.stages.resources import recorded_resources

MAX_NAMED = 3
"""Settings that differ, as an error names them."""
GRAFT_STAGES = {"before": "bridge_before", "after": "bridge", "refined": "refine"}
"""Column of pictures -> stage of a run whose graft draws it."""


@contextmanager
def stage_folder(
    path: Path, recipe: Recipe, *, resume: bool, overwrite: bool, in_parallel: bool = False
) -> Iterator[Path]:
    """Hold a run's folder while a stage works in it, with recipe and environment written first.

    Args:
        path: The folder.
        recipe: The run's.
        resume: Go on in a folder that holds a run.
        overwrite: Delete the run that the folder holds.
        in_parallel: Whether the stage can share its work among processes; the first one holds the folder.

    Raises:
        ValueError: If the folder is another run's, or holds what is not a run.
        CheckpointError: If a run is to go on with other settings than it began with; where its figures are
            written beside the log (`track`) may change.
    """
    quiet_libraries()
    device = choose_device(recipe.device)
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes > 1:
        if not in_parallel:
            raise UserError(
                "only finetune, generate, grid, compare and evaluate run in several processes, and "
                f"{num_processes} were started; start this command by itself"
            )
        processes = PartialState(cpu=device.type == "cpu")
        if not processes.is_main_process:
            processes.wait_for_everyone()
            yield path
            return
    with run_folder(path, resume=resume, overwrite=overwrite) as folder:
        written = folder / RECIPE_NAME
        if written.is_file():
            _refuse_other_settings(path, load_recipe(written), recipe)
        written.write_text(to_toml(recipe), encoding="utf-8")
        write_json(folder / "environment.json", describe_environment(device))
        if num_processes > 1:
            processes.wait_for_everyone()
        with recorded_resources(folder):
            yield folder


def _refuse_other_settings(path: Path, begun: Recipe, recipe: Recipe) -> None:
    before, now = (_by_name(settings.model_dump()) for settings in (begun, recipe))
    differing = [
        f"{name} was {value!r}, is {now[name]!r}"
        for name, value in before.items()
        if value != now[name] and name.rpartition(".")[2] != "track"
    ]
    if differing:
        shown = "; ".join(differing[:MAX_NAMED]) + ("; ..." if len(differing) > MAX_NAMED else "")
        raise CheckpointError(
            f"{path} was begun with other settings ({shown}); go on with its own {RECIPE_NAME}, or add "
            "--overwrite"
        )


def _by_name(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings of nested sections by their dotted names."""
    named: dict[str, Any] = {}
    for key, value in settings.items():
        named |= _by_name(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return named


def fingerprint(*parts: object) -> str:
    """Name of data and settings together: the sha256 (hex) of their JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run_encoders(folder: Path) -> dict[str, Path | None]:
    """Text encoders that a run has, by column: the base's own, and the graft of each stage that wrote one."""
    grafts = {column: folder / stage / "graft" for column, stage in GRAFT_STAGES.items()}
    return {"teacher": None, **{column: graft for column, graft in grafts.items() if graft.is_dir()}}
