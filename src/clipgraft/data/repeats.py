"""Keys that come more than once among many, found in little memory."""

from typing import NamedTuple

import numpy as np

_CHUNK = 1 << 20
"""Keys looked up at a time, so that only one sorted copy of all keys is held."""


class Repeats(NamedTuple):
    """Where repeated keys stand."""

    places: np.ndarray
    """Places of all keys that come more than once, in order."""
    num_different: int
    """Different keys, those that come once included."""


def find_repeats(keys: np.ndarray) -> Repeats:
    """Find the keys that come more than once."""
    ordered = np.sort(keys)
    is_new = np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)]
    repeated = np.unique(ordered[~is_new])
    num_different = int(is_new.sum())
    del ordered, is_new
    found = [np.empty(0, np.int64)]
    for start in range(0, len(keys) if len(repeated) else 0, _CHUNK):
        part = keys[start : start + _CHUNK]
        nearest = repeated[np.minimum(np.searchsorted(repeated, part), len(repeated) - 1)]
        found.append(start + np.flatnonzero(nearest == part))
    return Repeats(np.concatenate(found), num_different)


def equal_groups(keys: np.ndarray) -> list[list[int]]:
    """Group the places of keys that come more than once, in order."""
    places = find_repeats(keys).places
    groups: dict[int, list[int]] = {}
    for place, key in zip(places.tolist(), keys[places].tolist(), strict=True):
        groups.setdefault(key, []).append(place)
    return list(groups.values())
