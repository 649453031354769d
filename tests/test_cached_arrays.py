"""Cached arrays are found by key, and made anew where damaged."""

import os
import pickle

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from clipgraft import cached_arrays
from clipgraft.cached_arrays import ContentCache

ARRAYS = {
    "bytes": np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8),
    "halves": np.random.default_rng(1).normal(size=(3, 32, 32)).astype(np.float16),
    "floats": np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32),
}


class Maker:
    """Makes arrays of their keys' numbers, and remembers which."""

    def __init__(self, keys, fails_at=None):
        self.keys, self.made, self.fails_at = keys, [], fails_at

    def __call__(self, indices):
        for index in indices:
            if self.keys[index] == self.fails_at:
                raise ValueError("a damaged photograph")
            self.made.append(self.keys[index])
            yield np.arange(100) + ord(self.keys[index])


def numbers_of(keys):
    return [list(range(ord(key), ord(key) + 100)) for key in keys]


def test_arrays_are_found_by_their_keys_in_any_order(tmp_path):
    cache = ContentCache(tmp_path / "cache", "crops")
    assert cache.find(ARRAYS) == {}
    cache.add({"bytes": ARRAYS["bytes"], "halves": ARRAYS["halves"]})
    cache.add({"floats": ARRAYS["floats"]})
    assert ContentCache(tmp_path / "cache", "crops").find([*ARRAYS, "other"]).keys() == ARRAYS.keys()
    keys = ("floats", "bytes", "halves")
    arrays = ContentCache(tmp_path / "cache", "crops").arrays(keys, Maker(keys))
    for key, array in zip(keys, arrays, strict=True):
        assert array.dtype == ARRAYS[key].dtype
        assert np.array_equal(array, ARRAYS[key])
    assert np.array_equal(arrays[1:][0], ARRAYS["bytes"])
    assert np.array_equal(arrays[1:][1:][0], ARRAYS["halves"])


def test_only_missing_arrays_are_made_each_once(tmp_path):
    cache, done = ContentCache(tmp_path, "crops"), []
    first, second = Maker("aab"), Maker("cbad")
    assert [list(array) for array in cache.arrays("aab", first, done.append)] == numbers_of("aab")
    assert [list(array) for array in cache.arrays("cbad", second, done.append)] == numbers_of("cbad")
    assert (first.made, second.made, done) == (["a", "b"], ["c", "d"], [1, 2, 1, 2])


def test_arrays_made_before_a_failure_are_kept(tmp_path):
    with pytest.raises(ValueError, match="damaged"):
        ContentCache(tmp_path, "crops").arrays("abc", Maker("abc", fails_at="c"))
    again = Maker("abc")
    assert [list(array) for array in ContentCache(tmp_path, "crops").arrays("abc", again)] == numbers_of(
        "abc"
    )
    assert again.made == ["c"]


@pytest.mark.parametrize(("name", "bound"), [("SEGMENT_BYTES", 1600), ("SEGMENT_SECONDS", 0)])
def test_segments_are_written_by_size_and_by_time(tmp_path, monkeypatch, name, bound):
    monkeypatch.setattr(cached_arrays, name, bound)
    arrays = ContentCache(tmp_path, "crops").arrays("abcde", Maker("abcde"))
    assert len(list(tmp_path.iterdir())) == (3 if name == "SEGMENT_BYTES" else 5)
    assert [list(array) for array in arrays] == numbers_of("abcde")


def flip(segment):
    content = bytearray(segment.read_bytes())
    content[-5] ^= 0xFF
    segment.write_bytes(content)


def exchange(segment):
    """Give one array the other's values; the file is whole."""
    arrays = load_file(segment)
    arrays["x"], arrays["y"] = arrays["y"], arrays["x"]
    with safe_open(segment, "np") as file:
        checksums = file.metadata()
    save_file(arrays, segment, metadata=checksums)


DAMAGE = {
    "flipped": flip,
    "exchanged": exchange,
    "cut short": lambda segment: segment.write_bytes(segment.read_bytes()[:-20]),
    "cut in its header": lambda segment: segment.write_bytes(segment.read_bytes()[:50]),
    "empty": lambda segment: segment.write_bytes(b""),
    "no safetensors": lambda segment: segment.write_bytes(b"\xff" * 5000),
    "without sums": lambda segment: save_file(load_file(segment), segment),
    "of other names": lambda segment: save_file({"z": np.zeros(3, np.uint8)}, segment, {"z": "0"}),
    "deleted": lambda segment: segment.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_arrays_are_made_anew_and_said_once(tmp_path, damage, caplog):
    keys = ["x", "y"]
    ContentCache(tmp_path, "crops").arrays(keys, Maker(keys))
    (segment,) = tmp_path.iterdir()
    DAMAGE[damage](segment)
    for _ in range(2):
        arrays = ContentCache(tmp_path, "crops").arrays(keys, Maker(keys))
        assert [list(array) for array in arrays] == numbers_of(keys)
    told = [record.message for record in caplog.records]
    assert len(told) == (damage not in ("deleted", "of other names"))
    assert all(f"{segment} is damaged" in line and "crops are made anew" in line for line in told)


@pytest.mark.parametrize("damage", ["flipped", "exchanged", "empty", "deleted"])
def test_arrays_damaged_after_they_were_found_are_made_anew(tmp_path, damage):
    keys = ["x", "y"]
    ContentCache(tmp_path, "crops").arrays(keys, Maker(keys))
    places = ContentCache(tmp_path, "crops").arrays(keys, Maker(keys))
    (segment,) = tmp_path.iterdir()
    received = pickle.loads(pickle.dumps(places))  # as in a worker, which opens the file itself
    DAMAGE[damage](segment)
    assert [list(array) for array in received] == numbers_of(keys)


def test_start_reads_headers_and_no_arrays(tmp_path, monkeypatch):
    cache = ContentCache(tmp_path, "crops")
    cache.add({"x": np.zeros(10)})
    monkeypatch.setattr(cached_arrays.Segment, "read", None)
    assert cache.find(["x"]).keys() == {"x"}


def test_partial_files_of_killed_processes_are_cleared(tmp_path):
    part = tmp_path / ".x.safetensors.1.part"
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    ContentCache(tmp_path, "crops")
    assert not part.exists()


def test_arrays_are_sent_to_another_process_without_content(tmp_path):
    cache = ContentCache(tmp_path, "crops")
    cache.add({"bytes": ARRAYS["bytes"]})
    arrays = cache.arrays(["bytes"], Maker(["bytes"]))
    assert np.array_equal(arrays[0], ARRAYS["bytes"])
    sent = pickle.dumps(arrays)
    assert len(sent) < ARRAYS["bytes"].nbytes
    assert np.array_equal(pickle.loads(sent)[0], ARRAYS["bytes"])
