"""PNG, JPEG and WebP files, with texts beside their pixels."""

import io
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from PIL import ExifTags, Image, PngImagePlugin, TiffTags

from clipgraft.data.containers import MAX_TEXT_BYTES
from clipgraft.data.images import decode, opened_image
from clipgraft.errors import DataError, UserError
from clipgraft.files import write_bytes
from clipgraft.section import ImageFormat

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
ENCODERS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
}
"""Pillow's arguments. Photographs of 256 x 256: 122 kB as PNG, 98 as WebP without loss, 45 as JPEG of
39.7 dB; with halved colour the JPEG has 34 kB and 34.1 dB."""
PARAMETERS_KEY, RECORD_KEY = "parameters", "clipgraft"
RECORD_TAG = 0xFE00
"""Of a record in EXIF; TIFF keeps tags 65000 to 65535 for private use."""
COMFYUI_TAGS = (ExifTags.Base.Make, ExifTags.Base.Model)
"""Hold "workflow:{...}" and "prompt:{...}" in a WebP by ComfyUI."""
TIFF_SIZE = 8
"""Bytes of a TIFF's header."""
UTF_16, PLAIN = b"UNICODE\0", (b"ASCII\0\0\0", bytes(8))
"""Codes before an EXIF UserComment, which say how it is encoded."""
MAX_EXIF_TEXT = 44_000
"""Bytes of prompts in a JPEG's settings: its EXIF has 65,533, the rest of a record some 5,000."""


def check_format(image_format: str) -> None:
    """Raise a `UserError` unless it is one of `ImageFormat`."""
    if image_format not in SUFFIXES:
        allowed = ", ".join(get_args(ImageFormat))
        raise UserError(f"image format must be one of {allowed}; got {image_format!r}")


def encode_image(
    image: Image.Image,
    image_format: str,
    texts: Mapping[str, str] | None = None,
    *,
    quality: int | None = None,
) -> bytes:
    """Encode an image, with nothing but its pixels and texts.

    Args:
        image: RGB.
        image_format: One of `ImageFormat`.
        texts: In a PNG by keyword; in JPEG and WebP `PARAMETERS_KEY` is EXIF's UserComment in UTF-16, as
            A1111 writes it, and `RECORD_KEY` has `RECORD_TAG`.
        quality: Of JPEG, and of WebP with loss, 0 to 100; None = as in `ENCODERS`.

    Raises:
        UserError: If the texts do not fit into a JPEG.
    """
    options: dict[str, Any] = {}
    if image_format == "png":
        options["pnginfo"] = _png_texts(texts or {})
    else:
        options = {"exif": _exif(texts)} if texts else {}
        options |= {"quality": quality, "lossless": False} if quality is not None else {}
    file = io.BytesIO()
    try:
        image.save(file, format=image_format.upper(), **ENCODERS[image_format] | options)
    except ValueError as error:
        if "EXIF" not in str(error):
            raise
        raise UserError("the settings do not fit into a JPEG; name another --format") from error
    return file.getvalue()


def write_image(
    image: Image.Image, path: Path, image_format: str = "png", texts: Mapping[str, str] | None = None
) -> None:
    """Write an image, atomically; see `encode_image`."""
    write_bytes(path, encode_image(image, image_format, texts))


def read_image_texts(path: Path) -> tuple[dict[str, str], str]:
    """Read an image's texts and its format, one of `ImageFormat`.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it is no image, or of another format.
    """
    with opened_image(path) as image:
        return read_texts(image), str(image.format).lower()


def read_texts(image: Image.Image) -> dict[str, str]:
    """Read all texts of an image, decoding it whole.

    Args:
        image: From `data.images.read_header`, which has left out texts beyond its bounds.

    Returns:
        As in `encode_image`; a PNG's by keyword. Unreadable EXIF data gives none.

    Raises:
        DataError: If the image is damaged or of another format; the message starts with a verb.
    """
    if str(image.format).lower() not in SUFFIXES:
        raise DataError(f"is of the format {image.format}; settings are read from PNG, JPEG and WebP")
    decode(image)  # a PNG's texts behind the pixels are read with them
    texts = {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
    with suppress(Exception):  # Pillow raises errors of many kinds for damaged EXIF data
        exif = image.getexif()
        comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
        found = {PARAMETERS_KEY: _comment(comment), RECORD_KEY: _utf_8(exif.get(RECORD_TAG))}
        for tag in COMFYUI_TAGS:
            key, _, text = str(exif.get(tag, "")).partition(":")
            found[key.lower()] = text if len(text) <= MAX_TEXT_BYTES else ""
        texts = {key: text for key, text in found.items() if text} | texts
    return texts


def _png_texts(texts: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        # tEXt holds Latin-1 alone; iTXt holds every prompt.
        (info.add_text if text.isascii() else info.add_itxt)(key, text)
    return info


def _exif(texts: Mapping[str, str]) -> bytes:
    """EXIF data, big-endian as A1111's UTF-16.

    By hand, as Pillow gives bytes the type BYTE: A1111 reads a comment of the standard's UNDEFINED alone.
    """
    fields: dict[int, bytes | int] = {}
    if RECORD_KEY in texts:
        fields[RECORD_TAG] = texts[RECORD_KEY].encode()
    child = b""
    if PARAMETERS_KEY in texts:
        fields[ExifTags.IFD.Exif] = TIFF_SIZE + len(_directory(TIFF_SIZE, fields | {ExifTags.IFD.Exif: 0}))
        comment = UTF_16 + texts[PARAMETERS_KEY].encode("utf-16-be")
        child = _directory(int(fields[ExifTags.IFD.Exif]), {ExifTags.Base.UserComment: comment})
    header = b"MM\0*" + struct.pack(">I", TIFF_SIZE)
    return b"Exif\0\0" + header + _directory(TIFF_SIZE, fields) + child


def _directory(place: int, fields: Mapping[int, bytes | int]) -> bytes:
    """Return a TIFF directory for `place`, with its values behind it.

    Args:
        place: Byte in the TIFF.
        fields: By tag an offset (LONG), or more than 4 bytes (UNDEFINED), which do not fit into the entry.
    """
    entries, values = b"", b""
    behind = place + 2 + 12 * len(fields) + 4
    for tag, value in sorted(fields.items()):
        if isinstance(value, int):
            entries += struct.pack(">HHII", tag, TiffTags.LONG, 1, value)
            continue
        entries += struct.pack(">HHII", tag, TiffTags.UNDEFINED, len(value), behind + len(values))
        values += value + bytes(len(value) % 2)
    return struct.pack(">H", len(fields)) + entries + bytes(4) + values


def _comment(content: Any) -> str:
    """Decode a UserComment; its UTF-16 comes in both byte orders."""
    if not isinstance(content, bytes) or len(content) > MAX_TEXT_BYTES:
        return ""
    text = content[8:]
    if content.startswith(UTF_16):
        # ASCII characters, which all settings have, have a zero byte: before them if big-endian.
        is_big_endian = text[0::2].count(0) >= text[1::2].count(0)
        return text.decode("utf-16-be" if is_big_endian else "utf-16-le", "replace")
    return _utf_8(text) if content.startswith(PLAIN) else ""


def _utf_8(content: Any) -> str:
    is_read = isinstance(content, bytes) and len(content) <= MAX_TEXT_BYTES
    return content.decode("utf-8", "replace") if is_read else ""
