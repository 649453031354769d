"""Images that look alike, found by perceptual hashes.

Two images are near duplicates if their phash differs in at most 4 of 64 bits and their dhash in at most 6.
Among the first 1,000 photographs of Flickr8k (499,500 pairs) no pair is that near: the nearest differs in 12
bits; docs/data.md has what is found of copies, and where drawn scenes are taken for copies.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipgraft.data.repeats import equal_groups

MAX_PHASH_BITS, MAX_DHASH_BITS = 4, 6
BAND_SIZES = (11, 11, 11, 11, 10, 10)
"""Bits of phash: of these six bands, hashes within 4 bits agree in at least two."""
SIDE = 32
"""Pixels of the image whose frequencies phash compares with their median."""
COSINES = np.cos(np.pi / SIDE * np.outer(np.arange(8), np.arange(SIDE) + 0.5))
"""The first eight rows of the cosine transform (8, SIDE)."""
MAX_NEIGHBOURS = 200
"""Hashes compared with each one that agrees in two bands, so that a crowd costs no square of its size."""


class PerceptualHash(NamedTuple):
    """Two hashes of how an image looks, 64 bits each."""

    phash: int
    """Signs of its low frequencies."""
    dhash: int
    """Which of neighbouring regions is the brighter one."""


def perceptual_hash(image: Image.Image) -> PerceptualHash:
    """Hash how an image looks, as imagehash does; colours do not count."""
    grey = image.convert("L")
    frequencies = COSINES @ _resized(grey, SIDE, SIDE) @ COSINES.T
    # Without the rounding errors, which would decide about symmetric images.
    frequencies = frequencies.round(6)
    regions = _resized(grey, 9, 8)
    return PerceptualHash(
        _as_int(frequencies > np.median(frequencies)), _as_int(regions[:, 1:] > regions[:, :-1])
    )


def _resized(grey: Image.Image, width: int, height: int) -> np.ndarray:
    return np.asarray(grey.resize((width, height), Image.Resampling.LANCZOS), np.float64)


def _as_int(bits: np.ndarray) -> int:
    return int.from_bytes(np.packbits(bits).tobytes())


def near_groups(phashes: np.ndarray, dhashes: np.ndarray) -> list[list[int]]:
    """Group the numbers of images that look alike, directly or through others.

    Args:
        phashes: uint64 of each image.
        dhashes: As `phashes`.
    """
    hashes = np.stack([phashes, dhashes], axis=1)
    different, group_of = np.unique(hashes, axis=0, return_inverse=True)
    parents: dict[int, int] = {}

    def root(number: int) -> int:
        while (parent := parents.setdefault(number, number)) != number:
            parents[number] = parents[parent]
            number = parent
        return number

    for first, second in _near_pairs(different[:, 0], different[:, 1]):
        parents[root(first)] = root(second)
    roots = np.arange(len(different))
    for number in list(parents):
        roots[number] = root(number)
    roots = roots[group_of.ravel()]
    return equal_groups(roots)


def _near_pairs(phashes: np.ndarray, dhashes: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of different hashes within the bounds."""
    pairs: list[tuple[int, int]] = []
    for mask in _band_masks():
        keys = phashes & mask
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        places = np.arange(len(keys))
        for distance in range(1, MAX_NEIGHBOURS + 1):
            places = places[places + distance < len(keys)]
            places = places[keys[places] == keys[places + distance]]
            if not len(places):
                break
            first, second = order[places], order[places + distance]
            is_near = np.bitwise_count(phashes[first] ^ phashes[second]) <= MAX_PHASH_BITS
            is_near &= np.bitwise_count(dhashes[first] ^ dhashes[second]) <= MAX_DHASH_BITS
            pairs += zip(first[is_near].tolist(), second[is_near].tolist(), strict=True)
    return pairs


def _band_masks() -> list[np.uint64]:
    """Return the masks of each two bands."""
    bands, start = [], 0
    for size in BAND_SIZES:
        bands.append((2**size - 1) << start)
        start += size
    return [np.uint64(first | second) for first, second in combinations(bands, 2)]
