"""Aspect-ratio buckets: sizes of one area, and batches of one bucket.

An image resized to fill the size nearest in aspect ratio loses little at its edges.

Source:
    Sizes: kohya-ss/sd-scripts, `model_util.make_bucket_resolutions`, after NovelAI's (2022).
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Bucket(NamedTuple):
    """Size in pixels that images are resized to fill, then centre-cropped to."""

    height: int
    width: int


def make_buckets(side: int, step: int) -> tuple[Bucket, ...]:
    """Return sizes with sides from `side / 2` to `2 * side` and at most its area.

    Args:
        side: Pixels of the square, which is always one of them.
        step: All other sides are multiples of it.
    """
    longest, shortest = 2 * side, max(step, side // 2)
    found = {Bucket(side, side)}
    for height in range(math.ceil(shortest / step) * step, longest + 1, step):
        width = min(longest, side * side // height) // step * step
        if width >= shortest:
            found |= {Bucket(height, width), Bucket(width, height)}
    return tuple(sorted(found))


def nearest_bucket(height: int, width: int, buckets: tuple[Bucket, ...]) -> int:
    """Return the index of the bucket with the nearest logarithmic aspect ratio."""
    ratio = math.log(width / height)

    def distance(index: int) -> tuple[float, int]:
        bucket = buckets[index]
        return abs(math.log(bucket.width / bucket.height) - ratio), -bucket.height * bucket.width

    return min(range(len(buckets)), key=distance)


def group_by_size(sizes: Sequence[Hashable], batch_size: int) -> list[list[int]]:
    """Batch the indices of equal sizes, in order of their first ones."""
    indices_of: dict[Hashable, list[int]] = {}
    for index, size in enumerate(sizes):
        indices_of.setdefault(size, []).append(index)
    return [
        indices[start : start + batch_size]
        for indices in indices_of.values()
        for start in range(0, len(indices), batch_size)
    ]


def num_bucket_batches(bucket_of: np.ndarray, batch_size: int) -> int:
    """Return the number of batches in each epoch; see `bucket_batches`."""
    counts = np.unique(bucket_of, return_counts=True)[1]
    return int((counts // batch_size).sum() if len(counts) == 1 else (-(-counts // batch_size)).sum())


def bucket_batches(order: np.ndarray, bucket_of: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut an epoch's order of items into batches of one bucket each.

    The last batch of a bucket may be smaller; with one bucket alone it is dropped.

    Args:
        order: A permutation of all items.
        bucket_of: The bucket of each item.
        batch_size: Items in a batch.

    Returns:
        Items of each batch; batches follow in the order of their first items.
    """
    places = np.argsort(bucket_of[order], kind="stable")
    _, counts = np.unique(bucket_of, return_counts=True)
    batches = [
        places[start : min(start + batch_size, end)]
        for begin, end in zip(np.cumsum(counts) - counts, np.cumsum(counts), strict=True)
        for start in range(begin, end, batch_size)
    ]
    batches.sort(key=lambda batch: batch[0])
    return [order[batch] for batch in batches[: num_bucket_batches(bucket_of, batch_size)]]
