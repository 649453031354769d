"""Captions that several images have, and what that takes from recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipgraft.data.dataset import SPLITS
from clipgraft.data.findings import Example, Finding, Lookup, number_of

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
    keys, images = _distinct_pairs(keys, same_image[images])
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
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
        _effect(keys, images, splits),
        int(is_shared.sum()),
        _examples(shared, lookup),
    )


def _distinct_pairs(keys: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each caption with each of its images once, sorted by both."""
    order = np.lexsort((images, keys))
    keys, images = keys[order], images[order]
    is_new = np.r_[True, (keys[1:] != keys[:-1]) | (images[1:] != images[:-1])]
    return keys[is_new], images[is_new]


def _effect(keys: np.ndarray, images: np.ndarray, splits: np.ndarray) -> str:
    ceilings = {"over all images": _ceiling(keys)}
    for number, split in enumerate(SPLITS):
        if split != "train" and len(own := keys[splits[images] == number]) and _ceiling(own) < 1:
            ceilings[f"over {split}"] = _ceiling(own)
    reached = ", ".join(f"{ceiling:.1%} {place}" for place, ceiling in ceilings.items())
    return (
        "in one batch such images are false negatives of each other, so the loss cannot reach 0; "
        f"text-to-image recall@1 cannot pass {reached}"
    )


def _ceiling(keys: np.ndarray) -> float:
    """Return the greatest possible text-to-image recall@1.

    Of n images with one caption, one can come first.

    Args:
        keys: A key for each caption and image.
    """
    return len(np.unique(keys)) / len(keys)


def _examples(shared: Sequence[_Shared], lookup: Lookup) -> tuple[Example, ...]:
    found = lookup({number for caption in shared for number in caption.images})
    examples = []
    for caption in shared:
        images = tuple(found[number] for number in caption.images)
        text = next(text for text in images[0].captions if caption_key(text) == caption.key)
        examples.append(Example(f"{number_of(caption.num_images, 'image')}: {text}", images))
    return tuple(examples)
