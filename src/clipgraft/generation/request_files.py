"""Check a request's files before loading, record and match their checksums."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from PIL import ExifTags

from clipgraft.data.images import opened_image
from clipgraft.errors import DataError, UserError
from clipgraft.files import file_sha256
from clipgraft.sampling_params import SamplingParams

IMAGES = {
    "init_image": ("--init-image", "was started from another one", "was started from noise alone"),
    "mask_image": ("--mask", "was painted within a mask", "was made without a mask"),
}
"""Flag of each image, and what is said of a record with and without it."""
ADAPTERS = ("loras", "embeddings")
"""Models that a request adds, recorded by name and checksum."""
ROTATED = range(5, 9)
"""EXIF orientations that exchange height and width."""


def image_files(params: SamplingParams) -> list[Path]:
    """List the images that parameters name."""
    named = [getattr(params, name) for name in IMAGES] + [
        guide.image for guide in (*params.controls, *params.ip_adapters)
    ]
    return [Path(path) for path in named if path]


def check_files(params: SamplingParams) -> None:
    """Refuse unusable images by their headers, as `open_image` would.

    Raises:
        UserError: If an image cannot be read, or a mask has no image or one of another size.
    """
    if params.mask_image and not params.init_image:
        raise UserError(
            "mask_image (--mask) needs the image that it masks; name it with init_image (--init-image)"
        )
    sizes = {name: image_size(name, Path(path)) for name in IMAGES if (path := getattr(params, name))}
    if len(set(sizes.values())) > 1:
        named = " and ".join(f"{name} {width}x{height}" for name, (width, height) in sizes.items())
        raise UserError(f"init_image and mask_image must be of one size in pixels; got {named}")


def image_size(name: str, path: Path) -> tuple[int, int]:
    """Return an image's upright width and height; `name` is for errors."""
    try:
        with opened_image(path) as image:
            is_rotated = image.getexif().get(ExifTags.Base.Orientation) in ROTATED
            return (image.height, image.width) if is_rotated else image.size
    except UserError as error:
        raise UserError(f"{name} {error}") from error


def file_record(params: SamplingParams) -> dict[str, Any]:
    """Return the checksums of a request's files, and what belongs to them."""
    record: dict[str, Any] = {
        f"{name}_sha256": file_checksum(Path(path)) for name in IMAGES if (path := getattr(params, name))
    }
    return record | ({"strength": params.strength} if params.init_image else {})


def without_files(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record without its checksums of files."""
    return {
        name: value
        for name, value in record.items()
        if name.removesuffix("_sha256") not in IMAGES and name not in ADAPTERS
    }


def files_of(record: Mapping[str, Any], given: SamplingParams) -> dict[str, Any]:
    """Return the files for a record, each with the recorded checksum.

    Args:
        record: Of the image to reproduce.
        given: Names the files.

    Raises:
        UserError: If a file is missing, one too many, or another one.
    """
    found = {name: getattr(given, name) for name in IMAGES}
    for name, (flag, with_it, without_it) in IMAGES.items():
        expected, path = record.get(f"{name}_sha256"), found[name]
        if expected and not path:
            raise DataError(f"that image {with_it}; name it with {flag}")
        if path and not expected:
            raise DataError(f"that image {without_it}; leave {flag} out")
        if path:
            image_size(name, Path(path))
            refuse_another(flag, path, file_checksum(Path(path)), str(expected))
    return found


def refuse_another(flag: str, path: str, found: str, expected: str) -> None:
    """Raise DataError if a file's checksum is not the recorded one."""
    if found != expected:
        raise DataError(
            f"{flag} {path} is not the file that the image was made with (its sha256 is {found[:10]}, "
            f"not {expected[:10]})"
        )


def file_checksum(path: Path) -> str:
    """Return a file's sha256, computed once for each of its states."""
    return _checksum_of_state(path, *file_state(path))


def file_state(path: Path) -> tuple[int, int]:
    """Return size and time of change, which tell a changed file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@cache
def _checksum_of_state(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_sha256(path)
