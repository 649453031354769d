"""ControlNets of a request: checked, recorded as sums, given again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clipgraft.errors import DataError
from clipgraft.files import fingerprint
from clipgraft.generation.request_files import file_sum, image_size, refuse_another
from clipgraft.models.controlnet import controlnet_files
from clipgraft.sampling_params import Control, SamplingParams, parse_guide

ACTS = {"scale", "start", "end"}
"""What a record says of a ControlNet besides its files."""


class ControlRecord(BaseModel):
    """A ControlNet of an image."""

    model_config = ConfigDict(strict=True, frozen=True)

    model_sha256: str
    """Of the sums of its configuration and weights."""
    image_sha256: str
    scale: float
    start: float
    end: float

    @classmethod
    def of(cls, control: Control) -> "ControlRecord":
        """Compute the sums of a request's ControlNet."""
        return cls(
            model_sha256=fingerprint(*map(file_sum, controlnet_files(control.model))),
            image_sha256=file_sum(Path(control.image)),
            **control.model_dump(include=ACTS),
        )


_RECORDED = TypeAdapter(list[ControlRecord])


def check_guides(params: SamplingParams) -> None:
    """Refuse ControlNets that are not there, and images by their headers."""
    for control in params.controls:
        image_size("a ControlNet's image", Path(control.image))
        controlnet_files(control.model)


def guide_record(params: SamplingParams) -> dict[str, Any]:
    """Return sums and scales of a request's ControlNets."""
    controls = [ControlRecord.of(control).model_dump() for control in params.controls]
    return {"controls": controls} if controls else {}


def guides_of(record: Mapping[str, Any], given: SamplingParams) -> dict[str, Any]:
    """Return the ControlNets for a record, each with the recorded sums.

    Args:
        record: Of the image to reproduce.
        given: Names models and images, in the record's order.

    Raises:
        DataError: If the record is damaged, or a file is missing, one too many, or another one.
    """
    try:
        recorded = _RECORDED.validate_python(record.get("controls", []))
    except ValidationError:
        raise DataError("the image's record is damaged: its ControlNets cannot be read") from None
    if given.controls and not recorded:
        raise DataError("that image was made without a ControlNet; leave --control out")
    if len(given.controls) != len(recorded):
        what = "a ControlNet" if len(recorded) == 1 else f"{len(recorded)} ControlNets"
        raise DataError(
            f"that image was made with {what}; name each with --control MODEL=IMAGE, in the same order"
        )
    check_guides(given)
    return {"controls": [_control(*pair) for pair in zip(recorded, given.controls, strict=True)]}


def _control(there: ControlRecord, here: Control) -> Control:
    """Return a given ControlNet that acts as the recorded one."""
    found = ControlRecord.of(here)
    refuse_another("--control", here.model, found.model_sha256, there.model_sha256)
    refuse_another("--control", here.image, found.image_sha256, there.image_sha256)
    return here.updated(there.model_dump(include=ACTS))


def guides_beside(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row's ControlNets, with paths relative to its file's folder."""
    given = values.get("controls")
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list):
        return {}
    parsed = [parse_guide(each) if isinstance(each, str) else each for each in given]
    return {"controls": [_beside(each, folder) for each in parsed]}


def _beside(control: Any, folder: Path) -> Any:
    """Return a ControlNet with its paths; other values are refused later."""
    if not isinstance(control, dict):
        return control
    placed = {
        name: str(folder / path)
        for name in ("model", "image")
        if isinstance(path := control.get(name), str) and path
    }
    if "model" in placed and not Path(placed["model"]).exists():
        del placed["model"]  # a hub id
    return control | placed
