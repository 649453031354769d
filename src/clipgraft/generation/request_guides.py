"""Check a request's ControlNets and IP-Adapters, record and match their checksums."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from clipgraft.errors import DataError, number_of
from clipgraft.files import beside, fingerprint
from clipgraft.generation.request_files import file_checksum, image_size, refuse_another
from clipgraft.models.controlnet import controlnet_files
from clipgraft.models.ip_adapter import ip_adapter_files
from clipgraft.sampling_params import Guide, SamplingParams, parse_guide


class GuideRecord(BaseModel):
    """An IP-Adapter of an image."""

    model_config = ConfigDict(strict=True, frozen=True)

    model_sha256: str
    """Of the checksums of its files: configurations and weights."""
    image_sha256: str
    scale: float


class ControlRecord(GuideRecord):
    """A ControlNet of an image."""

    start: float
    end: float


class _Kind(NamedTuple):
    """How a kind of guide is named, found and recorded."""

    title: str
    flag: str
    files: Callable[[str], list[Path]]
    record: type[GuideRecord]

    def record_of(self, guide: Guide) -> GuideRecord:
        """Compute the checksums of a request's guide."""
        model = fingerprint(*map(file_checksum, self.files(guide.model)))
        acts = guide.model_dump(include=set(self.record.model_fields))
        return self.record(model_sha256=model, image_sha256=file_checksum(Path(guide.image)), **acts)


GUIDES = {
    "controls": _Kind("ControlNet", "--control", controlnet_files, ControlRecord),
    "ip_adapters": _Kind("IP-Adapter", "--ip-adapter", ip_adapter_files, GuideRecord),
}
"""By the name of the parameter."""


def check_guides(params: SamplingParams) -> None:
    """Refuse models that are not there, and images by their headers."""
    for name, kind in GUIDES.items():
        for guide in getattr(params, name):
            image_size(f"image for the {kind.title}", Path(guide.image))
            kind.files(guide.model)


def guide_record(params: SamplingParams) -> dict[str, Any]:
    """Return checksums and scales of a request's guides."""
    return {
        name: [kind.record_of(guide).model_dump() for guide in getattr(params, name)]
        for name, kind in GUIDES.items()
        if getattr(params, name)
    }


def guides_of(record: Mapping[str, Any], given: SamplingParams) -> dict[str, Any]:
    """Return the guides for a record, each with the recorded checksums.

    Args:
        record: Of the image to reproduce.
        given: Names models and images, in the record's order.

    Raises:
        DataError: If the record is damaged, or a file is missing, one too many, or another one.
    """
    return {
        name: _guides_of(kind, record.get(name, []), getattr(given, name)) for name, kind in GUIDES.items()
    }


def _guides_of(kind: _Kind, record: Any, given: tuple[Guide, ...]) -> list[Guide]:
    try:
        recorded = TypeAdapter(list[kind.record]).validate_python(record)  # type: ignore[name-defined]
    except ValidationError:
        raise DataError(f"the image's record is damaged: its {kind.title}s cannot be read") from None
    if given and not recorded:
        raise DataError(f"that image was made without any {kind.title}; leave {kind.flag} out")
    if len(given) != len(recorded):
        raise DataError(
            f"that image was made with {number_of(len(recorded), kind.title)}; name each with "
            f"{kind.flag} MODEL=IMAGE, in the same order"
        )
    guides = []
    for there, here in zip(recorded, given, strict=True):
        image_size(f"image for the {kind.title}", Path(here.image))
        found = kind.record_of(here)
        refuse_another(kind.flag, here.model, found.model_sha256, there.model_sha256)
        refuse_another(kind.flag, here.image, found.image_sha256, there.image_sha256)
        guides.append(_acting_as(here, there, kind.flag))
    return guides


def _acting_as(here: Guide, there: GuideRecord, flag: str) -> Guide:
    """Return a given guide with the recorded scale and steps."""
    acts = there.model_dump(exclude={"model_sha256", "image_sha256"})
    for name, recorded in acts.items():
        given, default = getattr(here, name), type(here).model_fields[name].default
        if given not in (default, recorded):
            raise DataError(
                f"{flag} {here.model}: {name} comes from the image, {recorded}; leave {given} out"
            )
    return here.updated(acts)


def guides_beside(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a row's guides, with paths relative to its file's folder."""
    placed = {}
    for name in GUIDES.keys() & values.keys():
        given = [values[name]] if isinstance(values[name], str) else values[name]
        if isinstance(given, list):
            parsed = [parse_guide(each) if isinstance(each, str) else each for each in given]
            placed[name] = [_beside(each, folder) for each in parsed]
    return placed


def _beside(guide: Any, folder: Path) -> Any:
    """Return a guide with its paths; other values are refused later."""
    if not isinstance(guide, dict):
        return guide
    names = [name for name in ("model", "image") if isinstance(guide.get(name), str) and guide[name]]
    placed = {name: beside(folder, guide[name]) for name in names}
    if "model" in placed and not Path(placed["model"]).exists():
        del placed["model"]  # a hub id
    return guide | placed
