"""The cache stays below its bound, and nothing in use is evicted."""

import errno
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from filelock import FileLock

from clipgraft.cache import bound_cache, cache_bound, cache_dir, cache_size, cached_file
from clipgraft.cached_arrays import ContentCache
from clipgraft.data.formats import load_dataset
from clipgraft.errors import MissingFileError, UserError
from clipgraft.settings import DataSettings

ARRAY = np.arange(25_000, dtype=np.uint8)
HOLD = """
import sys
import numpy as np
from pathlib import Path
from clipgraft.cached_arrays import ContentCache
arrays = ContentCache(Path(sys.argv[1]), "crops").arrays([sys.argv[2]], lambda indices: [np.zeros(25_000)])
print("held", flush=True)
sys.stdin.read()
"""


def made(indices):
    return (ARRAY for _ in indices)


@pytest.fixture
def crops(tmp_path, monkeypatch):
    """The folder of crops in an empty cache, bounded to 100,000 bytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    before = cache_bound()
    bound_cache(1e-4)
    yield cache_dir() / "crops"
    bound_cache(before / 1e9)


def add(folder, *keys):
    """Write an array of 25,000 bytes for each key, a minute apart, the first one longest ago."""
    for age, key in enumerate(keys):
        (place,) = ContentCache(folder, "crops").add({key: ARRAY}).values()
        used = time.time() - 3600 + 60 * age
        os.utime(place.segment.path, (used, used))
        del place


def there(folder, *keys):
    return "".join(sorted(ContentCache(folder, "crops").find(keys)))


def test_least_recently_used_files_are_evicted_at_the_bound(crops):
    add(crops, *"abc")
    ContentCache(crops, "crops").arrays("a", lambda indices: [])  # not read, but used
    add(crops, "d")
    assert cache_size() <= cache_bound() == 100_000
    assert there(crops, *"abcd") == "acd"


def test_kinds_are_bounded_together_and_others_not_at_all(crops):
    (cache_dir() / "flatland8k").mkdir(parents=True)
    (cache_dir() / "flatland8k" / "a.jpg").write_bytes(bytes(200_000))
    add(crops, "a")
    for name in ("b", "c", "d"):
        cached_file("shards", name, lambda path: path.write_bytes(bytes(30_000)))
    assert there(crops, "a") == ""
    assert sorted(path.name for path in (cache_dir() / "shards").iterdir()) == ["b", "c", "d"]
    assert (cache_dir() / "flatland8k" / "a.jpg").exists()


def test_files_that_this_process_refers_to_are_not_evicted(crops):
    cache = ContentCache(crops, "crops")
    held = cache.arrays("ab", made)
    received = pickle.loads(pickle.dumps(cache.arrays("c", made)))
    bound_cache(0)
    assert there(crops, *"abc") == "abc"
    del held
    bound_cache(0)
    assert there(crops, *"abc") == "c"
    assert np.array_equal(received[0], ARRAY)


def test_files_that_another_process_refers_to_are_not_evicted(crops):
    add(crops, "a", "b")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, crops, "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        bound_cache(0)
        assert there(crops, "a", "b") == "a"
        other.kill()
    bound_cache(0)
    assert there(crops, "a", "b") == ""
    assert len(list((cache_dir() / "in_use").glob("*.txt"))) == 1  # its own


def test_what_another_process_evicts_meanwhile_counts(crops):
    add(crops, "a", "b")
    with ThreadPoolExecutor(1) as pool:
        with FileLock(cache_dir() / "in_use" / ".lock"):
            bounding = pool.submit(bound_cache, 3e-5)
            wait([bounding], timeout=0.2)
            next(crops.glob("*.safetensors")).unlink()  # as another process would
        bounding.result()
    assert len(there(crops, *"ab")) == 1


def test_a_made_file_is_found_and_a_failed_one_is_gone(crops):
    made = []

    def make(path):
        made.append(path)
        path.write_bytes(b"listing")
        if len(made) == 1:
            raise OSError(errno.ENOSPC, "disk full")

    with pytest.raises(OSError, match="disk full"):
        cached_file("listings", "a.arrow", make)
    assert list((cache_dir() / "listings").iterdir()) == []
    for _ in range(2):
        assert cached_file("listings", "a.arrow", make).path.read_bytes() == b"listing"
    assert len(made) == 2


def test_cache_that_can_only_be_read_is_read(crops, monkeypatch):
    add(crops, "a")
    for folder in (cache_dir(), crops):
        folder.chmod(0o500)
    if os.access(crops, os.W_OK):
        pytest.skip("this user may write everywhere")
    assert there(crops, "a") == "a"
    bound_cache(0)
    assert there(crops, "a") == "a"
    for folder in (cache_dir(), crops):
        folder.chmod(0o700)


def test_a_source_is_loaded_under_the_bound_of_its_settings(crops):
    add(crops, "a", "b")
    with pytest.raises(MissingFileError):
        load_dataset(DataSettings(source="nowhere", cache_gb=3e-5))
    assert (cache_bound(), there(crops, "a", "b")) == (30_000, "b")


def test_negative_bound_is_refused():
    with pytest.raises(UserError, match="cache_gb"):
        DataSettings.build({"cache_gb": -1})
