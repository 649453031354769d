"""Checkpoints: a run's state at some steps, each a folder that is whole or passed over.

`step-00000100/` holds `tensors.safetensors`, `state.json` and the manifest that `models.checkpoint` writes
and verifies. Nothing is pickled.
"""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from clipgraft.device import PRECISION_DTYPES
from clipgraft.errors import CheckpointError, UserError
from clipgraft.files import read_json, write_bytes
from clipgraft.models.weights import MANIFEST_NAME, verify_folder, write_folder_atomically, write_tensors
from clipgraft.training.step_log import RowsSum

VERSION = 2
"""Of checkpoints: of their files, and of how a step follows from the one before (order of the data, random
numbers, losses). `test_steps_are_those_of_this_version` fails where the latter changes: raise it then."""
TENSORS_NAME, VALUES_NAME = "tensors.safetensors", "state.json"
VALUE_TYPES = {
    "version": int,
    "step": int,
    "skipped_steps": int,
    "num_steps": int,
    "data": dict,
    "settings": dict,
    "mixed_precision": str,
    "average_updates": int,
    "rows": dict,
}

logger = logging.getLogger(__name__)


class Saved(NamedTuple):
    """A checkpoint that was read and is whole."""

    folder: Path
    values: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def rows(self) -> dict[str, RowsSum]:
        """Return what the checkpoint counts on of the run's files of rows, by their names."""
        return {name: RowsSum(*found) for name, found in self.values["rows"].items()}


def write_checkpoint(
    checkpoints: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor], *, keep: int
) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`.

    Args:
        checkpoints: Folder of a run's checkpoints.
        values: JSON values, of `VALUE_TYPES`, `version` aside; those of its `rows` are `RowsSum`s.
        tensors: By name, on the CPU.
        keep: Checkpoints that stay, this one included.

    Returns:
        The new checkpoint's folder.

    Raises:
        CheckpointError: If there is no space left; nothing has changed then.
    """
    folder = checkpoints / f"step-{values['step']:08d}"
    with write_folder_atomically(folder) as temporary:
        write_tensors(temporary / TENSORS_NAME, tensors)
        write_bytes(temporary / VALUES_NAME, json.dumps({"version": VERSION, **values}, indent=2).encode())
    for old in _newest_first(checkpoints)[keep:]:
        shutil.rmtree(old)
    return folder


def read_named(checkpoints: Path, step: int, check: Callable[[Saved], None] = lambda _saved: None) -> Saved:
    """Read the checkpoint of a step, and no other.

    Args:
        checkpoints: Folder of a run's checkpoints.
        step: Steps made.
        check: Raises CheckpointError where what it counts on beside it is not there.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    folder = checkpoints / f"step-{step:08d}"
    if not folder.is_dir():
        steps = ", ".join(str(_step_of(path)) for path in _newest_first(checkpoints))
        raise CheckpointError(f"no checkpoint of step {step} in {checkpoints}; steps: {steps or 'none'}")
    saved = _read(folder)
    check(saved)
    return saved


def read_newest(checkpoints: Path, check: Callable[[Saved], None] = lambda _saved: None) -> Saved | None:
    """Read the newest checkpoint that is whole; None where there is none at all.

    Args:
        checkpoints: Folder of a run's checkpoints.
        check: Raises CheckpointError where what it counts on beside it is not there.

    Raises:
        CheckpointError: If none of the checkpoints is whole.
    """
    reasons = []
    for folder in _newest_first(checkpoints):
        try:
            saved = _read(folder)
            check(saved)
        except UserError as error:
            logger.warning(
                "checkpoint %s cannot be used, falling back to the one before: %s", folder.name, error
            )
            reasons.append(str(error))
            continue
        return saved
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {checkpoints} is whole; start again with --overwrite. The newest: {reasons[0]}"
        )
    return None


def saved_precision(checkpoints: Path) -> str:
    """Mixed precision that the newest readable checkpoint was made in; empty where there is none."""
    for folder in _newest_first(checkpoints):
        try:
            return _read_values(folder)["mixed_precision"]
        except UserError:  # damaged: loading it says so
            continue
    return ""


def delete_newer_states(checkpoints: Path, step: int) -> None:
    """Delete the checkpoints beyond a step: damaged ones, or of steps that are made in another way now."""
    for folder in _newest_first(checkpoints):
        if _step_of(folder) > step:
            shutil.rmtree(folder)


def _read(folder: Path) -> Saved:
    """Read a checkpoint whose files are those that its manifest lists."""
    listed = read_json(folder / MANIFEST_NAME, error=CheckpointError).get("files")
    if not isinstance(listed, dict) or not {TENSORS_NAME, VALUES_NAME} <= listed.keys():
        raise CheckpointError(f"{folder / MANIFEST_NAME} does not list {TENSORS_NAME} and {VALUES_NAME}")
    verify_folder(folder)
    values = _read_values(folder)
    try:
        return Saved(folder, values, load_file(folder / TENSORS_NAME))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / TENSORS_NAME} cannot be read: {error}") from error


def _read_values(folder: Path) -> dict[str, Any]:
    path = folder / VALUES_NAME
    values = read_json(path, error=CheckpointError)
    if values.get("version", 1) != VERSION:
        raise CheckpointError(
            f"{path} was written by a version of clipgraft whose steps are others; go on with that version, "
            "which environment.json in the run's folder names"
        )
    wrong = [name for name, kind in VALUE_TYPES.items() if type(values.get(name)) is not kind]
    if not wrong:
        wrong = [name for name, is_right in _particulars(folder, values).items() if not is_right]
    if wrong:
        raise CheckpointError(f"{path} is damaged in {', '.join(wrong)}")
    return values


def _particulars(folder: Path, values: dict[str, Any]) -> dict[str, bool]:
    """Whether what types alone do not tell is right, by name."""
    return {
        "step": values["step"] == _step_of(folder),
        "mixed_precision": values["mixed_precision"] in PRECISION_DTYPES,
        "rows": all(_is_sum(found) for found in values["rows"].values()),
        "scaler": isinstance(values.get("scaler", {}), dict),
    }


def _is_sum(found: Any) -> bool:
    return isinstance(found, list) and [type(part) for part in found] == [int, str]


def _newest_first(checkpoints: Path) -> list[Path]:
    folders = [path for path in checkpoints.glob("step-*") if re.fullmatch(r"step-\d{8,18}", path.name)]
    return sorted(folders, key=_step_of, reverse=True)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
