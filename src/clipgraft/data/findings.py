"""Findings of a check, and what each does to training."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from clipgraft.data.dataset import CaptionedImage

NUM_SHOWN = 10
"""Examples of a finding; damaged, duplicate and leaking images are all in the JSON."""

Lookup = Callable[[Collection[int]], Mapping[int, CaptionedImage]]
"""Returns images by their numbers in the order of the dataset; costs a pass where they are not in memory."""


@dataclass(frozen=True, slots=True)
class Example:
    """One example of a finding, with the images that it is about."""

    text: str
    images: tuple[CaptionedImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something odd in a dataset."""

    kind: str
    """Its name in JSON: `same_caption`."""
    summary: str
    """`40 images share 2 captions`."""
    effect: str
    """What it does to training, in half a sentence."""
    count: int
    """Of the things that `examples` shows some of."""
    examples: tuple[Example, ...]
