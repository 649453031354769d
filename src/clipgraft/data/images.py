"""Decoding of untrusted images to RGB in bounded memory.

Bounds are checked on the header. Only JPEG, PNG, WebP, AVIF and HEIC are decoded, recognised by content, both
in data folders and from the studio's clients.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError, features

from clipgraft.data.containers import (
    JPEG_SCAN,
    content_name,
    is_heif,
    is_photograph,
    parts_of,
    pixels_alone,
    without_extras,
)
from clipgraft.data.image_file import ImageFile, read_image_bytes
from clipgraft.errors import DataError

MAX_PIXELS = 100_000_000
"""Pixels of one image; for their memory see docs/data.md."""
MAX_ASPECT = 100
"""Long side over short one; CLIP's processor resizes the short one to 224 pixels."""
MAX_SCANS = 100
"""Scans of a JPEG, each over all of its pixels. Encoders write about ten (the bound is a guess)."""
MAX_PARTS, PART_BYTES = 1000, 1024
"""Markers of a JPEG or chunks of a PNG: 1,000, plus one per 1,024 bytes of the file (a guess)."""
MAX_FILE_BYTES = 256 * 2**20
"""Size of a file, read whole; a JPEG of 100 million pixels has about 60 MB."""
PARALLEL_PIXELS = 25_000_000
"""Pixels up to which images are decoded several at a time; larger ones take up to 1.5 GB each."""
MIN_SIDE = 16
"""Least width and height in pixels; smaller images show nothing to caption (a guess)."""

EXPECTED = "expected a JPEG, PNG, WebP, AVIF or HEIC image"
MAX_REASON_CHARACTERS = 200
"""Characters of a decoder's own message in an error."""
_BAND_ROWS = 256
"""Rows composited on white at once, to hold an image in memory twice instead of four times."""
_SAMPLE_SCALES = {"1": 255, "L;2": 85, "L;4": 17}
"""Factors by which Pillow scales a PNG's samples of 1, 2 and 4 bits, but not its transparent sample."""
_FILTERS = threading.Lock()
_LARGE_IMAGE = threading.Lock()


def open_image(file: ImageFile) -> Image.Image:
    """Open and decode an image file to 8-bit RGB.

    Readable EXIF rotation is applied, grayscale, palette and CMYK are converted, transparency becomes white;
    of an animation the first frame is decoded.

    Raises:
        MissingFileError: If there is no such file.
        DataError: If it is empty, of another format, damaged, or out of the bounds of this module.
    """
    with opened_image(file) as image:
        return decode(image)


class DamagedImageError(DataError):
    """An image file cannot be used: a function of its bytes alone."""


@contextmanager
def opened_image(file: ImageFile) -> Iterator[Image.Image]:
    """Open an image and check its header; DataErrors name the file."""
    with opened_content(read_image_bytes(file, MAX_FILE_BYTES), file) as image:
        yield image


@contextmanager
def opened_content(content: bytes, file: ImageFile) -> Iterator[Image.Image]:
    """Open an image from its file's bytes; see `opened_image`.

    Raises:
        DamagedImageError: If it cannot be used.
        DataError: If there is too little memory to say so.
    """
    try:
        yield read_header(content, MAX_PIXELS, min_side=MIN_SIDE)
    except DataError as error:
        kind = DataError if isinstance(error.__cause__, MemoryError) else DamagedImageError
        raise kind(f"{file}: {error}") from error.__cause__


def read_header(content: bytes, max_pixels: int, *, min_side: int = 1) -> Image.Image:
    """Check an image's header and return the image, not decoded yet.

    Raises:
        DataError: If it is empty, of another format, damaged or out of bounds; messages start with a verb.
    """
    if not content:
        raise DataError("is empty (0 bytes)")
    _refuse_costly(content)
    try:
        image = _open(without_extras(content))
    except Image.DecompressionBombError:
        raise DataError(f"has more than {max_pixels:,} pixels; make it smaller") from None
    except Exception as error:  # the file is damaged, or its metadata alone
        image = _open_without_metadata(content, error)
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"has {width}x{height} pixels; at most {max_pixels:,} are taken; make it smaller")
    if min(width, height) < min_side:
        raise DataError(f"has {width}x{height} pixels; each side needs at least {min_side}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"has {width}x{height} pixels; one side may be {MAX_ASPECT} times the other at most")
    return image


def decode(image: Image.Image) -> Image.Image:
    """Decode an image from `read_header` to upright 8-bit RGB (DataError if damaged)."""
    try:
        _scale_transparent_sample(image)
        image.load()
        with suppress(Exception):  # damaged EXIF data: no rotation, as in browsers
            with _quiet():
                image.getexif().get(ExifTags.Base.Orientation)  # is kept
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except Exception as error:  # any error of Pillow means a damaged file
        raise _damaged(error) from error


def decode_beside_others(image: Image.Image) -> Image.Image:
    """As `decode`, in several threads: large images one at a time."""
    is_large = image.width * image.height > PARALLEL_PIXELS
    with _LARGE_IMAGE if is_large else nullcontext():
        return decode(image)


def _open(content: bytes) -> Image.Image:
    with _quiet():
        return Image.open(io.BytesIO(content), formats=readable_formats())


def _open_without_metadata(content: bytes, error: Exception) -> Image.Image:
    """Open an image without its metadata; else name its content."""
    plain = pixels_alone(content)
    with suppress(Exception):
        if plain != content:
            return _open(plain)
    if not isinstance(error, UnidentifiedImageError):
        raise _damaged(error) from error
    if is_heif(content) and "HEIF" not in readable_formats():
        raise DataError("is a HEIC image; pip install 'clipgraft[heif]' reads it, or save it as JPEG")
    if is_photograph(content):
        raise DataError("is damaged (its beginning cannot be read); replace it or take it out")
    raise DataError(f"is {content_name(content)}; {EXPECTED}")


@cache
def readable_formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that are read."""
    formats = ["JPEG", "PNG", "WEBP", *(["AVIF"] if features.check("avif") else [])]
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return tuple(formats)
    register_heif_opener(thumbnails=False)
    return (*formats, "HEIF")


def _refuse_costly(content: bytes) -> None:
    """Refuse small files with many scans (each over all pixels) or parts."""
    num_scans = 0
    for num_parts, marker in enumerate(parts_of(content)):
        num_scans += marker == JPEG_SCAN
        if num_scans > MAX_SCANS:
            raise DataError(f"has more than {MAX_SCANS} scans; save it anew")
        if num_parts >= MAX_PARTS + len(content) // PART_BYTES:
            raise DataError(f"is cut into more than {num_parts:,} parts; save it anew")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings; the bounds of this module decide."""
    with _FILTERS, warnings.catch_warnings():  # filters are global: one thread at a time
        warnings.simplefilter("ignore")
        yield


def _damaged(error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:MAX_REASON_CHARACTERS] or "its pixels cannot be decoded"
    return DataError(f"is damaged ({reason}); replace it or take it out")


def _scale_transparent_sample(image: Image.Image) -> None:
    """Scale a PNG's transparent sample to 8 bits, like its pixels."""
    transparent = image.info.get("transparency")
    if not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile:
        return
    raw_mode = str(image.tile[0].args)
    if isinstance(transparent, tuple):
        depth_shift = 8 if raw_mode == "RGB;16B" else 0
        image.info["transparency"] = tuple(sample >> depth_shift & 255 for sample in transparent)
    elif isinstance(transparent, int) and image.mode != "I;16":
        scale = _SAMPLE_SCALES.get(raw_mode, 1)
        image.info["transparency"] = transparent % (255 // scale + 1) * scale


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        image = _from_16_bits(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        band = image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height))).convert("RGBA")
        rgb.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return rgb


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Convert 16-bit grayscale to 8 bits by rounding; `convert` would clip."""
    values = np.asarray(image)
    levels = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 * 257
    if (transparent := image.info.get("transparency")) is not None:
        levels[values == transparent] = 255
    return Image.fromarray(levels)
