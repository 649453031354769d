"""Samples of shards: images with captions, or reasons for exclusion."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from clipgraft.data.dataset import Split
from clipgraft.data.raw import EMPTY_CAPTION, MAX_CAPTION_CHARACTERS, tidy
from clipgraft.data.split_names import SPLIT_NAMES
from clipgraft.data.tables import caption_fields, texts_of
from clipgraft.settings import DataSettings

NO_IMAGE = "sample without image"
SAMPLE_WITHOUT_CAPTION = "sample without caption"
LONG = f"sample whose captions all have over {MAX_CAPTION_CHARACTERS:,} characters"
NO_TEXT = "sample whose caption is no text"
UNKNOWN_SPLIT = "sample in a split other than train, val and test"


class Sample(NamedTuple):
    """One image of a shard with its captions."""

    key: str
    """Decides the split where none is named."""
    name: str
    """Name of the image in the shard."""
    offset: int
    """First byte of the image in the shard's file."""
    size: int
    captions: tuple[str, ...]
    split: Split | None
    """Split that the sample itself names."""


class LeftOut(NamedTuple):
    """A sample that cannot be used."""

    name: str
    reason: str


Samples = Iterator[Sample | LeftOut]


class Texts(NamedTuple):
    """Captions and split in a sample's fields."""

    captions: tuple[str, ...]
    split: Split | None
    problem: str
    """Why the sample cannot be used; "" if it can."""


def read_fields(fields: Mapping[str, Any], settings: DataSettings) -> Texts:
    """Return the captions and the split that named fields hold."""
    found = [text for name in caption_fields(fields, settings) for text in texts_of(fields.get(name))]
    found = [text["raw"] if isinstance(text, dict) and "raw" in text else text for text in found]
    if any(text is not None and not isinstance(text, str) for text in found):
        return Texts((), None, NO_TEXT)
    captions, problem = usable([text for text in found if text is not None])
    named = next((fields[name] for name in fields if name.lower() == "split"), None)
    if named in (None, ""):
        return Texts(captions, None, problem)
    split = SPLIT_NAMES.get(str(named).strip().lower())
    return Texts(captions, split, problem if split else UNKNOWN_SPLIT)


def usable(texts: list[str]) -> tuple[tuple[str, ...], str]:
    """Return captions without blank, overlong and repeated ones, or why none remains."""
    texts = [tidy(text) for text in texts]
    filled = [text for text in texts if text]
    captions = tuple(dict.fromkeys(text for text in filled if len(text) <= MAX_CAPTION_CHARACTERS))
    if captions:
        return captions, ""
    return (), LONG if filled else EMPTY_CAPTION if texts else SAMPLE_WITHOUT_CAPTION
