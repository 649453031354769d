"""Captions to fit and to measure a bridge on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipgraft.config import Recipe
from clipgraft.console import say
from clipgraft.data.caption_words import chosen_words, holds_any
from clipgraft.data.dataset import CaptionDataset, CaptionedImages, TrainingImages
from clipgraft.data.formats import load_dataset, read_lines
from clipgraft.data.raw import is_utf8
from clipgraft.errors import UserError
from clipgraft.section import GIVEN
from clipgraft.settings import BridgeSettings

FEWEST_CAPTIONS = 100
MAX_STREAMED_CAPTIONS = 100_000
"""Captions read of a source that is not in memory: at 15 tokens of B/32's and L/14's states, 3.8 GB."""
MAX_HELD_OUT_CAPTIONS = 500
"""The word error over 500 and over 1,000 was 0.432 and 0.430 (flatland)."""
WORD_ERRORS = {25: 1.09, 100: 0.80, 1000: 0.73}
"""Relative error of the linear bridge on flatland by number of captions (bench_bridge.py)."""
HELD_OUT_EVERY = 10
"""Without splits, one in ten captions is held out."""


@dataclass(frozen=True)
class Captions:
    """Distinct captions of a bridge."""

    train: list[str]
    held_out: list[str]
    """At most 500; the training ones if there are no others."""
    source: str = "the captions given"
    """Name for messages."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Image id -> reason, of photographs that were skipped with their captions."""


def load_captions(recipe: Recipe) -> Captions:
    """Read the captions of `recipe.bridge.captions`, else of `recipe.data`.

    Raises:
        MissingFileError: If there is no such file or folder.
        DataError: If the file holds no caption.
        UserError: If there are fewer than 100, unless the settings allow it; or they were given in Python.
    """
    settings = recipe.bridge
    if settings.captions:
        lines = read_captions(settings.captions)
        return choose_captions(lines, settings, source=settings.captions)
    dataset = load_dataset(recipe.data)
    return choose_captions(dataset, settings, source=recipe.data.title)


def read_captions(file: str) -> list[str]:
    """Read a recipe's file of captions; refuse those given in Python."""
    if file == GIVEN:
        raise UserError(
            "the captions of this recipe were given in Python, and it does not hold them; name a file with "
            "one caption per line (--captions FILE; in a recipe, captions under [bridge] or [distill])"
        )
    return read_lines(Path(file), "caption")


def choose_captions(
    given: CaptionDataset | Sequence[str], settings: BridgeSettings, source: str = "the captions given"
) -> Captions:
    """Split captions into those to fit to and those to measure on.

    Args:
        given: A dataset with train and test split, or captions, one in ten of them to be held out.
        settings: For `max_captions` and `allow_few_captions`.
        source: Name for messages.

    Raises:
        UserError: If there are fewer than 100, unless the settings allow it.
    """
    train, held_out = split_captions(given, 0 if settings.exclude_words else settings.max_captions)
    if not isinstance(given, CaptionDataset):
        source = f"{source}, with one in {HELD_OUT_EVERY} lines held out"
    train, held_out = _without_words(train, held_out, settings)
    train = train[: settings.max_captions or None]
    _check_number(len(train), source, settings.allow_few_captions)
    damaged = given.damaged if isinstance(given, CaptionDataset) else {}
    return Captions(train, (held_out or train)[:MAX_HELD_OUT_CAPTIONS], source, damaged)


def split_captions(
    given: CaptionDataset | Sequence[str], max_captions: int = 0
) -> tuple[list[str], list[str]]:
    """Return distinct captions to train and to measure on.

    Of a source that is not in memory, at most `max_captions` are read to train on; 0 stands for
    `MAX_STREAMED_CAPTIONS` then, with a note.

    Raises:
        UserError: If what is given is neither a dataset nor captions.
    """
    if isinstance(given, CaptionDataset):
        return _first_captions(given.train, max_captions), list(dict.fromkeys(given.test.captions))
    if isinstance(given, str):
        raise UserError(f"expected captions, or a dataset that load_dataset returns; got {given[:80]!r}")
    for text in given:
        if not isinstance(text, str) or not is_utf8(text):
            raise UserError(f"captions are texts of whole characters; got {repr(text)[:80]}")
    lines = list(dict.fromkeys(given))
    train = [line for index, line in enumerate(lines) if (index + 1) % HELD_OUT_EVERY]
    return train, lines[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]


def _first_captions(images: TrainingImages, limit: int) -> list[str]:
    if isinstance(images, CaptionedImages):
        return list(dict.fromkeys(images.captions))
    most = limit or MAX_STREAMED_CAPTIONS
    captions: dict[str, None] = {}
    for caption in images.iter_captions():
        captions[caption] = None
        if len(captions) == most:
            break
    if len(captions) == most > limit:
        say(f"the first {most:,} captions are read; bridge.max_captions sets another number for a bridge")
    return list(captions)


def _without_words(
    train: list[str], held_out: list[str], settings: BridgeSettings
) -> tuple[list[str], list[str]]:
    """Leave captions out whose states say nothing to the teacher."""
    words = chosen_words(settings.exclude_words, "bridge.exclude_words")
    if not words:
        return train, held_out
    kept = [caption for caption in train if not holds_any(caption, words)]
    say(f"{len(train) - len(kept):,} of {len(train):,} captions are left out: they have new words")
    if train and not kept:
        raise UserError(
            "every training caption has a word of bridge.exclude_words, so none is left to fit the bridge "
            "to; take words out of the list, or give captions without them"
        )
    return kept, [caption for caption in held_out if not holds_any(caption, words)]


def _check_number(count: int, source: str, allow_few: bool) -> None:
    if count >= FEWEST_CAPTIONS:
        return
    if count == 0:
        raise UserError(f"no training caption in {source} to fit the bridge on; name a source with captions")
    errors = ", ".join(f"{error} from {count:,}" for count, error in WORD_ERRORS.items())
    found = (
        f"only {count} different captions to fit the bridge on ({source}); on flatland the relative error of "
        f"held-out words was {errors} (1: no better than nothing)"
    )
    if not allow_few:
        raise UserError(
            f"{found}; give {FEWEST_CAPTIONS} or more, or go on with --allow-few-captions "
            "(bridge.allow_few_captions=true)"
        )
    say(found)
