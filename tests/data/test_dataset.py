"""Datasets, their splits and fingerprints."""

from pathlib import Path

import numpy as np
import pytest

from clipgraft.data.dataset import CaptionDataset, CaptionedImage, CaptionedImages, merge_duplicates
from clipgraft.errors import DataError


def make_dataset(*images: CaptionedImage) -> CaptionDataset:
    return CaptionDataset(Path("root"), "format", {}, CaptionedImages(images), ())


def make_image(image_id: str, split: str = "train", captions: tuple[str, ...] = ("a dog",)) -> CaptionedImage:
    return CaptionedImage(image_id, Path("root") / image_id, captions, split)


def test_dataset_counts_images_and_captions_of_each_split() -> None:
    dataset = make_dataset(make_image("a"), make_image("b", "val", ("one", "two")), make_image("c"))
    assert dataset.counts == {
        "train": {"images": 2, "captions": 2},
        "val": {"images": 1, "captions": 2},
        "test": {"images": 0, "captions": 0},
    }
    assert (len(dataset.images), len(dataset.images.captions)) == (3, 4)
    assert [image.image_id for image in dataset.in_split("train")] == ["a", "c"]


def test_dataset_refuses_a_split_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'dev'"):
        make_dataset(make_image("a")).in_split("dev")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([make_image("a", "dev")], "image 'a' is in split 'dev'; expected one of train, val, test"),
        ([make_image("a", captions=())], "image 'a' has no caption"),
        ([make_image("a"), make_image("a", "val")], "image 'a' comes twice, in train and in val"),
    ],
)
def test_dataset_refuses_images_that_break_the_rules(images: list[CaptionedImage], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_dataset(*images)


def test_fingerprint_is_of_ids_splits_and_captions_alone() -> None:
    original = make_dataset(make_image("a"), make_image("b")).fingerprint
    moved = CaptionedImage("a", Path("elsewhere/a"), ("a dog",), "train")
    assert make_dataset(make_image("b"), moved).fingerprint == original
    assert len(original) == 64
    for changed in (make_image("c"), make_image("a", "val"), make_image("a", captions=("a cat",))):
        assert make_dataset(changed, make_image("b")).fingerprint != original


def test_fingerprint_tells_one_caption_from_two() -> None:
    joined = make_dataset(make_image("a", captions=("x\ny",))).fingerprint
    assert make_dataset(make_image("a", captions=("x", "y"))).fingerprint != joined


def test_equal_files_are_one_image_with_the_captions_of_all(tmp_path):
    images = []
    for name, content, captions in (("a", b"1", ("x", "y")), ("b", b"2", ("z",)), ("c", b"1", ("x", "w"))):
        (tmp_path / name).write_bytes(content)
        images.append(CaptionedImage(name, tmp_path / name, captions, "test"))
    merged = merge_duplicates(images)
    assert [(image.image_id, image.captions) for image in merged] == [
        ("a", ("x", "y", "x", "w")),
        ("b", ("z",)),
    ]
    assert merge_duplicates(images[:2]) == tuple(images[:2])


def test_images_in_memory_come_in_a_permutation() -> None:
    images = CaptionedImages(
        CaptionedImage(f"{i}.jpg", Path(f"{i}.jpg"), (f"c{i}",), "train") for i in range(9)
    )
    expected = np.random.default_rng([3, 2]).permutation(9).tolist()
    assert [number for number, _ in images.epoch(3, 2)] == expected
    assert list(images.epoch(3, 2, 4)) == [(index, images[index]) for index in expected[4:]]
    assert images.first(2) == images[:2]
    assert list(images.iter_captions()) == [f"c{i}" for i in range(9)]


def test_fingerprint_of_images_follows_bytes_and_captions(tmp_path: Path) -> None:
    def images(folder: str, content: bytes, caption: str) -> CaptionedImages:
        path = tmp_path / folder / "a.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return CaptionedImages([CaptionedImage("a.jpg", path, (caption,), "train")])

    first = images("one", b"photograph", "a").fingerprint
    assert images("moved", b"photograph", "a").fingerprint == first
    assert images("two", b"another one", "a").fingerprint != first
    assert images("three", b"photograph", "b").fingerprint != first
