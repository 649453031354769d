"""Images that look alike, against every pair compared."""

import io
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from clipgraft.data import near_duplicates
from clipgraft.data.images import open_image
from clipgraft.data.near_duplicates import MAX_DHASH_BITS, MAX_PHASH_BITS, near_groups, perceptual_hash


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def copies(image: Image.Image) -> Iterator[Image.Image]:
    yield jpeg(image, 50)
    yield image.resize((image.width // 2, image.height // 2))
    yield image.convert("L").convert("RGB")
    yield ImageEnhance.Brightness(image).enhance(0.9)


def every_pair(phashes: np.ndarray, dhashes: np.ndarray) -> list[list[int]]:
    """Group by comparing every pair, through others too."""
    groups = [{number} for number in range(len(phashes))]
    for first, second in combinations(range(len(phashes)), 2):
        differ = int(phashes[first] ^ phashes[second]), int(dhashes[first] ^ dhashes[second])
        if differ[0].bit_count() <= MAX_PHASH_BITS and differ[1].bit_count() <= MAX_DHASH_BITS:
            one, other = (next(g for g in groups if number in g) for number in (first, second))
            if one is not other:
                groups.remove(other)
                one |= other
    return sorted(sorted(group) for group in groups if len(group) > 1)


def with_flipped_bits(hashes: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    flipped = hashes.copy()
    for number in range(len(hashes)):
        for bit in random.choice(64, random.integers(0, most + 1), replace=False):
            flipped[number] ^= np.uint64(1) << np.uint64(bit)
    return flipped


@pytest.mark.parametrize("seed", range(5))
def test_groups_are_those_of_every_pair(seed: int) -> None:
    random = np.random.default_rng(seed)
    phashes = random.integers(0, 2**64, 60, dtype=np.uint64)
    dhashes = random.integers(0, 2**64, 60, dtype=np.uint64)
    for _ in range(2):  # near copies of copies, some of them beyond the bounds
        phashes = np.r_[phashes, with_flipped_bits(phashes, MAX_PHASH_BITS + 2, random)]
        dhashes = np.r_[dhashes, with_flipped_bits(dhashes, MAX_DHASH_BITS + 2, random)]
    groups = near_groups(phashes, dhashes)
    assert sorted(groups) == every_pair(phashes, dhashes)
    assert groups


def test_a_crowd_of_equal_hashes_is_one_group_at_once() -> None:
    (group,) = near_groups(np.full(100_000, 7, np.uint64), np.full(100_000, 9, np.uint64))
    assert group == list(range(100_000))


def test_a_crowd_that_agrees_in_two_bands_costs_no_square() -> None:
    phashes = np.arange(20_000, dtype=np.uint64) << np.uint64(32)
    dhashes = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    assert near_groups(phashes, dhashes) == []


def test_nothing_is_alike_among_none_and_one() -> None:
    empty = np.empty(0, np.uint64)
    assert near_groups(empty, empty) == []
    assert near_groups(np.array([1], np.uint64), np.array([1], np.uint64)) == []


def test_copies_of_photographs_are_found_and_nothing_else(flickr8k_dir: Path) -> None:
    originals = [open_image(path) for path in sorted((flickr8k_dir / "Images").glob("*.jpg"))[:20]]
    shown = [image for original in originals for image in (original, *copies(original))]
    hashes = [perceptual_hash(image) for image in shown]
    groups = near_groups(*(np.array(column, np.uint64) for column in zip(*hashes, strict=True)))
    assert groups == [list(range(first, first + 5)) for first in range(0, 100, 5)]


def test_hashes_are_those_of_imagehash(flickr8k_dir: Path) -> None:
    import imagehash

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    photographs = [open_image(path) for path in sorted((flickr8k_dir / "Images").glob("*.jpg"))]
    for image in (noise, *photographs):
        found = perceptual_hash(image)
        assert f"{found.phash:016x}" == str(imagehash.phash(image))
        assert f"{found.dhash:016x}" == str(imagehash.dhash(image))


def test_plain_images_of_any_grey_look_alike() -> None:
    hashes = {perceptual_hash(Image.new("RGB", (50, 40), (grey,) * 3)) for grey in (1, 77, 200, 255)}
    assert len(hashes) == 1


def test_bands_cover_all_bits_once() -> None:
    masks = [int(mask) for mask in near_duplicates._band_masks()]
    assert len(masks) == 15
    assert all(sum(mask >> bit & 1 for mask in masks) == 5 for bit in range(64))
