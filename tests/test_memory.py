"""Memory is given back, and what was in it can still be read."""

import mmap
import os
import sys

import pytest

from clipgraft.memory import release_files
from helpers import resident_kilobytes


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux alone")
def test_pages_of_mapped_files_are_given_back_and_read_again(tmp_path):
    content = os.urandom(2**22)
    folders = [tmp_path / name for name in ("its own", "another")]
    (tmp_path / "link").symlink_to(folders[0])
    for folder in folders:
        folder.mkdir()
        (folder / "weights").write_bytes(content)
    opened = [open(folder / "weights", "rb") for folder in folders]  # noqa: SIM115
    mapped = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in opened]
    assert all(bytes(each) == content for each in mapped)
    assert all(resident_kilobytes(folder / "weights") == 2**12 for folder in folders)
    release_files(tmp_path / "link")
    assert [resident_kilobytes(folder / "weights") for folder in folders] == [0, 2**12]
    assert bytes(mapped[0]) == content
    for each in (*mapped, *opened):
        each.close()
