"""Captions that several images have, and what that takes from recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipgraft.data.dataset import SPLITS
from clipgraft.data.findings import Example, Finding, Lookup
from clipgraft.data.repeats import find_repeats
from clipgraft.errors import number_of

NUM_CAPTIONS, NUM_IMAGES = 5, 4
"""Captions shown, the most frequent first, and images shown of each."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """One caption and the images that have it."""

    key: int
    num_images: int
    images: tuple[int, ...]
    """Numbers of the first of them."""


def caption_key(caption: str) -> int:
    """Return a caption's 64-bit hash, ignoring case; equal within one process alone."""
    return hash(caption.casefold())


def shared_captions(
    keys: np.ndarray, images: np.ndarray, same_image: np.ndarray, splits: np.ndarray, lookup: Lookup
) -> Finding | None:
    """Return captions of several images as a finding.

    Args:
        keys: int64, `caption_key` of each caption.
        images: uint32, the number of each caption's image.
        same_image: Number of the first image with equal bytes, by number of an image.
        splits: Index in `SPLITS`, by number of an image.
        lookup: Finds images by number.
    """
    if not len(keys):  # all images are those of a stream that is not passed over
        return None
    repeats = find_repeats(keys)
    ceilings = _ceilings(keys, images, same_image, splits)
    keys, images = _distinct_pairs(keys[repeats.places], same_image[images[repeats.places]])
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]][: len(keys)])
    sizes = np.diff(np.r_[starts, len(keys)])
    is_shared = sizes > 1
    if not is_shared.any():
        return None
    num_images = len(np.unique(images[np.repeat(is_shared, sizes)]))
    most = sorted(
        np.flatnonzero(is_shared).tolist(), key=lambda place: (-sizes[place], images[starts[place]])
    )
    shared = [
        _Shared(
            int(keys[starts[place]]),
            int(sizes[place]),
            tuple(images[starts[place] : starts[place] + min(NUM_IMAGES, sizes[place])].tolist()),
        )
        for place in most[:NUM_CAPTIONS]
    ]
    return Finding(
        "same_caption",
        f"{number_of(num_images, 'image')} share {number_of(int(is_shared.sum()), 'caption')}",
        _effect(ceilings),
        int(is_shared.sum()),
        _examples(shared, lookup),
    )


def _distinct_pairs(keys: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each caption with each of its images once, sorted by both."""
    order = np.lexsort((images, keys))
    keys, images = keys[order], images[order]
    is_new = np.r_[True, (keys[1:] != keys[:-1]) | (images[1:] != images[:-1])][: len(keys)]
    return keys[is_new], images[is_new]


def _effect(ceilings: dict[str, float]) -> str:
    reached = ", ".join(f"{ceiling:.1%} over {place}" for place, ceiling in ceilings.items())
    return (
        "in one batch such images are false negatives of each other, so the loss cannot reach 0; "
        f"text-to-image recall@1 cannot pass {reached}"
    )


def _ceilings(
    keys: np.ndarray, images: np.ndarray, same_image: np.ndarray, splits: np.ndarray
) -> dict[str, float]:
    """Return the greatest possible text-to-image recall@1, by where it is measured."""
    ceilings = {"all images": _ceiling(keys, images, same_image)}
    for number, split in enumerate(SPLITS):
        own = np.flatnonzero(splits[images] == number) if split != "train" else np.empty(0, np.int64)
        if len(own) and (ceiling := _ceiling(keys[own], images[own], same_image)) < 1:
            ceilings[split] = ceiling
    return ceilings


def _ceiling(keys: np.ndarray, images: np.ndarray, same_image: np.ndarray) -> float:
    """Return the greatest possible text-to-image recall@1.

    Of n images with one caption, one can come first; a caption that an image has twice counts once.
    """
    places, num_different = find_repeats(keys)
    distinct, _ = _distinct_pairs(keys[places], same_image[images[places]])
    return num_different / (len(keys) - len(places) + len(distinct))


def _examples(shared: Sequence[_Shared], lookup: Lookup) -> tuple[Example, ...]:
    found = lookup({number for caption in shared for number in caption.images})
    examples = []
    for caption in shared:
        images = tuple(found[number] for number in caption.images)
        text = next(text for text in images[0].captions if caption_key(text) == caption.key)
        examples.append(Example(f"{number_of(caption.num_images, 'image')}: {text}", images))
    return tuple(examples)
