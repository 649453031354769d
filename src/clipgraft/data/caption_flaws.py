"""Flaws of a caption's text, and which of them can be mended."""

import codecs
import html
import re
from enum import StrEnum

from clipgraft.data.raw import tidy

MARKDOWN = re.compile(r"#{1,6} |```|> |\*\*\S|[-*] |\|.*\|$")
"""At the beginning of a line."""
_HTML_TAG = re.compile(r"</?(?:a|b|br|div|em|font|h[1-6]|i|img|li|p|span|strong|ul)\b[^<>]*>", re.IGNORECASE)
_JSON = re.compile(r'\s*(?:\{\s*"[^"]*"\s*:|\[\s*[{"]).*[}\]]\s*')
_ENTITY = re.compile(r"&(?:[a-z][a-z0-9]{1,31}|#[0-9]{1,7}|#x[0-9a-f]{1,6});", re.IGNORECASE)
MAX_ESCAPES = 3
"""Times that a text may have been escaped: `&amp;amp;amp;`."""
_MISREAD_AS = ("cp1252", "cp1251", "mac_roman")
"""Encodings in which UTF-8 is commonly misread."""
_CLOSING = "‘’“”–—…»"
_DOUBTFUL_RUN = re.compile(f"[^\x00-\x7f{_CLOSING}][{_CLOSING}]")
"""A letter before a closing quote or a dash, which may be UTF-8 misread, and may be meant: `CAFÉ”`."""
_RUN = re.compile("[^\x00-\x7f]+")
_SUSPECT = re.compile(f"[ÃÂ][^\\w\\s{_CLOSING}]|â€|ðŸ|\ufffd")


class Flaw(StrEnum):
    """What may be wrong with a caption's text."""

    NO_LETTERS = "without letters"
    ENTITIES = "with HTML entities"
    MOJIBAKE = "with mojibake or lost characters"
    MARKUP = "with JSON, HTML or Markdown"


EFFECTS = {
    Flaw.NO_LETTERS: "they teach nothing that a prompt says (--fix leaves them out)",
    Flaw.ENTITIES: "CLIP reads &amp; as the word amp (--fix replaces them)",
    Flaw.MOJIBAKE: "they fall into tokens that no prompt has (--fix mends what is certain)",
    Flaw.MARKUP: "marks are read as words and take room from the caption's own",
}


def flaws_of(caption: str) -> list[Flaw]:
    """Return the flaws of a caption."""
    found = [] if any(map(str.isalpha, caption)) else [Flaw.NO_LETTERS]
    if "&" in caption and unescape(caption) != caption:
        found.append(Flaw.ENTITIES)
    if not caption.isascii() and (_SUSPECT.search(caption) or mend_mojibake(caption) != caption):
        found.append(Flaw.MOJIBAKE)
    if MARKDOWN.match(caption) or _HTML_TAG.search(caption) or _JSON.fullmatch(caption):
        found.append(Flaw.MARKUP)
    return found


def clean(caption: str) -> str:
    """Replace HTML entities, and mend mojibake where that is certain."""
    return tidy(mend_mojibake(unescape(caption)))


def unescape(text: str) -> str:
    """Replace HTML entities with a semicolon, also if escaped several times."""
    for _ in range(MAX_ESCAPES):
        text, before = _ENTITY.sub(lambda match: html.unescape(match[0]), text), text
        if text == before:
            break
    return text


def mend_mojibake(text: str) -> str:
    """Return UTF-8 that was read in another encoding as it was meant.

    Certain only if all of it reads as UTF-8 again; any other text is returned as it is.
    """
    if text.isascii() or all(_DOUBTFUL_RUN.fullmatch(run) for run in _RUN.findall(text)):
        return text
    for encoding in _MISREAD_AS:
        try:
            return text.encode(encoding, "clipgraft.c1").decode("utf-8")
        except UnicodeError:
            continue
    return text


def _as_c1(error: UnicodeError) -> tuple[bytes, int]:
    """Encode the five bytes that Windows-1252 lacks as Latin-1, as browsers do."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return error.object[error.start : error.end].encode("latin-1"), error.end


codecs.register_error("clipgraft.c1", _as_c1)
