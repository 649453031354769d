"""Sums of files' bytes: right, and of what the file holds now."""

import hashlib

import pytest

from clipgraft.cache import content_sums
from clipgraft.errors import MissingFileError


def test_sums_are_sha256_in_the_order_of_the_paths(tmp_path):
    paths = [tmp_path / f"{index}.jpg" for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 1000)
    expected = [hashlib.sha256(bytes([index]) * 1000).hexdigest() for index in range(20)]
    assert content_sums(paths) == expected == content_sums(paths)


def test_file_that_changed_since_is_read_again(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    before = content_sums([path])
    path.write_bytes(b"other")
    assert content_sums([path]) == [hashlib.sha256(b"other").hexdigest()] != before


def test_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"gone\.jpg: no such image"):
        content_sums([tmp_path / "gone.jpg"])
