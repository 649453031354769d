"""Pictures from strangers: looked at before they are decoded, and never kept as they came.

Only PNG, JPEG and WebP, and only files that end as these do: what is cut off, or has another file behind it,
is refused in most cases, though not where that file ends in the same bytes. The size is read from the header
and bounded before a pixel is decoded. What is given back holds pixels alone: no EXIF, and no other file.
"""

import base64
import binascii
import io
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from clipgraft.data.images import decode, read_header
from clipgraft.errors import DataError


def decode_upload(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture: RGB, upright, without anything but its pixels.

    Args:
        content: The file.
        max_pixels: Width times height, at most.

    Raises:
        DataError: If it is no whole PNG, JPEG or WebP, is too large, or something follows it.
    """
    with _opened(content, max_pixels) as image:
        upright = decode(image)
    # A copy of the pixels: `upright` keeps what the file said of itself in `info`.
    return Image.frombytes("RGB", upright.size, upright.tobytes())


def read_png_texts(content: bytes, max_pixels: int) -> dict[str, str]:
    """Read the texts that a PNG holds.

    Raises:
        DataError: As `decode_upload`; or if it is no PNG.
    """
    with _opened(content, max_pixels) as image:
        if image.format != "PNG":
            raise DataError(f"is a {image.format}; settings are kept in PNG files")
        decode(image)  # texts behind the pixels are read with them
        return {str(key): str(value) for key, value in image.text.items()}  # type: ignore[attr-defined]


def count_pixels(content: bytes, max_pixels: int) -> int:
    """Width times height of a picture, by its header alone.

    Raises:
        DataError: As `decode_upload`, but for damage behind the header.
    """
    with _opened(content, max_pixels) as image:
        return image.width * image.height


def read_base64(text: str) -> bytes:
    """Decode a file in base64, with or without `data:image/...;base64,` before it.

    Raises:
        DataError: If it is a web address or no base64.
    """
    head, comma, rest = text.partition(",")
    if comma and head.startswith("data:"):
        text = rest
    elif "://" in text[:64]:
        raise DataError("pictures are taken as base64 in the request; nothing is fetched from an address")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise DataError("the picture is not base64") from None


def encode(image: Image.Image, image_format: str, **options: int) -> bytes:
    """Write a picture into memory, with nothing but its pixels."""
    file = io.BytesIO()
    image.save(file, format=image_format, **options)
    return file.getvalue()


@contextmanager
def _opened(content: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Give an image with header and end checked; errors in the block are said of the picture."""
    try:
        image = read_header(content, max_pixels)
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise DataError("is animated; upload a still one")
        if not _ends_with_its_end(content, str(image.format)):
            raise DataError("is cut off, or something follows its end; save it anew and upload that")
        yield image
    except DataError as error:
        raise DataError(f"the picture {error}") from error.__cause__


def _ends_with_its_end(content: bytes, image_format: str) -> bool:
    if image_format == "PNG":
        return content.endswith(b"\0\0\0\0IEND\xaeB`\x82")
    if image_format in ("JPEG", "MPO"):  # an MPO is JPEGs one behind the other
        return content.endswith(b"\xff\xd9")
    size = int.from_bytes(content[4:8], "little") + 8
    return len(content) in (size, size + size % 2)
