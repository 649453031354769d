"""Captions with new words, and captions whose states are held."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipgraft.bridging.corpus import split_captions
from clipgraft.console import say
from clipgraft.data.caption_words import chosen_words, words_of
from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import read_lines
from clipgraft.errors import UserError, some_of
from clipgraft.settings import DistillSettings

MAX_HELD_OUT_CAPTIONS = 500
"""Of each kind."""
MAX_NAMED = 5
"""Words named in a message."""


@dataclass(frozen=True)
class MarkedCaptions:
    """Captions, each marked by whether it has a new word."""

    captions: list[str] = field(default_factory=list)
    has_new_word: list[bool] = field(default_factory=list)

    def of_kind(self, is_new: bool) -> list[str]:
        """Return the captions with, or without, new words."""
        pairs = zip(self.captions, self.has_new_word, strict=True)
        return [caption for caption, mark in pairs if mark == is_new]


@dataclass(frozen=True)
class DistillCaptions:
    """Captions to distill on and to measure on, and their new words."""

    train: MarkedCaptions
    held_out: dict[bool, list[str]]
    """With new words (True) and without; of training captions where no others are."""
    word_counts: dict[str, int]
    """Training captions of each new word."""


def mark_captions(given: CaptionDataset | Sequence[str], settings: DistillSettings) -> DistillCaptions:
    """Mark captions by the settings' new words; add the captions to hold.

    Args:
        given: A dataset with train and test split, or captions, one in ten of them to be held out.
        settings: With `new_words` and `hold`.

    Raises:
        UserError: If there are no new words, none is in a caption, one is in every caption, or a caption to
            hold has one.
    """
    words = new_words(settings)
    train, held_out = split_captions(given)
    train = train[: settings.max_captions or None]
    found = [words & words_of(caption) for caption in train]
    met = Counter(word for each in found for word in each)
    counts = {word: met[word] for word in sorted(words)}
    marked = MarkedCaptions(train, [bool(each) for each in found])
    _check_counts(counts)
    if settings.hold:
        hold = _read_hold(Path(settings.hold), words)
        marked = MarkedCaptions(train + hold, marked.has_new_word + [False] * len(hold))
    _check_kinds(marked, counts)
    measured = {}
    for is_new in (True, False):
        others = [caption for caption in held_out if bool(words & words_of(caption)) == is_new]
        measured[is_new] = (others or marked.of_kind(is_new))[:MAX_HELD_OUT_CAPTIONS]
    return DistillCaptions(marked, measured, counts)


def new_words(settings: DistillSettings) -> frozenset[str]:
    """Return the settings' new words in lower case.

    Raises:
        MissingFileError: If their file is not there.
        DataError: If it is empty, or a line is not one word.
        UserError: If no word is given, or an item of the list is not one word.
    """
    assert settings.new_words != "auto"  # found before
    words = chosen_words(settings.new_words, "distill.new_words")
    if not words:
        raise UserError(
            "no new words: name those that the base is to learn, in a file with one per line, with "
            "--new-words (distill.new_words), or find them with --new-words auto"
        )
    return words


def _check_counts(counts: dict[str, int]) -> None:
    missing = [word for word, count in counts.items() if not count]
    if len(missing) == len(counts):
        raise UserError(
            f"no training caption has a new word ({some_of(missing, MAX_NAMED)}), so the text encoder would "
            "learn nothing and stay the base's own; give captions that have them, or other words"
        )
    if missing:
        say(f"no training caption has {some_of(missing, MAX_NAMED)}: not learned")


def _check_kinds(marked: MarkedCaptions, counts: dict[str, int]) -> None:
    if not all(marked.has_new_word):
        return
    everywhere = [word for word, count in counts.items() if count == len(marked.captions)]
    what = f"{everywhere[0]!r} is in every caption" if everywhere else "every caption has a new word"
    raise UserError(
        f"{what}, so no states of the base would be held; take words out of the list, or give captions "
        "without them with --hold (distill.hold)"
    )


def _read_hold(path: Path, words: frozenset[str]) -> list[str]:
    lines = list(dict.fromkeys(read_lines(path, "caption")))
    wrong = [line for line in lines if words & words_of(line)]
    if wrong:
        shown = some_of(sorted(words & words_of(wrong[0])), MAX_NAMED)
        raise UserError(
            f"{path}: {len(wrong):,} of its {len(lines):,} captions to hold have new words (first: "
            f"{wrong[0][:60]!r}, {shown}); take those captions out, or "
            "the words from the list"
        )
    return lines
