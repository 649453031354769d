"""Lengths, flaws, repeats and languages of captions, found in one pass."""

import heapq
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from clipgraft.data.caption_flaws import EFFECTS, Flaw, flaws_of
from clipgraft.data.caption_languages import other_languages
from clipgraft.data.caption_words import WORD
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionedImage
from clipgraft.data.findings import NUM_SHOWN, Example, Finding, Lookup
from clipgraft.data.photograph_check import PhotographCheck
from clipgraft.data.shared_captions import caption_key, shared_captions
from clipgraft.errors import number_of

LENGTH_FACTOR = 4
"""Times the median of words, or its part, from which a caption is long or short (a guess)."""
COUNT_FACTOR, MANY_CAPTIONS = 3, 5
"""An image has many captions from three times the median of its set, and no less than five (a guess)."""
NUM_IN_LANGUAGES = 1000
"""Images, spread over the dataset, whose captions' languages are detected; 70 µs a caption."""
NUM_CAPTIONS_EACH = 5
"""Captions of each of them."""
_BUFFER = 1 << 18
"""Words between two times that repeated ones are dropped."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Shortest, median and longest caption."""

    shortest: int
    median: float
    longest: int

    @classmethod
    def of(cls, lengths: Counter[int]) -> "Lengths":
        """Summarise lengths, each with its number of captions."""
        if not lengths:
            return cls(0, 0, 0)
        sizes = np.array(sorted(lengths))
        ends = np.cumsum([lengths[size] for size in sizes.tolist()])
        middle = (ends[-1] - 1) // 2, ends[-1] // 2
        median = sizes[np.searchsorted(ends, middle, side="right")].mean()
        return cls(int(sizes[0]), float(median), int(sizes[-1]))

    def __str__(self) -> str:
        return f"{self.shortest} to {self.longest}, median {self.median:g}"


class _Odd(NamedTuple):
    """One of the longest, shortest or most captions so far."""

    size: int
    order: int
    text: str
    image: CaptionedImage


class CaptionCheck:
    """Measurements of captions from one pass; 12 bytes each stay in memory.

    Args:
        num_images: Images that will be added.
    """

    def __init__(self, num_images: int):
        self.lengths: Counter[int] = Counter()
        """Words -> captions with so many."""
        self.counts: Counter[int] = Counter()
        """Captions -> images with so many."""
        self._stride = max(1, num_images // NUM_IN_LANGUAGES)
        self._num_images = 0
        self.keys, self.images = array("q"), array("I")
        """`caption_key` of each caption, and the number of its image."""
        self._words, self._vocabulary = array("q"), np.empty(0, np.int64)
        self._flaws: Counter[Flaw] = Counter()
        self._flawed: dict[Flaw, list[Example]] = {flaw: [] for flaw in Flaw}
        self._longest: list[_Odd] = []
        self._shortest: list[_Odd] = []
        self._fullest: list[_Odd] = []
        self._sample: list[tuple[str, CaptionedImage]] = []

    def add(self, image: CaptionedImage) -> None:
        """Add the captions of an image."""
        self.counts[len(image.captions)] += 1
        if self._num_images % self._stride == 0:
            self._sample += [(caption, image) for caption in image.captions[:NUM_CAPTIONS_EACH]]
        _keep(self._fullest, _Odd(len(image.captions), -self._num_images, "", image))
        for caption in image.captions:
            self._add_caption(image, caption)
        self._num_images += 1

    def _add_caption(self, image: CaptionedImage, caption: str) -> None:
        length = len(caption.split())
        self.lengths[length] += 1
        _keep(self._longest, _Odd(length, -len(self.keys), caption, image))
        _keep(self._shortest, _Odd(-length, -len(self.keys), caption, image))
        self.keys.append(caption_key(caption))
        self.images.append(self._num_images)
        self._words.extend(map(hash, WORD.findall(caption.lower())))
        if len(self._words) > _BUFFER:
            self._drop_repeated_words()
        for flaw in flaws_of(caption):
            self._flaws[flaw] += 1
            if len(self._flawed[flaw]) < NUM_SHOWN:
                self._flawed[flaw].append(Example(caption, (image,)))

    def _drop_repeated_words(self) -> None:
        known = np.frombuffer(self._words, np.int64)
        self._vocabulary = np.union1d(self._vocabulary, known)
        self._words = array("q")

    @property
    def vocabulary_size(self) -> int:
        """Different words, ignoring case and punctuation."""
        self._drop_repeated_words()
        return len(self._vocabulary)

    def findings(self, lookup: Lookup, photographs: PhotographCheck) -> Iterator[Finding]:
        """Yield what is odd in captions; equal images may share theirs."""
        keys, images = np.frombuffer(self.keys, np.int64), np.frombuffer(self.images, np.uint32)
        same_image, splits = photographs.same_image(), photographs.splits()
        if shared := shared_captions(keys, images, same_image, splits, lookup):
            yield shared
        for flaw in Flaw:
            if count := self._flaws[flaw]:
                summary = f"{number_of(count, 'caption')} {flaw}"
                yield Finding(flaw.name.lower(), summary, EFFECTS[flaw], count, tuple(self._flawed[flaw]))
        yield from self._odd_lengths()
        yield from self._odd_counts()

    def _odd_lengths(self) -> Iterator[Finding]:
        median = Lengths.of(self.lengths).median
        limits = {
            "long": (self._longest, lambda length: length > LENGTH_FACTOR * median),
            "short": (self._shortest, lambda length: length * LENGTH_FACTOR < median),
        }
        bounds = {
            "long": f"over {LENGTH_FACTOR * median:g} words",
            "short": f"at most {number_of(math.ceil(median / LENGTH_FACTOR) - 1, 'word')}",
        }
        effects = {
            "long": f"CLIP reads {CONTEXT_LENGTH} tokens at most, and the rest is cut",
            "short": "they fit many images, which are false negatives then",
        }
        for kind, (kept, is_odd) in limits.items():
            if count := sum(number for length, number in self.lengths.items() if is_odd(length)):
                examples = [
                    Example(f"{number_of(abs(odd.size), 'word')}: {odd.text}", (odd.image,))
                    for odd in sorted(kept, reverse=True)
                    if is_odd(abs(odd.size))
                ]
                summary = f"{number_of(count, 'caption')} of {bounds[kind]} (the median has {median:g})"
                yield Finding(f"{kind}_captions", summary, effects[kind], count, tuple(examples))

    def _odd_counts(self) -> Iterator[Finding]:
        median = Lengths.of(self.counts).median
        least = max(MANY_CAPTIONS, COUNT_FACTOR * median)
        if count := sum(number for captions, number in self.counts.items() if captions >= least):
            yield Finding(
                "many_captions",
                f"{number_of(count, 'image')} with {least:g} captions or more (the median has {median:g})",
                "an epoch draws as many captions of each image, so each of theirs is seen less often",
                count,
                tuple(
                    Example(number_of(odd.size, "caption"), (odd.image,))
                    for odd in sorted(self._fullest, reverse=True)
                    if odd.size >= least
                ),
            )

    def languages(self) -> Finding | None:
        """Return other languages than English as a finding."""
        shares = other_languages([caption for caption, _ in self._sample])
        if not shares:
            return None
        named = ", ".join(f"{share.language} {share.share:.1%}" for share in shares[:NUM_SHOWN])
        return Finding(
            "languages",
            f"{sum(share.share for share in shares):.1%} of captions are not English: {named}",
            "CLIP's tokenizer cuts other languages into small pieces, and few were in its training",
            len(shares),
            tuple(
                Example(
                    f"{share.language}: {self._sample[share.example][0]}", (self._sample[share.example][1],)
                )
                for share in shares[:NUM_SHOWN]
            ),
        )


def _keep(kept: list[_Odd], odd: _Odd) -> None:
    """Keep the greatest few."""
    if len(kept) < NUM_SHOWN:
        heapq.heappush(kept, odd)
    elif odd > kept[0]:
        heapq.heapreplace(kept, odd)
