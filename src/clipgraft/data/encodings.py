"""Text of files in any encoding that can be detected."""

import re

from charset_normalizer import from_bytes

from clipgraft.errors import DataError
from clipgraft.files import BYTE_ORDER_MARKS

MOSTLY_OTHER = 0.3
"""Share of letters beyond ASCII above which a language is not Western (a guess; French has some 5 %)."""
MOSTLY_ZERO = 0.3
"""Share of zeros among the upper bytes of UTF-16 without a mark (a guess; Latin letters have only zeros)."""
SAMPLE_BYTES = 1 << 16
"""From which an encoding is detected."""
_ENCODINGS = {
    "cp1250": "Windows-1250",
    "cp1251": "Windows-1251",
    "cp1253": "Windows-1253",
    "cp1254": "Windows-1254",
    "cp1255": "Windows-1255",
    "cp1256": "Windows-1256",
    "koi8_r": "KOI8-R",
    "cp932": "Shift JIS",
    "euc_jp": "EUC-JP",
    "gb18030": "GB 18030",
    "big5": "Big5",
    "cp949": "Korean (CP949)",
}
"""Encodings in which captions are still found, and their names in messages."""
_WHOLE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")


def decode_text(raw: bytes, name: str) -> tuple[str, str]:
    """Return a file's text, and a note on its encoding or "".

    UTF-8 with a few wrong bytes stays UTF-8: each of them becomes U+FFFD, and no other character changes.

    Raises:
        DataError: If the file is in no encoding that can be detected; `name` stands in the message.
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            raw = raw[len(mark) :]
            return _in_utf8(raw, name) if encoding == "utf-8" else _in_utf16(raw, encoding, name)
    if b"\0" in raw:
        odd, even = raw[1::2].count(0), raw[::2].count(0)
        encoding = "utf-16-le" if odd > even else "utf-16-be"
        if max(odd, even) < MOSTLY_ZERO * len(raw) / 2:
            encoding = "ascii"  # and so refused
        return _in_utf16(raw, encoding, name)
    return _in_utf8(raw, name)


def _in_utf8(raw: bytes, name: str) -> tuple[str, str]:
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        pass
    rest, num_whole = _WHOLE.subn(b"", raw)
    num_wrong = len(_BEYOND_ASCII.findall(rest))
    if num_whole > num_wrong:
        text = raw.decode("utf-8", "replace")
        number = text[: text.index("\ufffd")].count("\n") + 1
        return text, f"bytes that are not UTF-8, from line {number}: "
    encoding, title = _single_bytes(raw)
    try:
        return raw.decode(encoding), f"not UTF-8, so read as {title}: "
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is neither UTF-8 nor {title} ({error}); save it as UTF-8") from None


def _single_bytes(raw: bytes) -> tuple[str, str]:
    """Return the encoding of non-UTF-8 text, and its title."""
    lines = [line for line in raw.splitlines() if _BEYOND_ASCII.search(line)]
    sample = b"\n".join(lines)[:SAMPLE_BYTES]
    num_beyond = len(_BEYOND_ASCII.findall(sample))
    num_letters = len(re.findall(rb"[A-Za-z]", sample))
    if num_beyond > MOSTLY_OTHER * (num_beyond + num_letters):
        told = from_bytes(sample, cp_isolation=list(_ENCODINGS)).best()
        if told is not None and told.encoding in _ENCODINGS:
            return told.encoding, _ENCODINGS[told.encoding]
    return "cp1252", "Windows-1252"


def _in_utf16(raw: bytes, encoding: str, name: str) -> tuple[str, str]:
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text or (not text.isprintable() and not re.search(r"[\w\s]", text)):
        raise DataError(f"{name}: holds NUL bytes, so it is UTF-16 or no text; save it as UTF-8")
    return text, f"not UTF-8, so read as {encoding[:6].upper()}: "
