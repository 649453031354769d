"""Languages of captions, detected by py3langid."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipgraft.files import naming

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

    Short captions whose language cannot be detected count as English.
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
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    with naming(Path(tempfile.gettempdir())):  # where it unpacks its model
        return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
