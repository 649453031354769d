"""A training run's whole state on disk: what is needed to go on to the same bits.

A checkpoint is a folder `step-00000100/` with `tensors.safetensors`, `state.json` and the manifest that
`models.checkpoint` writes and verifies. Nothing is pickled.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipgraft.errors import CheckpointError
from clipgraft.models.checkpoint import verify_folder, write_folder_atomically
from clipgraft.training.optimization import MovingAverage
from clipgraft.training.random_states import random_states, set_random_states

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything that a step reads and changes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    scaler: torch.amp.GradScaler | None
    fingerprint: str
    """Names the data and settings that the steps were made with."""
    mixed_precision: str = "no"
    """In which they were made."""
    step: int = 0
    """Optimizer steps made; the position in the data follows from it."""
    skipped_steps: int = 0


@dataclass(frozen=True)
class Resume:
    """From where to go on, and on what terms."""

    step: int | None = None
    """Of the checkpoint; None = the newest that is whole."""
    allow_changed_data: bool = False
    """Go on although data or settings are others than those that the checkpoint was made with."""


def save_state(checkpoints: Path, state: TrainingState, *, keep: int) -> Path:
    """Write a checkpoint, then delete all but the newest `keep`.

    Args:
        checkpoints: Folder of this run's checkpoints.
        state: What to save.
        keep: Checkpoints that stay, this one included.

    Returns:
        The new checkpoint's folder.
    """
    folder = checkpoints / f"step-{state.step:08d}"
    with write_folder_atomically(folder) as temporary:
        save_file(_tensors(state), temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps(_values(state), indent=2), encoding="utf-8")
    for old in _newest_first(checkpoints)[keep:]:
        shutil.rmtree(old)
    return folder


def load_named_state(
    checkpoints: Path, state: TrainingState, step: int, *, allow_changed_data: bool = False
) -> None:
    """Bring a state back from the checkpoint of a step, and from no other.

    Raises:
        CheckpointError: If there is none, or it is damaged, or of another model, data or settings.
    """
    folder = checkpoints / f"step-{step:08d}"
    if not folder.is_dir():
        steps = ", ".join(str(int(path.name.removeprefix("step-"))) for path in _newest_first(checkpoints))
        raise CheckpointError(f"no checkpoint of step {step} in {checkpoints}; steps: {steps or 'none'}")
    verify_folder(folder)
    load_state(folder, state, allow_changed_data=allow_changed_data)


def delete_newer_states(checkpoints: Path, step: int) -> None:
    """Delete the checkpoints beyond a step: of steps that are made once more, in another way perhaps."""
    for folder in _newest_first(checkpoints):
        if folder.name > f"step-{step:08d}":
            shutil.rmtree(folder)


def load_newest_state(
    checkpoints: Path, state: TrainingState, *, allow_changed_data: bool = False
) -> Path | None:
    """Bring a state back from the newest checkpoint that verifies.

    Returns:
        The checkpoint's folder, or None where there is none.

    Raises:
        CheckpointError: If none of the checkpoints is whole, or it is of another model, data or settings.
    """
    folders = _newest_first(checkpoints)
    for folder in folders:
        try:
            verify_folder(folder)
        except CheckpointError as error:
            logger.warning("checkpoint %s is damaged, falling back to the one before: %s", folder.name, error)
            continue
        load_state(folder, state, allow_changed_data=allow_changed_data)
        return folder
    if folders:
        raise CheckpointError(f"no checkpoint in {checkpoints} is whole; start again with --overwrite")
    return None


def saved_precision(checkpoints: Path) -> str:
    """Mixed precision that the newest readable checkpoint was made in; empty where there is none."""
    for folder in _newest_first(checkpoints):
        try:
            return json.loads((folder / "state.json").read_text(encoding="utf-8"))["mixed_precision"]
        except (OSError, ValueError, KeyError):  # damaged: loading it says so
            continue
    return ""


def load_state(folder: Path, state: TrainingState, *, allow_changed_data: bool = False) -> None:
    """Bring a state back from one checkpoint.

    Raises:
        CheckpointError: If it is of another model, data, settings or precision, or an entry is missing.
    """
    values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "tensors.safetensors")
    try:
        _refuse_other_settings(folder, values, state, allow_changed_data)
        _load_entries(folder, values, tensors, state)
    except KeyError as error:
        raise CheckpointError(
            f"{folder} lacks {error}, which this run needs to go on: it was made on another device or by "
            "another version; go on there, or start again with --overwrite"
        ) from error


def _refuse_other_settings(
    folder: Path, values: dict[str, Any], state: TrainingState, allow_changed_data: bool
) -> None:
    if values["fingerprint"] != state.fingerprint:
        what = (
            f"{folder} was made with other data or settings ({values['fingerprint'][:12]}, "
            f"now {state.fingerprint[:12]})"
        )
        if not allow_changed_data:
            raise CheckpointError(
                f"{what}; use the recipe beside it, or start again with --overwrite; fine-tuning goes on "
                "with changed data by --allow-changed-data"
            )
        logger.warning("%s; going on all the same", what)
    if values["mixed_precision"] != state.mixed_precision:
        raise CheckpointError(
            f"{folder} was made in mixed_precision {values['mixed_precision']!r}, and this run is in "
            f"{state.mixed_precision!r}; go on in the former, or start again with --overwrite"
        )
    if state.scaler is not None and not values["scaler"]:
        raise CheckpointError(
            f"{folder} has no state of the gradient scaler, which {state.mixed_precision!r} needs here; "
            "go on where it was made, or start again with --overwrite"
        )


def _load_entries(
    folder: Path, values: dict[str, Any], tensors: dict[str, Tensor], state: TrainingState
) -> None:
    expected = _module_tensors(state)
    refuse_other_model(str(folder), {name: tensors[name] for name in expected if name in tensors}, expected)
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    _load_optimizer(state.optimizer, values["optimizer"], tensors)
    if state.scaler is not None:
        state.scaler.load_state_dict(values["scaler"])
    if state.average:
        state.average.num_updates = values["average_updates"]
    set_random_states(tensors, _device(state))
    state.step, state.skipped_steps = values["step"], values["skipped_steps"]


def refuse_other_model(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensors that are missing, too many or of another shape."""
    shapes = [{name: tensor.shape for name, tensor in named.items()} for named in (found, expected)]
    wrong = sorted(name for name in shapes[0] | shapes[1] if shapes[0].get(name) != shapes[1].get(name))
    if wrong:
        raise CheckpointError(f"{what} is of another model; differing: {', '.join(wrong[:5])}")


def _newest_first(checkpoints: Path) -> list[Path]:
    return sorted(checkpoints.glob("step-[0-9]*"), reverse=True)


def _module_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Trainable parameters and their averages by name, sharing memory with the state's."""
    named = {name: p.detach() for name, p in state.module.named_parameters() if p.requires_grad}
    tensors = {f"weight.{name}": parameter for name, parameter in named.items()}
    if state.average:
        tensors |= {f"average.{name}": t for name, t in zip(named, state.average.averages, strict=True)}
    return tensors


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {name: tensor.contiguous().cpu() for name, tensor in _module_tensors(state).items()}
    for index, entry in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.cpu() for name, tensor in entry.items()}
    return tensors | random_states(_device(state))


def _device(state: TrainingState) -> torch.device:
    return next(state.module.parameters()).device


def _values(state: TrainingState) -> dict[str, Any]:
    return {
        "step": state.step,
        "skipped_steps": state.skipped_steps,
        "fingerprint": state.fingerprint,
        "mixed_precision": state.mixed_precision,
        "optimizer": state.optimizer.state_dict()["param_groups"],
        "scaler": state.scaler.state_dict() if state.scaler is not None else None,
        "average_updates": state.average.num_updates if state.average else 0,
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, groups: list[dict], tensors: dict[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
