"""Pictures from strangers: looked at before they are decoded, and never kept as they came.

Only PNG, JPEG and WebP, and only files that end as these do: what is cut off, or has another file behind it,
is refused in most cases, though not where that file ends in the same bytes. The size is read from the header
and bounded before a pixel is decoded. What is given back holds pixels alone: no EXIF, and no other file.
"""

import base64
import binascii
import io
import struct
import warnings
import zlib

from PIL import Image, ImageOps

from clipgraft.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_ASPECT = 100
"""Long side over short one: CLIP's processor makes the short one 224 pixels, the other in proportion."""
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    MemoryError,
)


def decode_upload(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a picture: RGB, upright, without anything but its pixels.

    Args:
        content: The file.
        max_pixels: Width times height, at most.

    Raises:
        DataError: If it is no whole PNG, JPEG or WebP, is too large, or something follows it.
    """
    with _opened(content, max_pixels) as image:
        try:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        except _DECODE_ERRORS as error:
            raise DataError(f"the picture is damaged ({error}); upload it whole") from None
    # A copy of the pixels: convert() keeps what the file said of itself in `info`.
    return Image.frombytes("RGB", upright.size, upright.tobytes())


def read_png_texts(content: bytes, max_pixels: int) -> dict[str, str]:
    """Read the texts that a PNG holds.

    Raises:
        DataError: As `decode_upload`; or if it is no PNG.
    """
    with _opened(content, max_pixels) as image:
        if image.format != "PNG":
            raise DataError(f"settings are kept in PNG files; this is a {image.format}")
        try:
            image.load()  # texts behind the pixels are read with them
        except _DECODE_ERRORS as error:
            raise DataError(f"the picture is damaged ({error}); upload it whole") from None
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


def _opened(content: bytes, max_pixels: int) -> Image.Image:
    if not content:
        raise DataError("the picture is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(f"the picture has more than {max_pixels:,} pixels; make it smaller") from None
    except _DECODE_ERRORS:
        raise DataError("the file is no PNG, JPEG or WebP picture, or its beginning is damaged") from None
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"the picture has {width} x {height} pixels; at most {max_pixels:,} are taken")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(
            f"the picture has {width} x {height} pixels; one side may be {MAX_ASPECT} times the other at most"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise DataError("the picture is animated; upload a still one")
    if not _ends_with_its_end(content, str(image.format)):
        raise DataError("the picture is cut off, or something follows its end; save it anew and upload that")
    return image


def _ends_with_its_end(content: bytes, image_format: str) -> bool:
    if image_format == "PNG":
        return content.endswith(b"\0\0\0\0IEND\xaeB`\x82")
    if image_format == "JPEG":
        return content.endswith(b"\xff\xd9")
    size = int.from_bytes(content[4:8], "little") + 8
    return len(content) in (size, size + size % 2)
