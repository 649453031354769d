"""Files are written whole or not at all, and read through one door with bounds."""

import errno
import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipgraft.errors import CheckpointError, DataError, MissingFileError, UserError, one_line
from clipgraft.files import (
    atomic_write,
    clear_parts,
    file_sha256,
    new_folder,
    read_json,
    read_jsonl,
    read_text,
    read_toml,
    write_bytes,
    write_json,
)

DEEP = 100_000


def write_half(path):
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError


def fill_half(out):
    with new_folder(out) as folder:
        (folder / "a").touch()
        raise KeyError


def test_a_file_takes_its_place_when_it_is_written_whole(tmp_path):
    path = tmp_path / "page"
    path.write_bytes(b"old")
    with atomic_write(path) as temporary:
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


def test_two_threads_may_write_a_file_at_once(tmp_path):
    path = tmp_path / "page"
    with ThreadPoolExecutor(1) as pool, atomic_write(path) as temporary:
        temporary.write_bytes(b"first")
        pool.submit(write_bytes, path, b"second").result()
        assert path.read_bytes() == b"second"
        assert temporary.read_bytes() == b"first"
    assert path.read_bytes() == b"first"


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(KeyError):
        fill_half(out)
    assert list(out.parent.iterdir()) == []
    out.mkdir()
    with new_folder(out) as folder:
        (folder / "a").touch()
        assert list(out.iterdir()) == []
    assert [path.name for path in out.iterdir()] == ["a"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_clear_parts_keeps_what_is_being_written(tmp_path):
    old, fresh, other = (tmp_path / name for name in (".a.1.part", ".b.2.part", "c.part"))
    for path in (old, fresh, other):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - 7200))
    os.utime(other, (0, 0))
    clear_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.2.part", "c.part"]
    clear_parts(tmp_path, stale_seconds=0)
    assert [path.name for path in tmp_path.iterdir()] == ["c.part"]


def test_clear_parts_keeps_a_folder_that_is_written_within(tmp_path):
    for name in (".old.1.part", ".fresh.2.part"):
        (tmp_path / name / "images").mkdir(parents=True)
        for path in (tmp_path / name / "images", tmp_path / name):
            os.utime(path, (0, 0))
    (tmp_path / ".fresh.2.part" / "images" / "a.png").touch()
    clear_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".fresh.2.part"]


def test_clear_parts_passes_over_what_others_finish(tmp_path):
    is_over = threading.Event()

    def write_on():
        while not is_over.is_set():
            for number in range(20):
                (tmp_path / f".{number}.part").touch()
            for part in tmp_path.glob(".*.part"):
                part.rename(tmp_path / "done")

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_on)
        try:
            for _ in range(400):
                clear_parts(tmp_path)
        finally:
            is_over.set()
        writing.result()
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is not JSON: Expecting value"),
        (b"{", "is not JSON"),
        (b"[]", "is not JSON of the right type: an object is expected, not a list"),
        (b"null", "an object is expected, not NoneType"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON as read here: a number has over 4,300 digits"),
        (b"[" * DEEP + b"]" * DEEP, "nested deeper than 64"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
        (b'{"a": ["\\ud83d"]}', r"'.*ud83d' holds half a surrogate pair"),
        (b'{"\\udc00": 1}', "half a surrogate pair"),
        (b'"\xff"', r"is not UTF-8 text \(byte 1\)"),
    ],
)
def test_read_json_refuses_damage_by_the_name_of_the_file(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path, error=CheckpointError)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_json_takes_bounded_nesting_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a":' * 63 + b'"\xf0\x9f\x98\x80"' + b"}" * 63)
    value = read_json(path)
    for _ in range(63):
        value = value["a"]
    assert value == "😀"


def test_readers_name_a_missing_file_a_folder_and_one_too_large(tmp_path):
    with pytest.raises(MissingFileError, match=r"none.json: no such file") as caught:
        read_json(tmp_path / "none.json")
    assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(DataError, match="is not a file"):
        read_text(tmp_path)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(DataError, match="has 5 bytes; at most 4 are read"):
        read_text(tmp_path / "large", max_bytes=4)


def test_read_json_lines_names_file_and_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n\n{"st', encoding="utf-8")
    with pytest.raises(DataError, match=r"log.jsonl:3 is not JSON"):
        read_jsonl(path)
    path.write_text('{"step": 1}\n\n{"step": 2}\n', encoding="utf-8")
    assert read_jsonl(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a = ", "is not TOML"), ("a = " + "[" * DEEP, "nested deeper"), ("a = " + "9" * 5000, "is not TOML")],
)
def test_read_toml_refuses_damage_in_one_line(tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_toml(path)


@pytest.mark.parametrize(
    "line",
    [
        r'name = "C:\users\me"',
        r'name = "C:\data"',
        r'name = "C:\UserS"',
        r'name = "D:\\photos\\\"',
        r'names = ["a", "C:\data"]',
        r'name = "\ud800"',
    ],
)
def test_a_path_of_windows_in_toml_gets_advice(tmp_path, line):
    path = tmp_path / "recipe.toml"
    path.write_text(f"{line}\nseed = 1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"at line 1, .*; in double quotes .*: write it twice, or use sing"):
        read_toml(path)
    path.write_text(line.replace('"', "'"), encoding="utf-8")
    assert "\\" in str(read_toml(path))


@pytest.mark.parametrize("name", [r"C:\users\a.png", r"C:\dogs\a.png"])
def test_a_path_of_windows_in_json_gets_advice(tmp_path, name):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "A dog", "init_image": "{name}"}}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"jsonl:1 is not JSON: Invalid .*; a backslash is written twice, as in C:"
    ):
        read_jsonl(path)
    path.write_text(path.read_text().replace("\\", "\\\\"), encoding="utf-8")
    assert read_jsonl(path)[0]["init_image"] == name


@pytest.mark.parametrize("line", ["name = ", 'name = "a', "name = C:\\data"])
def test_other_mistakes_in_toml_get_no_such_advice(tmp_path, line):
    path = tmp_path / "recipe.toml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_toml(path)
    assert "backslash" not in str(caught.value)


def test_a_full_disk_is_told_with_the_folder_being_written(tmp_path):
    def fill(folder):
        (folder / "a").write_text("a")
        raise OSError(errno.ENOSPC, "No space left on device", "source", None, "copy")

    with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "out") as folder:
        fill(folder)
    assert one_line(caught.value) == f"no space left on the disk ({tmp_path}/out); free some and run again"
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_told_with_the_file_that_was_being_written(tmp_path):
    path = tmp_path / "weights"
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")  # as a write raises it: without a name
    assert one_line(caught.value) == f"no space left on the disk ({path}); free some and run again"
    assert list(tmp_path.iterdir()) == []


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    write_json(tmp_path / "x.json", {"loss": float("nan"), "rows": [1.0, float("inf")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": None, "rows": [1.0, None]}


def test_file_checksum_is_the_systems(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(range(256)) * 40_000)
    expected = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert file_sha256(path) == expected.split()[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_a_byte_order_mark_is_read_by_it(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("é\r\nb".encode(encoding))
    assert read_text(tmp_path / "a.txt", by_people=True) == "é\nb"
