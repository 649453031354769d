"""Names in caption files and the files that they mean."""

import unicodedata
from pathlib import Path

import pytest

from clipgraft.data.formats import load_dataset
from clipgraft.data.names import NameIndex
from clipgraft.errors import DataError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (COMPOSED, DECOMPOSED),
        (DECOMPOSED, COMPOSED),
        ("IMG_1.JPG", "img_1.jpg"),
        ("sub/a.jpg", "sub\\a.jpg"),
        ("sub/a.jpg", "./sub//a.jpg"),
    ],
)
def test_name_is_the_file_that_a_file_system_takes(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    (tmp_path / "captions.txt").write_text(f"{name},A dog\n")
    if "/" in file:
        (tmp_path / "b.jpg").touch()
    (image,) = load_dataset(tmp_path).images
    assert (image.image_id, image.captions) == (file, ("A dog",))


def test_exact_name_wins_and_a_double_meaning_is_none() -> None:
    index = NameIndex({"a.jpg", "A.jpg"})
    assert index.same_file("A.jpg") == "A.jpg"
    assert index.same_file("a.JPG") is None


def test_name_is_looked_for_below_its_folder_alone() -> None:
    index = NameIndex({"train/x/1.jpg", "test/1.jpg", "test/2.jpg"})
    assert index.below("train/", "1.jpg", "list") == "train/x/1.jpg"
    assert index.below("train/", "2.jpg", "list") == "train/2.jpg"
    assert index.below("", "2", "list") == "test/2.jpg"
    assert index.below("test/", "test/2.jpg", "list") == "test/2.jpg"
    with pytest.raises(DataError, match=r"list: image name '1.jpg' may be test/1.jpg or train/x/1.jpg"):
        index.below("", "1.jpg", "list")
