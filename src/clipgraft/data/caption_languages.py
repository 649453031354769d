"""Languages of captions, told by py3langid."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np

from clipgraft.cache import cache_dir
from clipgraft.cached_arrays import ContentCache

FOLDER = "languages"
"""Of the cache."""

MIN_RATIO = 100.0
"""Probability of a language over that of English, from which a caption counts as not English.

None of Flickr8k's 40,460 captions passes 38, none of flatland8k's 40,000 passes 7
(benchmarks/bench_check.py); `dog` alone has 1.6, `Ein Hund rennt am Strand.` 158.
"""
NAMES = {
    **{"ar": "Arabic", "bg": "Bulgarian", "ca": "Catalan", "cs": "Czech", "da": "Danish", "de": "German"},
    **{"el": "Greek", "es": "Spanish", "fa": "Persian", "fi": "Finnish", "fr": "French", "he": "Hebrew"},
    **{"hi": "Hindi", "hu": "Hungarian", "id": "Indonesian", "it": "Italian", "ja": "Japanese"},
    **{"ko": "Korean", "nl": "Dutch", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese"},
    **{"ro": "Romanian", "ru": "Russian", "sv": "Swedish", "th": "Thai", "tr": "Turkish"},
    **{"uk": "Ukrainian", "vi": "Vietnamese", "zh": "Chinese"},
}


@dataclass(frozen=True, slots=True)
class LanguageShare:
    """Captions of one language other than English."""

    language: str
    share: float
    """Of all captions that were looked at, between 0 and 1."""
    example: int
    """Number of one of them."""


def can_tell_languages() -> bool:
    """Whether py3langid is installed."""
    return find_spec("py3langid") is not None


def other_languages(captions: Sequence[str]) -> list[LanguageShare]:
    """Return the languages besides English, the most frequent first.

    Short captions whose language cannot be told count as English.
    """
    identifier = _load_identifier()
    counts: Counter[str] = Counter()
    examples: dict[str, int] = {}
    for number, caption in enumerate(captions):
        ranked = identifier.rank(caption)
        language, probability = ranked[0]
        if probability > MIN_RATIO * dict(ranked)["en"]:
            counts[language] += 1
            examples.setdefault(language, number)
    return [
        LanguageShare(NAMES.get(language, language), count / len(captions), examples[language])
        for language, count in counts.most_common()
    ]


@cache
def _load_identifier() -> Any:
    from py3langid.langid import LanguageIdentifier

    likelihoods, priors, languages, moves, rows, features = _model()
    return LanguageIdentifier(
        likelihoods,
        priors,
        languages.tobytes().decode().split(),
        _as_array(moves),
        features.tolist(),
        norm_probs=True,
        tk_row=_as_array(rows),
    )


def _model() -> list[np.ndarray]:
    """Return py3langid's model; unpacking it takes half a second, once."""
    keys = [f"py3langid {version('py3langid')} {part}" for part in range(6)]
    with suppress(OSError):  # of a cache that cannot be written
        return list(ContentCache(cache_dir() / FOLDER, "language model").arrays(keys, _unpack))
    return list(_unpack(range(6)))


def _unpack(numbers: Sequence[int]) -> Iterator[np.ndarray]:
    from py3langid.langid import MODEL_DIR, MODEL_FILE
    from py3langid.modelio import load_model

    parts = list(load_model(MODEL_DIR / MODEL_FILE))
    parts[2] = np.frombuffer(" ".join(parts[2]).encode(), np.uint8)
    yield from (np.asarray(parts[number]) for number in numbers)


def _as_array(numbers: np.ndarray) -> array:
    """Return an array whose items are read faster than NumPy's."""
    return array(numbers.dtype.char, numbers.tobytes())
