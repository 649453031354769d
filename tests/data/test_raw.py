"""A data folder: what of it may be read, and what its links may not reach."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from clipgraft.data.check import check_dataset
from clipgraft.data.formats import load_dataset
from clipgraft.data.raw import DataFolder
from clipgraft.errors import DataError


def list_images(folder: Path) -> dict[str, Path]:
    return DataFolder(folder).list_images(folder)


def test_listing_finds_images_in_subfolders_by_their_relative_names(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "sub/c.webp", "sub/d.gif", "._a.png", "notes.txt", "2258277193.jpg.1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list(list_images(tmp_path)) == ["._a.png", "a.png", "b.JPG", "sub/c.webp", "sub/d.gif"]


def test_link_that_leaves_the_image_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").touch()
    folder = tmp_path / "Images"
    folder.mkdir()
    (folder / "a.jpg").symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(DataError, match=r"a.jpg is a link out of Images; put the file itself in its place"):
        list_images(folder)


def test_link_inside_the_image_folder_is_followed_and_linked_folders_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "Images"
    folder.mkdir()
    (folder / "a.jpg").touch()
    (folder / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.jpg").touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(list_images(folder)) == ["a.jpg", "b.jpg"]


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


LAYOUTS = {
    "caption beside an image": ("a.txt", "secret"),
    "metadata": ("metadata.jsonl", '{"file_name": "a.jpg", "text": "secret"}'),
    "metadata of a subfolder": ("sub/metadata.csv", "file_name,text\na.jpg,secret\n"),
    "COCO": (
        "annotations/captions_train.json",
        '{"images": [{"id": 1, "file_name": "a.jpg"}],'
        ' "annotations": [{"image_id": 1, "caption": "secret"}]}',
    ),
    "Flickr8k": ("Flickr8k.token.txt", "a.jpg#0\tsecret\n"),
    "Kaggle": ("captions.txt", "image,caption\na.jpg,secret\n"),
    "a split list": ("Flickr_8k.trainImages.txt", "a.jpg\n"),
    "an image": ("b.jpg", ""),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("stays_inside", [True, False])
def test_link_is_read_only_within_the_folder(tmp_path: Path, kind: str, stays_inside: bool) -> None:
    name, text = LAYOUTS[kind]
    files = {"a.jpg": "", "sub/a.jpg": ""} | ({"captions.txt": "a.jpg,a dog\n"} if "list" in kind else {})
    folder = make(tmp_path / "set", files)
    target = (folder if stays_inside else tmp_path) / "kept" / "target"
    make(target.parent, {"target": text})
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(target)
    if kind == "an image":
        (folder / "a.txt").write_text("a dog")
    if stays_inside:
        assert load_dataset(folder).images
        return
    with pytest.raises(DataError, match=rf"{Path(name).name} is a link out of set; put the file"):
        load_dataset(folder)


def test_linked_image_folder_outside_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", {"a.jpg": ""})
    folder = make(tmp_path / "set", {"captions.txt": "image,caption\na.jpg,a dog\n"})
    (folder / "Images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"Images is a link out of set"):
        load_dataset(folder)


def test_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    make(tmp_path / "set", {"a.jpg": "", "a.txt": "a dog"})
    (tmp_path / "link").symlink_to("set")
    assert len(load_dataset(tmp_path / "link").images.captions) == 1


def test_what_is_no_file_is_noted_and_left_out(tmp_path: Path) -> None:
    folder = make(tmp_path, {"a.jpg": "", "a.txt": "a dog"})
    for name in ("loop.jpg", "loop.txt"):
        (folder / name).symlink_to(name)
    (folder / "dangling.jpg").symlink_to("nothing.jpg")
    (folder / "dangling.txt").write_text("nobody's")
    os.mkfifo(folder / "pipe.jpg")  # reading it would wait for ever
    os.mkfifo(folder / "pipe.txt")
    source = load_dataset(folder)
    assert [image.image_id for image in source.images] == ["a.jpg"]
    noted = next(note for note in source.notes if note.startswith("no file, or a link to none: "))
    assert all(name in noted for name in ("loop.jpg", "dangling.jpg", "pipe.jpg"))


def test_file_name_that_is_not_utf8_is_left_out_by_an_escaped_name(tmp_path: Path) -> None:
    folder = make(tmp_path, {"a.jpg": "", "a.txt": "a dog"})
    for suffix in (b".jpg", b".txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9" + suffix)).write_text("a cat")
    source = load_dataset(folder)
    assert [(item.name, item.reason) for item in source.excluded] == [
        (r"caf\udce9.jpg", "file name that is not UTF-8"),
        (r"caf\udce9.jpg#0", "file name that is not UTF-8"),
    ]
    check_dataset(source, read_images=False).to_json().encode()


def test_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    make(folder, {"a.jpg": "", "a.txt": "a dog"})
    with pytest.raises(DataError, match="the folder's name is not UTF-8; rename it"):
        load_dataset(folder)


def test_notes_of_one_kind_are_told_together(tmp_path: Path) -> None:
    for number in range(12):
        make(tmp_path, {f"{number:02}.jpg": ""})
        (tmp_path / f"{number:02}.txt").write_bytes(b"a caf\xe9")
    source = load_dataset(tmp_path)
    assert source.notes[0] == "not UTF-8, so read as Windows-1252: 00.txt, 01.txt, 02.txt and 9 more"
    assert source.images[0].captions == ("a café",)


def test_deeply_nested_folders_are_walked(tmp_path: Path) -> None:
    # os.walk of Python 3.11 calls itself for each level, and so ends near 1,000.
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=place)
        place, above = os.open("d", os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(place)
    make(tmp_path, {"a.jpg": ""})
    assert list(list_images(tmp_path)) == ["a.jpg"]
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # pytest's own way calls itself too


def test_time_to_read_a_folder_grows_with_its_files_alone(tmp_path: Path) -> None:
    for number in range(4000):
        (tmp_path / f"{number}.jpg").touch()
        (tmp_path / f"{number}.txt").write_text("a dog\n")
    start = time.process_time()
    assert len(load_dataset(tmp_path).images.captions) == 4000
    assert time.process_time() - start < 10  # 0.5 s where this was written
