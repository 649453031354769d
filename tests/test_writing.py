"""A file is there whole, or as it was before."""

import pytest

from clipgraft.writing import write_bytes, written_whole


def write_half(path):
    with written_whole(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError


def test_a_file_takes_its_place_when_it_is_written_whole(tmp_path):
    path = tmp_path / "page"
    path.write_bytes(b"old")
    with written_whole(path) as temporary:
        temporary.write_bytes(b"ne")
        assert path.read_bytes() == b"old"
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert [child.name for child in tmp_path.iterdir()] == ["page"]


def test_a_file_stays_as_it_was_where_writing_it_fails(tmp_path):
    path = tmp_path / "page"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "text is no bytes")
    with pytest.raises(KeyError):
        write_half(path)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["page"]
