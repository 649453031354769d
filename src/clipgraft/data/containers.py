"""Image files by their bytes: format, parts, end, removable metadata."""

import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
JPEG_START, PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES, MAX_TEXTS_BYTES = 2**20, 64 * 2**20
"""Of a PNG's text once unpacked, and of all its texts; others are left out unread."""

# Markers with a length: without a byte 0xFF in a scan (0), TEM (1), restarts (0xD0 to 0xD7).
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])")
_JPEG_PIXELS = frozenset({0xE0, 0xEE, *range(0xC0, 0xE0)}) - {_JPEG_END}
"""Markers that decide pixels, JFIF's and Adobe's among them; the others are metadata."""
_PNG_PIXELS = frozenset({b"tRNS"})
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_USED = frozenset({b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}) | _PNG_TEXTS
"""Chunks besides the critical ones that say what is shown, or what clipgraft wrote."""
_NUM_FIRST_BYTES = 256
"""More than the list of brands of any camera's ISO media file."""
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
# First bytes of files often renamed to .jpg, for the message.
_MAGIC = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"<svg": "an SVG",
    b"<?xml": "an XML or SVG file",
    b"<!DOC": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)",
}


def content_name(content: bytes) -> str:
    """Return what a file is by its first bytes, with its article."""
    if content[4:8] == b"ftyp":
        if is_heif(content):
            return "a HEIC image"
        return f"an ISO media file ({content[8:12].decode('ascii', 'replace')})"  # a video, mostly
    known = (name for magic, name in _MAGIC.items() if content.startswith(magic))
    return next(known, "no image of a known format")


def is_named(content: bytes) -> bool:
    """Whether `content_name` knows a file that is no readable image."""
    return content.startswith(tuple(_MAGIC))


def is_heif(content: bytes) -> bool:
    """Whether a file is HEIC or HEIF, whichever codec, AVIF apart."""
    return content[4:8] == b"ftyp" and bool(_brands(content) & _HEIF_BRANDS) and not is_avif(content)


def is_avif(content: bytes) -> bool:
    """Whether a file is AVIF."""
    return content[4:8] == b"ftyp" and bool(_brands(content) & _AVIF_BRANDS)


def is_photograph(content: bytes) -> bool:
    """Whether a file's first bytes are those of a readable format."""
    is_webp = content.startswith(b"RIFF") and content[8:12] == b"WEBP"
    return content.startswith((JPEG_START, PNG_START)) or is_webp or is_avif(content) or is_heif(content)


def has_photograph(path: Path) -> bool:
    """Whether a file's first bytes are a photograph's, whatever its name."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        return is_photograph(file.read(_NUM_FIRST_BYTES))
    return False


def parts_of(content: bytes) -> Iterator[int]:
    """Yield each JPEG segment's marker, or 0 for each PNG chunk."""
    if content.startswith(JPEG_START):
        for marker, _, _ in _segments(content):
            yield marker
    elif content.startswith(PNG_START[:4]):
        for _ in _chunks(content):
            yield 0


def is_whole(content: bytes, image_format: str) -> bool:
    """Whether a file reaches its own end; something may follow.

    A phone writes a video, depth or further images behind a JPEG's end.
    """
    if image_format in ("JPEG", "MPO"):
        place = max((start + length for _, start, length in _segments(content)), default=2)
        return content.find(b"\xff\xd9", place) >= 0
    if image_format == "PNG":
        last = b""
        for kind, start, length in _chunks(content):
            if kind == b"IEND":
                return start + length + 12 <= len(content)
            last = kind
        return last == b"IEND"
    if image_format == "WEBP":
        return len(content) >= int.from_bytes(content[4:8], "little") + 8
    return _is_whole_iso_media(content)


def without_extras(content: bytes) -> bytes:
    """Return a PNG without profiles, large texts, damaged extras; else the file.

    Pillow gives up on these, and no pixel depends on them.
    """
    if not content.startswith(PNG_START):
        return content
    left, parts, is_changed = MAX_TEXTS_BYTES, [PNG_START], False
    for kind, start, length in _chunks(content):
        chunk = content[start : start + length + 12]
        is_kept = not kind[:1].islower() or kind in _PNG_USED
        if is_kept and kind in _PNG_USED - _PNG_PIXELS:
            is_kept = zlib.crc32(chunk[4:-4]).to_bytes(4) == chunk[-4:]
        if is_kept and kind in _PNG_TEXTS:
            size = _text_bytes(kind, chunk[8:-4]) if left > 0 else MAX_TEXT_BYTES + 1
            left -= min(size, MAX_TEXT_BYTES + 1)
            is_kept = size <= MAX_TEXT_BYTES and left >= 0
        if is_kept:
            parts.append(chunk)
        is_changed |= not is_kept
        if kind == b"IEND":
            break
    return b"".join(parts) if is_changed else content


def pixels_alone(content: bytes) -> bytes:
    """Return a JPEG or PNG without its metadata; else the file."""
    if content.startswith(PNG_START):
        chunks = list(_chunks(content))
        kept = [c for c in chunks if not c[0][:1].islower() or c[0] in _PNG_PIXELS]
        return PNG_START + b"".join(content[start : start + length + 12] for _, start, length in kept)
    if not content.startswith(JPEG_START):
        return content
    parts = [JPEG_START]
    for marker, start, length in _segments(content):
        if marker == JPEG_SCAN:
            return b"".join([*parts, content[start:]])
        if marker in _JPEG_PIXELS:
            parts.append(content[start : start + length])
    return content


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and length of each segment of a JPEG."""
    place = 2
    while (marker := _JPEG_MARKER.search(content, place)) and marker[1][0] != _JPEG_END:
        place = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2])
        yield marker[1][0], marker.start(), place - marker.start()


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and length of data of a PNG's chunks."""
    place = len(PNG_START)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4])
        yield content[place + 4 : place + 8], place, length
        place += 12 + length


def _text_bytes(kind: bytes, data: bytes) -> int:
    """Return the size of a text once unpacked, within bounds."""
    keyword, _, text = data.partition(b"\0")
    if kind == b"iTXt":
        is_packed = text[:1] == b"\1"
        text = text[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        is_packed, text = kind == b"zTXt", text[1:]
    if not is_packed:
        return len(data)
    try:
        return len(keyword) + len(zlib.decompressobj().decompress(text, MAX_TEXT_BYTES + 1))
    except zlib.error:
        return MAX_TEXT_BYTES + 1


def _brands(content: bytes) -> set[bytes]:
    """Return the brands that an ISO media file names."""
    length = min(int.from_bytes(content[:4]), _NUM_FIRST_BYTES)
    return {content[place : place + 4] for place in (8, *range(16, length, 4))}


def _is_whole_iso_media(content: bytes) -> bool:
    place, is_data_there = 0, False
    while place + 8 <= len(content):
        length, kind = int.from_bytes(content[place : place + 4]), content[place + 4 : place + 8]
        if length == 1:
            length = int.from_bytes(content[place + 8 : place + 16])
        if length < 8 or place + length > len(content):
            return (length == 0) if kind == b"mdat" else is_data_there
        place, is_data_there = place + length, is_data_there or kind == b"mdat"
    return is_data_there
