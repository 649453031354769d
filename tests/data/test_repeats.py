"""Repeated keys, against a plain count."""

from collections import Counter

import numpy as np
import pytest

from clipgraft.data import repeats
from clipgraft.data.repeats import equal_groups, find_repeats


@pytest.mark.parametrize("num_keys", [0, 1, 2, 50, 1000])
def test_repeats_are_those_of_a_plain_count(num_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_CHUNK", 64)
    keys = np.random.default_rng(num_keys).integers(0, max(1, num_keys), num_keys, dtype=np.uint64)
    counts = Counter(keys.tolist())
    found = find_repeats(keys)
    assert found.places.tolist() == [place for place, key in enumerate(keys.tolist()) if counts[key] > 1]
    assert found.num_different == len(counts)


def test_groups_are_the_places_of_equal_keys() -> None:
    assert equal_groups(np.array([5, 7, 5, 2, 7, 5], np.int64)) == [[0, 2, 5], [1, 4]]
    assert equal_groups(np.array([1, 2, 3], np.int64)) == []
