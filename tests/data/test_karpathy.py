"""Karpathy's JSON, alone and beside other captions."""

import json
from pathlib import Path

import pytest

from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import load_dataset
from clipgraft.errors import DataError

SPLITS = {"a.jpg": "train", "b.jpg": "restval", "c.jpg": "val", "d.jpg": "test"}
EXPECTED = {"a.jpg": "train", "b.jpg": "train", "c.jpg": "val", "d.jpg": "test"}
KAGGLE = {"captions.txt": "image,caption\n" + "".join(f"{name},Of Kaggle\n" for name in SPLITS)}


def karpathy(**fields: str) -> str:
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": f"A {name} ."}, {"raw": "Two"}], **fields}
        for name, split in SPLITS.items()
    ]
    return json.dumps({"images": images, "dataset": "flickr8k"})


def write(root: Path, files: dict[str, str], folder: str = "Images") -> Path:
    for name, text in {**{f"{folder}/{name}": "" for name in SPLITS}, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def splits_of(dataset: CaptionDataset) -> dict[str, str]:
    return {image.image_id.rsplit("/", 1)[-1]: image.split for image in dataset.images}


@pytest.mark.parametrize("folder", ["Images", ".", "val2014"])
def test_captions_and_splits_are_the_files(tmp_path: Path, folder: str) -> None:
    root = write(tmp_path, {"dataset_flickr8k.json": karpathy(filepath="val2014")}, folder)
    dataset = load_dataset(root)
    assert dataset.format == "Karpathy's JSON"
    assert splits_of(dataset) == EXPECTED
    assert dataset.images[0].captions == ("A a.jpg .", "Two")


def test_split_is_used_beside_other_captions(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, KAGGLE | {"dataset_flickr8k.json": karpathy()}))
    assert dataset.files["captions"] == "captions.txt"
    assert dataset.files["splits"] == "dataset_flickr8k.json"
    assert splits_of(dataset) == EXPECTED
    assert {image.captions for image in dataset.images} == {("Of Kaggle",)}


def test_split_lists_win_over_it_and_that_is_said(tmp_path: Path) -> None:
    lists = {"Flickr_8k.trainImages.txt": "d.jpg\n"}
    dataset = load_dataset(write(tmp_path, KAGGLE | lists | {"dataset.json": karpathy()}))
    assert splits_of(dataset) == {"d.jpg": "train"}
    assert "there too, and its split not used: dataset.json" in dataset.notes


def test_file_of_these_images_is_taken_of_the_archives_three(tmp_path: Path) -> None:
    other = karpathy().replace(".jpg", ".png")
    files = {"dataset_coco.json": other, "dataset_flickr30k.json": karpathy(), "dataset_flickr8k.json": other}
    dataset = load_dataset(write(tmp_path, files))
    assert dataset.files["captions"] == "dataset_flickr30k.json"
    assert any(note.startswith("there too, with fewer of the images") for note in dataset.notes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"b.jpg"', "null", r"image 2: read .*; expected filename, split and sentences"),
        ('"restval"', '"later"', r"image 2: read the split 'later'; expected train, val or test"),
        ('{"raw": "Two"}', "5", r"image 1: read the caption 5; expected text"),
        ('"b.jpg"', '"../b.jpg"', r"image 2: image name '../b.jpg' points out"),
    ],
)
def test_damaged_entry_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path, {"dataset.json": karpathy().replace(old, new)}))
