"""A training run's whole state: what is saved of it, and how it is brought back to the same bits."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipgraft.config import OLD_NAMES
from clipgraft.errors import CheckpointError
from clipgraft.training.checkpoints import Saved, write_checkpoint
from clipgraft.training.optim import MovingAverage
from clipgraft.training.step_log import RowsSum

RENAMED = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in OLD_NAMES.items()}
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fingerprint:
    """What decides a run's steps, by name."""

    data: Mapping[str, str] = field(default_factory=dict)
    """Sums of what is read: photographs, captions, the weights that training starts from."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON values; the number of epochs is not among them, since a run may be given more."""


NO_FINGERPRINT = Fingerprint()


@dataclass
class TrainingState:
    """Everything that a step reads and changes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    scaler: torch.amp.GradScaler | None
    fingerprint: Fingerprint = NO_FINGERPRINT
    mixed_precision: str = "no"
    """In which the steps were made."""
    step: int = 0
    """Optimizer steps made; the position in the data and the random numbers follow from it."""
    skipped_steps: int = 0
    num_steps: int = 0
    """Of the whole run, as it is planned."""


@dataclass(frozen=True)
class Resume:
    """From where to go on, and on what terms."""

    step: int | None = None
    """Of the checkpoint; None = the newest that is whole."""
    allow_changed_data: bool = False
    """Go on though what is read (photographs, captions, start weights) has changed since; not so settings."""


def save_state(checkpoints: Path, state: TrainingState, *, keep: int, rows: Mapping[str, RowsSum]) -> Path:
    """Write a checkpoint of a state.

    Args:
        checkpoints: Folder of this run's checkpoints.
        state: What to save.
        keep: Newest checkpoints that stay.
        rows: What it counts on of the run's files of rows, by their names.

    Returns:
        The new checkpoint's folder.
    """
    return write_checkpoint(checkpoints, _values(state) | {"rows": rows}, _tensors(state), keep=keep)


def restore(saved: Saved, state: TrainingState, *, allow_changed_data: bool = False) -> None:
    """Bring a state back from a checkpoint.

    Args:
        saved: The checkpoint.
        state: Changed in place, `num_steps` aside.
        allow_changed_data: See `Resume`.

    Raises:
        CheckpointError: If it is of another model, data, settings or precision; the state is as it was then.
    """
    _refuse_other_data(saved, state.fingerprint.data, allow_changed_data)
    _refuse_other_settings(saved, state)
    expected = _module_tensors(state)
    refuse_other_model(str(saved.folder), saved.tensors, expected | _optimizer_shapes(saved.tensors, state))
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(saved.tensors[name])
    _load_optimizer(state.optimizer, saved.tensors)
    if state.scaler is not None:
        state.scaler.load_state_dict(saved.values["scaler"])
    if state.average:
        state.average.num_updates = saved.values["average_updates"]
    state.step, state.skipped_steps = saved.values["step"], saved.values["skipped_steps"]


def _refuse_other_data(saved: Saved, data: Mapping[str, str], allow_changed_data: bool) -> None:
    changed = _differing(saved.values["data"], data)
    if not changed:
        return
    what = f"{saved.folder} was made with other {' and other '.join(changed)} than there are now"
    if not allow_changed_data:
        raise CheckpointError(
            f"{what}; bring back what there was, or start again with --overwrite; fine-tuning goes on with "
            "what there is now by --allow-changed-data"
        )
    logger.warning("%s; going on all the same", what)


def _refuse_other_settings(saved: Saved, state: TrainingState) -> None:
    settings, values = state.fingerprint.settings, saved.values
    begun = {RENAMED.get(name, name): value for name, value in values["settings"].items()}
    # A setting that the checkpoint lacks is newer than the checkpoint.
    differing = [name for name in _differing(begun, settings) if name in begun]
    if differing:
        shown = ", ".join(f"{name} was {begun[name]!r}, is {settings.get(name)!r}" for name in differing[:3])
        raise CheckpointError(
            f"{saved.folder} was made with other settings ({shown}); use the recipe beside it, or start "
            "again with --overwrite"
        )
    if values["mixed_precision"] != state.mixed_precision:
        raise CheckpointError(
            f"{saved.folder} was made in mixed_precision {values['mixed_precision']!r}, and this run is in "
            f"{state.mixed_precision!r}; go on in the former, or start again with --overwrite"
        )
    if state.scaler is not None and values.get("scaler", {}).keys() != state.scaler.state_dict().keys():
        raise CheckpointError(
            f"{saved.folder} has no state of the gradient scaler, which {state.mixed_precision!r} needs; "
            "go on where it was made, or start again with --overwrite"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def refuse_other_model(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensors that are missing, too many or of another shape."""
    shapes = [{name: tensor.shape for name, tensor in named.items()} for named in (found, expected)]
    names = sorted(shapes[0] | shapes[1], key=lambda name: (name.startswith("optimizer"), name))
    wrong = [name for name in names if shapes[0].get(name) != shapes[1].get(name)]
    if wrong:
        raise CheckpointError(f"{what} is of another model; differing: {', '.join(wrong[:5])}")


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
    return tensors


def _values(state: TrainingState) -> dict[str, Any]:
    values = {
        "step": state.step,
        "skipped_steps": state.skipped_steps,
        "num_steps": state.num_steps,
        "data": dict(state.fingerprint.data),
        "settings": dict(state.fingerprint.settings),
        "mixed_precision": state.mixed_precision,
        "average_updates": state.average.num_updates if state.average else 0,
    }
    return values | ({"scaler": state.scaler.state_dict()} if state.scaler is not None else {})


def _optimizer_shapes(tensors: Mapping[str, Tensor], state: TrainingState) -> dict[str, Tensor]:
    """Tensors like those that the optimizer has of each parameter that a checkpoint has a state of."""
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    expected: dict[str, Tensor] = {}
    for index, parameter in enumerate(parameters):
        names = [f"optimizer.{index}.{name}" for name in ADAMW_STATE]
        if any(name in tensors for name in names):  # one without a gradient so far has none
            expected |= dict(zip(names, (torch.empty(()), parameter, parameter), strict=True))
    return expected


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = tensor
    # Groups follow from the settings, and the learning rate from the step.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
