"""What may be read of a folder, and how everything found is included or excluded."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from clipgraft.data.check import check_dataset
from clipgraft.data.dataset import SPLITS, Excluded
from clipgraft.data.formats import load_dataset
from clipgraft.data.names import check_image_name
from clipgraft.data.raw import (
    EMPTY_CAPTION,
    HIDDEN_FILE,
    IN_NO_SPLIT,
    NEITHER,
    NO_CAPTION,
    NO_PHOTOGRAPH,
    OTHER_FORMAT,
    DataFolder,
    RawCaption,
    RawDataset,
    assemble,
    hash_split,
    hash_splits,
)
from clipgraft.data.split_names import SplitRule
from clipgraft.errors import DataError


def list_images(folder: Path) -> dict[str, Path]:
    return DataFolder(folder).list_images(folder)


def test_images_in_subfolders_are_listed_by_relative_name(tmp_path: Path) -> None:
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


def test_linked_images_are_followed_and_linked_folders_are_not(tmp_path: Path) -> None:
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
    dataset = load_dataset(folder)
    assert [image.image_id for image in dataset.images] == ["a.jpg"]
    noted = next(note for note in dataset.notes if note.startswith("no file, or a link to none: "))
    assert all(name in noted for name in ("loop.jpg", "dangling.jpg", "pipe.jpg"))


def test_file_name_that_is_not_utf8_is_excluded_escaped(tmp_path: Path) -> None:
    folder = make(tmp_path, {"a.jpg": "", "a.txt": "a dog"})
    for suffix in (b".jpg", b".txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9" + suffix)).write_text("a cat")
    dataset = load_dataset(folder)
    assert [(item.name, item.reason) for item in dataset.excluded] == [
        (r"caf\udce9.jpg", "file name that is not UTF-8"),
        (r"caf\udce9.jpg#0", "file name that is not UTF-8"),
    ]
    check_dataset(dataset, read_images=False).to_json().encode()


def test_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))
    make(folder, {"a.jpg": "", "a.txt": "a dog"})
    with pytest.raises(DataError, match="the folder's name is not UTF-8; rename it"):
        load_dataset(folder)


def test_notes_of_one_kind_are_told_together(tmp_path: Path) -> None:
    for number in range(12):
        make(tmp_path, {f"{number:02}.jpg": ""})
        (tmp_path / f"{number:02}.txt").write_bytes(b"a caf\xe9")
    dataset = load_dataset(tmp_path)
    assert dataset.notes[0] == "not UTF-8, so read as Windows-1252: 00.txt, 01.txt, 02.txt and 9 more"
    assert dataset.images[0].captions == ("a café",)


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


@pytest.mark.slow
def test_time_to_read_a_folder_grows_with_its_files_alone(tmp_path: Path) -> None:
    for number in range(4000):
        (tmp_path / f"{number}.jpg").touch()
        (tmp_path / f"{number}.txt").write_text("a dog\n")
    start = time.process_time()
    assert len(load_dataset(tmp_path).images.captions) == 4000
    assert time.process_time() - start < 10  # 0.5 s where this was written


def make_raw(names: list[str], captions: list[RawCaption], splits: dict[str, str] | None) -> RawDataset:
    return RawDataset("format", {"captions": "c.txt"}, {name: Path(name) for name in names}, captions, splits)


def test_splits_of_many_names_are_those_of_each() -> None:
    names = [f"photo {number} é.jpg" for number in range(1000)]
    found = hash_splits(name.encode() for name in names)
    assert [SPLITS[code] for code in found] == [hash_split(name) for name in names]
    assert len(hash_splits([])) == 0


def test_hash_split_gives_about_80_10_10_and_never_changes() -> None:
    splits = [hash_split(f"{number}.jpg") for number in range(10_000)]
    shares = [splits.count(split) / len(splits) for split in ("train", "val", "test")]
    # Three standard deviations of a share of 0.8 over 10,000 draws are 0.012.
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.012)
    # First 16 hex digits of each name's sha256, modulo 10, worked out apart: no release may move an image.
    assert [hash_split(f"{number}.jpg") for number in (0, 1, 2, 5, 20, 21)] == [
        "val",
        "train",
        "train",
        "test",
        "val",
        "test",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd.jpg",
        "../a.jpg",
        "a/../../b.jpg",
        "C:/a.jpg",
        "c:a.jpg",
        "\\\\host\\share\\a.jpg",
        "a\0.jpg",
    ],
)
def test_image_name_that_points_out_of_the_folder_is_refused(name: str) -> None:
    with pytest.raises(
        DataError, match=r"captions.txt, line 7: image name .* points out of the image folder"
    ):
        check_image_name(name, "captions.txt, line 7")


@pytest.mark.parametrize("name", ["a.jpg", "train/a.jpg", "a..b.jpg", "a b.jpg", "2258277193.jpg.1"])
def test_image_name_inside_the_folder_is_taken(name: str) -> None:
    assert check_image_name(name, "captions.txt, line 7") == name
    assert check_image_name(f".//{name}".replace("/", "\\"), "captions.txt, line 7") == name


def test_assemble_includes_or_excludes_everything() -> None:
    names = ["in.jpg", "silent.jpg", "stray.jpg", "old.gif", "._in.jpg", "only-empty.jpg"]
    captions = [
        RawCaption("in.jpg", 0, "a dog"),
        RawCaption("in.jpg", 1, ""),
        RawCaption("gone.jpg", 0, "a cat"),
        RawCaption("stray.jpg", 0, "a bird"),
        RawCaption("old.gif", 0, "a fish"),
        RawCaption("only-empty.jpg", 0, ""),
    ]
    splits = dict.fromkeys(["in.jpg", "silent.jpg", "old.gif", "nowhere.jpg", "only-empty.jpg"], "train")
    dataset = assemble(Path("root"), make_raw(names, captions, splits), include_unsplit=False)
    assert [image.image_id for image in dataset.images] == ["in.jpg"]
    assert set(dataset.excluded) == {
        Excluded("caption", "in.jpg#1", EMPTY_CAPTION),
        Excluded("caption", "only-empty.jpg#0", EMPTY_CAPTION),
        Excluded("caption", "gone.jpg#0", NO_PHOTOGRAPH),
        Excluded("caption", "stray.jpg#0", IN_NO_SPLIT),
        Excluded("caption", "old.gif#0", OTHER_FORMAT),
        Excluded("image", "silent.jpg", NO_CAPTION),
        Excluded("image", "only-empty.jpg", NO_CAPTION),
        Excluded("image", "stray.jpg", IN_NO_SPLIT),
        Excluded("image", "old.gif", OTHER_FORMAT),
        Excluded("image", "._in.jpg", HIDDEN_FILE),
        Excluded("image", "nowhere.jpg", NEITHER),
    }
    assert len(dataset.excluded) == 11


def test_images_outside_every_split_go_to_train_only_if_asked() -> None:
    reading = make_raw(
        ["a.jpg", "b.jpg"], [RawCaption("a.jpg", 0, "x"), RawCaption("b.jpg", 0, "y")], {"a.jpg": "val"}
    )
    without = assemble(Path("root"), reading, include_unsplit=False)
    assert {image.image_id: image.split for image in without.images} == {"a.jpg": "val"}
    included = assemble(Path("root"), reading, include_unsplit=True)
    assert {image.image_id: image.split for image in included.images} == {"a.jpg": "val", "b.jpg": "train"}
    assert included.excluded == ()


def test_split_is_drawn_by_image_and_said_so_when_none_is_named() -> None:
    names = [f"{number}.jpg" for number in range(40)]
    captions = [RawCaption(name, number, f"caption {number}") for name in names for number in range(5)]
    dataset = assemble(Path("root"), make_raw(names, captions, None), include_unsplit=False)
    assert (dataset.split_rule, dataset.notes) == (SplitRule.HASH, ())
    assert {image.image_id: image.split for image in dataset.images} == {
        name: hash_split(name) for name in names
    }
    assert all(len(image.captions) == 5 for image in dataset.images)


def test_dataset_without_captioned_images_names_the_reasons() -> None:
    reading = make_raw(["a.jpg"], [RawCaption("b.jpg", 0, "x"), RawCaption("c.jpg", 0, "y")], {})
    with pytest.raises(
        DataError, match=r"no image with a caption remains .*captions c.txt.*2 caption\(s\): no photograph"
    ):
        assemble(Path("root"), reading, include_unsplit=False)
