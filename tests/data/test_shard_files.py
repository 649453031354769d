"""Shards are found in a folder, by patterns and as single files; other folders are left to other readers."""

import json

import pytest

from clipgraft.data.formats import load_dataset
from clipgraft.data.shard_files import find_shards
from clipgraft.errors import DataError, MissingFileError
from clipgraft.settings import DataSettings
from shard_writers import jpeg, write_shards, write_tar


def names(source):
    return [shard.name for shard in find_shards(str(source))]


@pytest.fixture
def folder(tmp_path):
    """Twelve small shards, with img2dataset's metadata beside them."""
    for number in range(12):
        write_tar(tmp_path / f"{number:05d}.tar", [("1.jpg", jpeg(number)), ("1.txt", "a dog")])
        (tmp_path / f"{number:05d}.parquet").write_bytes(b"metadata")
    (tmp_path / ".hidden.tar").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "00012.tar").write_bytes(b"")
    (tmp_path / "README.md").write_text("# A set")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("", range(12)),
        ("{00000..00003}.tar", range(4)),
        ("{00002,00007,00011}.tar", (2, 7, 11)),
        ("000{00..02..2}.tar", (0, 2)),
        ("0000[0-2].tar", range(3)),
        ("0001*.tar", (10, 11)),
        ("00005.tar", (5,)),
    ],
)
def test_shards_are_found_by_folder_pattern_and_file(folder, pattern, numbers):
    assert names(f"{folder}/{pattern}") == [f"{number:05d}.tar" for number in numbers]


@pytest.mark.parametrize("files", [3, [3], [{}], [{"filename": 3}], {"filename": "a.arrow"}])
def test_state_of_another_tool_hides_no_file(tmp_path, files):
    (tmp_path / "a.arrow").write_bytes(b"")
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    assert names(tmp_path) == ["a.arrow"]


def test_shards_in_subfolders_are_named_with_them(tmp_path):
    for split in ("train", "val"):
        write_shards(tmp_path / split, 4, 2)
    assert names(tmp_path) == ["train/00000.tar", "train/00001.tar", "val/00000.tar", "val/00001.tar"]
    assert [shard.split for shard in find_shards(str(tmp_path))] == ["train", "train", "val", "val"]


def test_folder_of_images_is_no_source_of_shards(folder):
    (folder / "images").mkdir()
    (folder / "images" / "a.jpg").write_bytes(jpeg(0))
    assert names(folder) == []
    with pytest.raises(DataError, match=r"there are shards, too: name them as .*/\*\.tar"):
        load_dataset(folder)
    (folder / "images" / "a.txt").write_text("a dog")
    assert load_dataset(folder).format == "caption files beside images"


def test_file_with_braces_in_its_name_is_a_file(tmp_path):
    path = write_tar(tmp_path / "{a,b}.tar", [("1.jpg", jpeg(0)), ("1.txt", "a dog")])
    assert names(path) == ["{a,b}.tar"]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst"])
def test_compressed_tars_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(DataError, match=rf"{name} is compressed; .* unpack it to a \.tar"):
            load_dataset(source)


def test_what_is_not_there_is_named(folder):
    for pattern, message in (
        ("{00010..00012}.tar", r"00012\.tar: no such shard or folder"),
        ("9*.tar", "no shard there; expected .tar, .parquet or .arrow files"),
        ("none.tar", r"none\.tar: no such shard or folder"),
    ):
        with pytest.raises(MissingFileError, match=message):
            load_dataset(f"{folder}/{pattern}")


def test_recipe_keeps_urls_and_makes_paths_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, kept in (
        ("s3://bucket/{0..9}.tar", "s3://bucket/{0..9}.tar"),
        ("hf://datasets/a/b", "hf://datasets/a/b"),
        ("set/{0..9}.tar", f"{tmp_path}/set/{{0..9}}.tar"),
        ("", ""),
    ):
        assert DataSettings(source=given).source == kept


def test_braces_beside_globs_and_folders(tmp_path):
    for name in ("train/a", "train/b", "val/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / f"{name}.tar", [("1.jpg", jpeg(0)), ("1.txt", "a dog")])
    for pattern in ("{train,val}/*.tar", "{train,val}", "{train/*,val/a.tar}"):
        assert names(f"{tmp_path}/{pattern}") == ["train/a.tar", "train/b.tar", "val/a.tar"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{0..3.tar", "braces cannot be read; expected pairs such as"),
        ("{0..99999999999}.tar", "stand for over 1,000,000 shards; name fewer"),
        ("{1..1000}{1..1000}{1..1000}.tar", "stand for over 1,000,000 shards; name fewer"),
        (f"{{0..{'9' * 5000}}}.tar", "braces cannot be read"),
    ],
)
def test_braces_that_cannot_be_expanded_are_one_line(tmp_path, pattern, message):
    with pytest.raises(DataError, match=message):
        load_dataset(f"{tmp_path}/{pattern}")
