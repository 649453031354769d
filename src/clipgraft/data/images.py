"""Photographs on disk: find them in a folder, and open one as a checked RGB image.

Only JPEG, PNG and WebP are decoded, told by content and not by name, and the size is checked in the header
before any pixel is decoded: caption folders come from strangers.
"""

import os
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from clipgraft.data.records import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from clipgraft.errors import DataError, MissingFileError

MAX_PIXELS = 100_000_000
"""More is refused from the header: 300 MB as RGB, and no camera photograph of a caption set comes near."""
MIN_SIDE = 16
"""Least width and height in pixels; below it there is nothing that a caption could speak of (a guess)."""

_FORMATS = ("JPEG", "PNG", "WEBP")
# First bytes of what people rename to .jpg, so that the message can name it.
_MAGIC = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"<svg": "an SVG",
    b"<?xml": "an XML or SVG file",
    b"<!DOC": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
}
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


def list_images(folder: Path) -> dict[str, Path]:
    """Return every file below a folder whose name says that it is an image.

    Linked folders are not followed; a linked file may point anywhere inside the folder.

    Args:
        folder: The image folder.

    Returns:
        Name relative to the folder with forward slashes -> path, sorted by name. Hidden files and images of
        formats that cannot be used are among them, since they are to be counted out by name.

    Raises:
        DataError: If a linked file points out of the folder.
    """
    inside = folder.resolve()
    images: dict[str, Path] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() not in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES:
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise DataError(f"{path}: links to a file outside of {folder}; copy the file into the folder")
            images[path.relative_to(folder).as_posix()] = path
    return dict(sorted(images.items()))


def open_image(path: Path) -> Image.Image:
    """Open a photograph as it is meant to be seen.

    EXIF rotation is applied; grayscale, palette and CMYK become RGB; transparency is laid on white; of an
    animation the first frame is taken.

    Args:
        path: A JPEG, PNG or WebP file.

    Returns:
        RGB image, 8 bits per channel, fully decoded, file closed.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it is empty, of another format, damaged, over `MAX_PIXELS` or under `MIN_SIDE`.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such image")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on; the limit here is MAX_PIXELS, and it is an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_FORMATS)
        with image:
            _check_size(path, image)
            return _to_rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{path}: is {_content_name(path)}; expected a JPEG, PNG or WebP image") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: has more than {MAX_PIXELS:,} pixels; make it smaller") from None
    except _DECODE_ERRORS as error:
        raise DataError(f"{path}: the image is damaged ({error}); replace it or take it out") from error


def _check_size(path: Path, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} is more than {MAX_PIXELS:,} pixels; make it smaller")
    if min(width, height) < MIN_SIDE:
        raise DataError(f"{path}: {width}x{height} is too small; each side needs at least {MIN_SIDE} pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grayscale: convert("RGB") would clip it to white
        image = image.point(lambda value: value / 256).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _content_name(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(32)
    if start[4:8] == b"ftyp":
        return f"an ISO media file ({start[8:12].decode('ascii', 'replace')})"  # HEIC, AVIF, MP4
    known = (name for magic, name in _MAGIC.items() if start.startswith(magic))
    return next(known, "no image of a known format")
