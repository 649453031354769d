"""Cached arrays are found by key, and made anew where damaged."""

import os
import pickle

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from clipgraft.cache import CachedArrays, ContentCache

ARRAYS = {
    "bytes": np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8),
    "halves": np.random.default_rng(1).normal(size=(3, 32, 32)).astype(np.float16),
    "floats": np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32),
}


def test_arrays_are_found_by_their_keys_in_any_order(tmp_path):
    cache = ContentCache(tmp_path / "cache", "crops")
    assert cache.find(ARRAYS) == {}
    cache.add({"bytes": ARRAYS["bytes"], "halves": ARRAYS["halves"]})
    cache.add({"floats": ARRAYS["floats"]})
    found = ContentCache(tmp_path / "cache", "crops").find([*ARRAYS, "other"])
    assert found.keys() == ARRAYS.keys()
    arrays = CachedArrays(found[key] for key in ("floats", "bytes", "halves"))
    for key, array in zip(("floats", "bytes", "halves"), arrays, strict=True):
        assert array.dtype == ARRAYS[key].dtype
        assert np.array_equal(array, ARRAYS[key])
    assert np.array_equal(arrays[1:][0], ARRAYS["bytes"])


def flip(segment):
    content = bytearray(segment.read_bytes())
    content[-5] ^= 0xFF
    segment.write_bytes(content)


def exchange(segment):
    """Give one array the other's values; the file is whole."""
    arrays = load_file(segment)
    arrays["x"], arrays["y"] = arrays["y"], arrays["x"]
    with safe_open(segment, "np") as file:
        check_sums = file.metadata()
    save_file(arrays, segment, metadata=check_sums)


DAMAGE = {
    "flipped": flip,
    "exchanged": exchange,
    "cut short": lambda segment: segment.write_bytes(segment.read_bytes()[:-20]),
    "cut in its header": lambda segment: segment.write_bytes(segment.read_bytes()[:50]),
    "empty": lambda segment: segment.write_bytes(b""),
    "no safetensors": lambda segment: segment.write_bytes(b"\xff" * 5000),
    "without sums": lambda segment: save_file(load_file(segment), segment),
    "of other names": lambda segment: save_file({"z": np.zeros(3, np.uint8)}, segment),
    "deleted": lambda segment: segment.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_arrays_are_not_found_and_said_once(tmp_path, damage, caplog):
    cache = ContentCache(tmp_path, "crops")
    x, y = np.arange(100), np.arange(100) + 1
    cache.add({"x": x, "y": y})
    (segment,) = tmp_path.iterdir()
    DAMAGE[damage](segment)
    assert cache.find(["x", "y"]) == {}
    cache.add({"x": x, "y": y})
    assert np.array_equal(CachedArrays(cache.find(["x"]).values())[0], x)
    told = [record.message for record in caplog.records]
    assert len(told) == (damage not in ("deleted", "of other names"))
    assert all(f"{segment} is damaged" in line and "crops are made anew" in line for line in told)


def test_partial_files_of_killed_processes_are_cleared(tmp_path):
    part = tmp_path / ".x.safetensors.1.part"
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    ContentCache(tmp_path, "crops")
    assert not part.exists()


def test_arrays_are_sent_to_another_process_without_content(tmp_path):
    arrays = CachedArrays(ContentCache(tmp_path, "crops").add({"bytes": ARRAYS["bytes"]}).values())
    assert np.array_equal(arrays[0], ARRAYS["bytes"])
    sent = pickle.dumps(arrays)
    assert len(sent) < ARRAYS["bytes"].nbytes
    assert np.array_equal(pickle.loads(sent)[0], ARRAYS["bytes"])
