"""Words of captions: found, left out, listed in a file."""

import re
from collections.abc import Collection
from pathlib import Path

from clipgraft.data.formats import read_lines
from clipgraft.errors import DataError, UserError
from clipgraft.section import Words

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
"""Letters and digits, joined by apostrophes and hyphens: `two-wheeler`, `dog's`."""
COMMENT = "#"


def words_of(caption: str) -> frozenset[str]:
    """Return a caption's words in lower case."""
    return frozenset(word.lower() for word in WORD.findall(caption))


def without_word(caption: str, word: str) -> str:
    """Return a caption with every occurrence of a lower-case word left out."""
    kept = WORD.sub(lambda found: "" if found[0].lower() == word else found[0], caption)
    return " ".join(kept.split())


def holds_any(caption: str, words: Collection[str]) -> bool:
    """Whether a caption has one of some lower-case words."""
    return not words_of(caption).isdisjoint(words)


def chosen_words(given: Words, setting: str) -> frozenset[str]:
    """Return words, listed or in a file, in lower case.

    Args:
        given: The words, or a file for `read_words`.
        setting: Its name, for messages.

    Raises:
        UserError: If an item of the list is not one word.
    """
    if isinstance(given, str):
        return read_words(Path(given)) if given else frozenset()
    for word in given:
        if words_of(word) != {word.lower()}:
            raise UserError(f"{setting}: {word!r} is not one word; give single words")
    return frozenset(word.lower() for word in given)


def read_words(path: Path) -> frozenset[str]:
    """Read a file with one word per line; `#` starts a comment.

    Returns:
        The words in lower case.

    Raises:
        MissingFileError: If there is no such file.
        DataError: If it holds no word, or a line has several; names the line.
    """
    found: set[str] = set()
    for line in read_lines(path, "word"):
        text = line.partition(COMMENT)[0].strip()
        if text and not WORD.fullmatch(text):
            raise DataError(
                f"{path}: {text!r} is not one word; write one word per line, comments after {COMMENT}"
            )
        found |= words_of(text)
    if not found:
        raise DataError(f"{path} holds no word; write one per line, or leave the file out")
    return frozenset(found)
