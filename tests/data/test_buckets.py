"""Aspect-ratio buckets: their sizes, what is lost of an image, and batches of one bucket each."""

import math

import numpy as np
import pytest

from clipgraft.data.batches import ShuffledBatches
from clipgraft.data.buckets import (
    Bucket,
    bucket_batches,
    group_by_size,
    make_buckets,
    nearest_bucket,
    num_bucket_batches,
)

SIZES = [(128, 32), (512, 64), (768, 64), (64, 16), (8, 8), (24, 16)]


def kohyas_sizes(side, min_size, max_size, divisible):
    """sd-scripts' own function, from its source."""
    width = int(math.sqrt(side * side) // divisible) * divisible
    found = {(width, width)}
    width = min_size
    while width <= max_size:
        height = min(max_size, int((side * side // width) // divisible) * divisible)
        if height >= min_size:
            found |= {(width, height), (height, width)}
        width += divisible
    return found


def test_sizes_of_stable_diffusion_are_those_of_kohya():
    ours = {(bucket.width, bucket.height) for bucket in make_buckets(512, 64)}
    assert ours == kohyas_sizes(512, 256, 1024, 64)
    assert {(512, 512), (448, 576), (384, 640)} <= ours


@pytest.mark.parametrize(("side", "step"), SIZES)
def test_buckets_have_a_square_and_at_most_its_area(side, step):
    buckets = make_buckets(side, step)
    assert Bucket(side, side) in buckets
    assert len(set(buckets)) == len(buckets)
    for bucket in buckets:
        assert bucket.height * bucket.width <= side * side
        assert bucket == (side, side) or (bucket.height % step, bucket.width % step) == (0, 0)
        assert Bucket(bucket.width, bucket.height) in buckets


@pytest.mark.parametrize(("side", "step"), SIZES)
def test_bucket_of_an_image_has_the_nearest_ratio(side, step):
    buckets = make_buckets(side, step)
    assert buckets[nearest_bucket(300, 300, buckets)] == (side, side)
    for height, width in [(100, 133), (133, 100), (400, 600), (16, 1600), (1600, 16), (211, 97)]:
        nearest = buckets[nearest_bucket(height, width, buckets)]
        ratios = [
            max(b.width * height / (b.height * width), b.height * width / (b.width * height)) for b in buckets
        ]
        found = max(
            nearest.width * height / (nearest.height * width),
            nearest.height * width / (nearest.width * height),
        )
        assert found == pytest.approx(min(ratios))
        turned = buckets[nearest_bucket(width, height, buckets)]
        assert turned == (nearest.width, nearest.height)


def batches_of(bucket_of, batch_size, seed=3):
    order = np.random.default_rng(seed).permutation(len(bucket_of))
    return order, bucket_batches(order, np.array(bucket_of), batch_size)


def test_batches_hold_one_bucket_and_every_item_once():
    bucket_of = np.random.default_rng(0).integers(0, 5, 83).astype(np.uint8)
    for seed in range(5):
        _, batches = batches_of(bucket_of, 8, seed)
        assert len(batches) == num_bucket_batches(bucket_of, 8)
        assert sorted(np.concatenate(batches)) == list(range(83))
        assert all(len(set(bucket_of[batch])) == 1 for batch in batches)
        assert sum(len(batch) < 8 for batch in batches) <= 5


def test_batches_come_in_the_order_of_their_first_items():
    order, batches = batches_of([0, 1, 0, 1, 2, 0, 1, 0, 0], 2)
    place = {item: index for index, item in enumerate(order.tolist())}
    naive, waiting = [], {}
    for item in order.tolist():
        bucket = [0, 1, 0, 1, 2, 0, 1, 0, 0][item]
        if len(waiting.get(bucket, [None, None])) == 2:
            waiting[bucket] = []
            naive.append(waiting[bucket])
        waiting[bucket].append(item)
    assert [batch.tolist() for batch in batches] == naive
    assert [place[int(batch[0])] for batch in batches] == sorted(place[int(batch[0])] for batch in batches)


@pytest.mark.parametrize("count", [4, 12, 13, 15])
def test_one_bucket_alone_has_full_batches_only(count):
    plain = ShuffledBatches(count, 4, seed=3)
    _, order = plain.shuffle(7)
    batches = bucket_batches(order, np.zeros(count, np.uint8), 4)
    assert [batch.tolist() for batch in batches] == [rows.tolist() for rows in plain.rows(order, 0)]
    assert len(batches) == len(plain) == num_bucket_batches(np.zeros(count, np.uint8), 4)


def test_equal_sizes_are_grouped_in_the_order_of_their_first():
    assert group_by_size("abacaba", 2) == [[0, 2], [4, 6], [1, 5], [3]]
    assert group_by_size([], 2) == []
