"""Checkpoints of the training state, each a folder.

`step-00000100/` holds `tensors.safetensors`, `state.json` and a manifest of their checksums, without pickles.
Damaged folders are skipped.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers.training_utils import EMAModel
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from clipgraft.config import OLD_NAMES
from clipgraft.data.dataset import CaptionedImages, TrainingImages
from clipgraft.data.image_file import content_checksums
from clipgraft.errors import CheckpointError, UserError
from clipgraft.files import fingerprint, read_json, write_bytes
from clipgraft.models.clip import ClipParts
from clipgraft.models.weights import (
    MANIFEST_NAME,
    module_sha256,
    verify_folder,
    write_folder_atomically,
    write_tensors,
)
from clipgraft.runs.run import NO_RESULT
from clipgraft.settings import TrainSettings
from clipgraft.training.run_log import LOG_NAME, NO_ROWS, RowsChecksum, refuse_other_rows

VERSION = 2
"""Version of the files and of the steps (order of the data, random numbers, losses). Raise it when
`test_steps_are_those_of_this_version` fails."""
FOLDER_NAME, TENSORS_NAME, VALUES_NAME = "checkpoints", "tensors.safetensors", "state.json"
RENAMED = {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in OLD_NAMES.items()}
WITHOUT_EFFECT = {*NO_RESULT, "preview_steps", "preview_graft", "allow_few_captions"}
"""Settings without influence on the weights."""
COMPARED_OTHERWISE = {"num_epochs", "mixed_precision", "captions", "max_captions"}
"""Settings compared by their effect: steps planned, precision, captions' checksum."""
ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")

logger = logging.getLogger(__name__)


@dataclass
class TrainingState:
    """Everything read and changed by a step."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel | None = None
    scaler: torch.amp.GradScaler | None = None
    mixed_precision: str = "no"
    step: int = 0
    """Optimizer steps made; the position in the data and the random numbers follow from it."""
    skipped_steps: int = 0


class SavedValues(BaseModel):
    """`state.json` of a checkpoint."""

    model_config = ConfigDict(strict=True)

    version: int = VERSION
    step: NonNegativeInt
    skipped_steps: NonNegativeInt
    num_steps: NonNegativeInt
    """Of the whole run, as planned when saving."""
    data: dict[str, str]
    """Checksums of training data and start weights by name."""
    settings: dict[str, Any]
    """See `deciding_settings`."""
    mixed_precision: Literal["no", "fp16", "bf16"]
    average_updates: NonNegativeInt = 0
    """Updates of the moving average."""
    rows: dict[str, Annotated[tuple[int, str], Field(strict=False)]]
    """File -> number and checksum of its rows up to this step."""
    scaler: dict[str, Any] | None = None


@dataclass(frozen=True)
class Saved:
    """An intact checkpoint."""

    folder: Path
    values: SavedValues
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class CheckpointManager:
    """Writer and reader of a run's checkpoints."""

    run_dir: Path
    """Gets `checkpoints/`; holds the `row_files`."""
    keep: int = 2
    """Number of newest checkpoints kept."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Checksums of training data and start weights by name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """See `deciding_settings`."""
    row_files: tuple[str, ...] = (LOG_NAME,)
    """Files in `run_dir` whose rows are recorded in a checkpoint."""

    @property
    def folder(self) -> Path:
        """Return the folder of all checkpoints."""
        return self.run_dir / FOLDER_NAME

    def save(self, state: TrainingState, *, num_steps: int, rows: Mapping[str, RowsChecksum]) -> Path:
        """Write a checkpoint, then delete all but the newest.

        Raises:
            CheckpointError: If there is no space left; nothing is changed then.
        """
        values = SavedValues(
            step=state.step,
            skipped_steps=state.skipped_steps,
            num_steps=num_steps,
            data=dict(self.data),
            settings=dict(self.settings),
            mixed_precision=state.mixed_precision,  # type: ignore[arg-type]
            average_updates=state.ema.optimization_step if state.ema else 0,
            rows=dict(rows),
            scaler=state.scaler.state_dict() if state.scaler is not None else None,
        )
        folder = self.folder / f"step-{state.step:08d}"
        with write_folder_atomically(folder) as temporary:
            write_tensors(temporary / TENSORS_NAME, _tensors(state))
            text = json.dumps(values.model_dump(exclude_none=True), indent=2)
            write_bytes(temporary / VALUES_NAME, text.encode())
        for old in self._newest_first()[self.keep :]:
            shutil.rmtree(old)
        return folder

    def read(self, step: int | None = None) -> Saved | None:
        """Read a step's checkpoint or the newest intact one (None without checkpoints).

        Raises:
            CheckpointError: If the step's is missing or damaged, or none is intact.
        """
        if step is not None:
            folder = self.folder / f"step-{step:08d}"
            if folder.is_dir():
                return self._read_with_rows(folder)
            steps = ", ".join(str(_step_of(path)) for path in self._newest_first())
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder}; steps: {steps or 'none'}")
        reasons = []
        for folder in self._newest_first():
            try:
                return self._read_with_rows(folder)
            except UserError as error:
                reasons.append(str(error))
                logger.warning(
                    "checkpoint %s cannot be used, falling back to the one before: %s", folder.name, error
                )
        if reasons:
            raise CheckpointError(
                f"no checkpoint in {self.folder} is whole; start again with --overwrite. The newest: "
                f"{reasons[0]}"
            )
        return None

    def restore(self, saved: Saved, state: TrainingState, *, allow_changed_data: bool = False) -> None:
        """Restore a state in place.

        Raises:
            CheckpointError: If the checkpoint has another model, data, settings or precision; nothing is
                changed then.
        """
        self._refuse_other_data(saved, allow_changed_data)
        self._refuse_other_settings(saved, state)
        values, expected = saved.values, _module_tensors(state)
        shapes = expected | _optimizer_shapes(saved.tensors, state)
        refuse_other_model(str(saved.folder), saved.tensors, shapes)
        with torch.no_grad():
            for name, tensor in expected.items():
                tensor.copy_(saved.tensors[name])
        _load_optimizer(state.optimizer, saved.tensors)
        if state.scaler is not None:
            state.scaler.load_state_dict(values.scaler or {})
        if state.ema:
            state.ema.optimization_step = values.average_updates
        state.step, state.skipped_steps = values.step, values.skipped_steps

    def saved_precision(self) -> str:
        """Return the precision of the newest readable checkpoint, else ""."""
        for folder in self._newest_first():
            try:
                return _read_values(folder).mixed_precision
            except UserError:  # damaged: reported when loading it
                continue
        return ""

    def delete_after(self, step: int) -> None:
        """Delete the checkpoints of later steps, damaged or to be made again."""
        for folder in self._newest_first():
            if _step_of(folder) > step:
                shutil.rmtree(folder)

    def _read_with_rows(self, folder: Path) -> Saved:
        saved = _read(folder)
        for name in self.row_files:
            refuse_other_rows(self.run_dir / name, RowsChecksum(*saved.values.rows.get(name, NO_ROWS)))
        return saved

    def _refuse_other_data(self, saved: Saved, allow_changed_data: bool) -> None:
        changed = _differing(saved.values.data, self.data)
        if not changed:
            return
        what = f"{saved.folder} was made with other {' and other '.join(changed)} than the present ones"
        if not allow_changed_data:
            raise CheckpointError(
                f"{what}; restore the former ones, or start again with --overwrite; finetune accepts the "
                "present ones with --allow-changed-data"
            )
        logger.warning("%s; resuming as requested", what)

    def _refuse_other_settings(self, saved: Saved, state: TrainingState) -> None:
        begun = {RENAMED.get(name, name): value for name, value in saved.values.settings.items()}
        # A setting missing in the checkpoint is newer than the checkpoint.
        differing = [name for name in _differing(begun, self.settings) if name in begun]
        if differing:
            shown = ", ".join(
                f"{name} was {begun[name]!r}, is {self.settings.get(name)!r}" for name in differing[:3]
            )
            raise CheckpointError(
                f"{saved.folder} was made with other settings ({shown}); use the recipe beside it, or start "
                "again with --overwrite"
            )
        precision = saved.values.mixed_precision
        if precision != state.mixed_precision:
            raise CheckpointError(
                f"{saved.folder} was made with mixed_precision {precision!r}, but this run uses "
                f"{state.mixed_precision!r}; use the former, or start again with --overwrite"
            )
        if (
            state.scaler is not None
            and (saved.values.scaler or {}).keys() != state.scaler.state_dict().keys()
        ):
            raise CheckpointError(
                f"{saved.folder} has no state of the gradient scaler, which {precision!r} needs; resume on "
                "the device it was made on, or start again with --overwrite"
            )

    def _newest_first(self) -> list[Path]:
        folders = [path for path in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8,18}", path.name)]
        return sorted(folders, key=_step_of, reverse=True)


def deciding_settings(settings: TrainSettings, seed: int) -> dict[str, Any]:
    """Return the seed and the settings deciding a training's result, by name."""
    return {"seed": seed, **settings.model_dump(mode="json", exclude=WITHOUT_EFFECT | COMPARED_OTHERWISE)}


def checksums_of_images(images: Mapping[str, TrainingImages]) -> dict[str, str]:
    """Return checksums of all `photographs` and of all `captions`, in order.

    Images not in memory have their fingerprint instead.
    """
    # Without names and paths: a copy elsewhere is equal, and other photographs may have the same names.
    held = {role: found for role, found in images.items() if isinstance(found, CaptionedImages)}
    files = {role: [image.file for image in found] for role, found in held.items()}
    return {
        "photographs": fingerprint({role: content_checksums(found) for role, found in files.items()}),
        "captions": fingerprint({role: [image.captions for image in found] for role, found in held.items()}),
        **{f"{role} images": images[role].fingerprint for role in images.keys() - held.keys()},
    }


def checksum_of_clip(clip: ClipParts) -> str:
    """Return a checksum of a CLIP's weights, tokenizer and image processor."""
    processor = clip.image_processor.to_dict()
    return fingerprint(
        module_sha256(clip.model), checksum_of_tokenizer(clip.tokenizer), str(sorted(processor.items()))
    )


def checksum_of_tokenizer(tokenizer: CLIPTokenizer) -> str:
    """Return a checksum of a tokenizer's vocabulary and rules (not the last call's padding)."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    return fingerprint({name: rule for name, rule in rules.items() if name not in ("padding", "truncation")})


def refuse_other_model(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse missing, unknown or differently shaped tensors with a CheckpointError."""
    shapes = [{name: tensor.shape for name, tensor in named.items()} for named in (found, expected)]
    names = sorted(shapes[0] | shapes[1], key=lambda name: (name.startswith("optimizer"), name))
    wrong = [name for name in names if shapes[0].get(name) != shapes[1].get(name)]
    if wrong:
        raise CheckpointError(f"{what} is of another model; differing: {', '.join(wrong[:5])}")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _read(folder: Path) -> Saved:
    listed = read_json(folder / MANIFEST_NAME, error=CheckpointError).get("files")
    if not isinstance(listed, dict) or not {TENSORS_NAME, VALUES_NAME} <= listed.keys():
        raise CheckpointError(f"{folder / MANIFEST_NAME} does not list {TENSORS_NAME} and {VALUES_NAME}")
    verify_folder(folder)
    values = _read_values(folder)
    try:
        return Saved(folder, values, load_file(folder / TENSORS_NAME))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / TENSORS_NAME} cannot be read: {error}") from error


def _read_values(folder: Path) -> SavedValues:
    path = folder / VALUES_NAME
    found = read_json(path, error=CheckpointError)
    if found.get("version", 1) != VERSION:
        raise CheckpointError(
            f"{path} was written by a version of clipgraft whose steps differ; resume with that version "
            "(environment.json in the run's folder names it)"
        )
    try:
        values = SavedValues.model_validate(found)
    except ValidationError as error:
        wrong = dict.fromkeys(str(part["loc"][0]) for part in error.errors(include_url=False))
        raise CheckpointError(f"{path} is damaged in {', '.join(wrong)}") from None
    if values.step != _step_of(folder):
        raise CheckpointError(f"{path} is damaged in step")
    return values


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _module_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Return trainable parameters and their averages by name, sharing the state's memory."""
    named = {name: p.detach() for name, p in state.module.named_parameters() if p.requires_grad}
    tensors = {f"weight.{name}": parameter for name, parameter in named.items()}
    if state.ema:
        tensors |= {f"average.{name}": t for name, t in zip(named, state.ema.shadow_params, strict=True)}
    return tensors


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {name: tensor.contiguous().cpu() for name, tensor in _module_tensors(state).items()}
    for index, entry in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor.cpu() for name, tensor in entry.items()}
    return tensors


def _optimizer_shapes(tensors: Mapping[str, Tensor], state: TrainingState) -> dict[str, Tensor]:
    """Return tensors shaped like the optimizer states in a checkpoint."""
    parameters = [parameter for group in state.optimizer.param_groups for parameter in group["params"]]
    expected: dict[str, Tensor] = {}
    for index, parameter in enumerate(parameters):
        names = [f"optimizer.{index}.{name}" for name in ADAMW_STATE]
        if any(name in tensors for name in names):  # none before a parameter's first gradient
            expected |= dict(zip(names, (torch.empty(()), parameter, parameter), strict=True))
    return expected


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            entries.setdefault(int(index), {})[key] = tensor
    # Groups follow from the settings, the learning rate from the step.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
