"""Uploaded images: what is kept, and for how long, with several threads at work."""

import os
import time
from pathlib import Path

import pytest
from PIL import Image

from clipgraft.studio.uploads import SECONDS_UNUSED, Uploads


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path, max_bytes=400, max_pixels=10_000)


def add(uploads: Uploads, *colors: str) -> list[str]:
    return [uploads.add_image(Image.new("RGB", (60, 60), color)).id for color in colors]


def date_back(uploads: Uploads, *names: str) -> None:
    """Let files be unused for longer than they are kept for."""
    long_ago = time.time() - 2 * SECONDS_UNUSED
    for name in names:
        os.utime(uploads.folder / name, (long_ago, long_ago))


def vanishing(monkeypatch, name: str) -> None:
    """Let another thread delete a file between listing its folder and asking for its size."""
    iterdir = Path.iterdir

    def listed(folder):
        found = list(iterdir(folder))
        (folder / name).unlink(missing_ok=True)
        return iter(found)

    monkeypatch.setattr(Path, "iterdir", listed)


def test_of_too_many_uploads_those_not_used_go_first(uploads):
    first, second = add(uploads, "red", "blue")
    date_back(uploads, first, second)
    uploads.path(first)
    [third] = add(uploads, "green")
    assert [uploads.has(each) for each in (first, second, third)] == [True, False, True]


def test_an_upload_deleted_by_another_thread_is_no_error(uploads, monkeypatch):
    first, second = add(uploads, "red", "blue")
    date_back(uploads, first, second)
    vanishing(monkeypatch, first)
    [third] = add(uploads, "green")
    vanishing(monkeypatch, second)
    uploads.delete_others([])
    assert [uploads.has(each) for each in (first, second, third)] == [False, False, True]


def test_a_file_that_another_thread_writes_stays_its_own(uploads):
    half_written = uploads.folder / f".{'a' * 64}.1.2.part"
    half_written.write_bytes(bytes(1000))
    date_back(uploads, half_written.name)
    [upload] = add(uploads, "red")
    uploads.delete_others([])
    assert uploads.has(upload)
    assert half_written.exists()
    Uploads(uploads.folder, max_bytes=400, max_pixels=10_000)  # the next start, with no other thread
    assert not half_written.exists()
