"""Data sets by name: what is listed, and what no name reaches."""

import pytest

from clipgraft.errors import MissingFileError, UserError
from clipgraft.studio.data_folders import DataFolders


@pytest.fixture
def folders(tmp_path):
    for name in ("photos", "A set", ".hidden"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "file.txt").write_text("no folder")
    (tmp_path / "outside").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "inner").symlink_to(tmp_path / "data" / "photos")
    (tmp_path / "data" / "dangling").symlink_to(tmp_path / "nowhere")
    return DataFolders(tmp_path / "data")


def test_folders_are_listed_after_the_whole(folders, tmp_path):
    assert folders.names() == ["", "A set", "inner", "photos"]
    assert folders.folder("") == (tmp_path / "data").resolve()
    assert folders.folder("A set") == (tmp_path / "data" / "A set").resolve()


@pytest.mark.parametrize(
    "name", ["..", "../outside", "/etc", "photos/..", "photos/", "a\\b", "photos\0", "./photos", "//", "."]
)
def test_a_name_with_path_parts_is_refused(folders, name):
    with pytest.raises(UserError, match=r"a name has no path parts"):
        folders.folder(name)


def test_a_link_out_of_the_folder_is_refused(folders):
    with pytest.raises(UserError, match=r"link is a link out of data; put the file itself in its place"):
        folders.folder("link")


@pytest.mark.parametrize("name", ["nope", "file.txt", ".hidden", "dangling", "x" * 255, "ü" * 255, "\ud800"])
def test_what_is_no_data_set_is_not_there(folders, name):
    with pytest.raises(MissingFileError, match="there is no data set"):
        folders.folder(name)


def test_without_a_folder_nothing_is_trained():
    folders = DataFolders(None)
    assert folders.names() == []
    with pytest.raises(UserError, match="start it with --data and a folder of data sets"):
        folders.folder("photos")


def test_a_folder_that_is_not_there_is_said_at_the_start(tmp_path):
    with pytest.raises(MissingFileError, match=r"--data .*nope: no such folder"):
        DataFolders(tmp_path / "nope")


def test_a_folder_that_went_away_is_said(folders, tmp_path):
    (tmp_path / "data").rename(tmp_path / "gone")
    with pytest.raises(MissingFileError, match="the studio's data folder is gone"):
        folders.names()
