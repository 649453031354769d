"""Records, splits and the rule that everything is counted in or out."""

from pathlib import Path

import pytest

from clipgraft.data.dataset import CaptionDataset, CaptionedImage, CaptionedImages, Excluded, merge_duplicates
from clipgraft.data.raw import (
    EMPTY_CAPTION,
    HASHED_SPLIT,
    HIDDEN_FILE,
    IN_NO_SPLIT,
    NEITHER,
    NO_CAPTION,
    NO_PHOTOGRAPH,
    OTHER_FORMAT,
    RawCaption,
    RawDataset,
    assemble,
    check_image_name,
    hash_split,
)
from clipgraft.errors import DataError


def make_source(*images: CaptionedImage) -> CaptionDataset:
    return CaptionDataset(Path("root"), "format", {}, CaptionedImages(images), ())


def make_image(image_id: str, split: str = "train", captions: tuple[str, ...] = ("a dog",)) -> CaptionedImage:
    return CaptionedImage(image_id, Path("root") / image_id, captions, split)


def make_reading(names: list[str], captions: list[RawCaption], splits: dict[str, str] | None) -> RawDataset:
    return RawDataset("format", {"captions": "c.txt"}, {name: Path(name) for name in names}, captions, splits)


def test_source_counts_images_and_captions_of_each_split() -> None:
    source = make_source(make_image("a"), make_image("b", "val", ("one", "two")), make_image("c"))
    assert source.counts == {
        "train": {"images": 2, "captions": 2},
        "val": {"images": 1, "captions": 2},
        "test": {"images": 0, "captions": 0},
    }
    assert (len(source.images), len(source.images.captions)) == (3, 4)
    assert [image.image_id for image in source.in_split("train")] == ["a", "c"]


def test_source_refuses_a_split_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="split must be one of train, val, test; got 'dev'"):
        make_source(make_image("a")).in_split("dev")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([make_image("a", "dev")], "image 'a' is in split 'dev'; expected one of train, val, test"),
        ([make_image("a", captions=())], "image 'a' has no caption"),
        ([make_image("a"), make_image("a", "val")], "image 'a' comes twice, in train and in val"),
    ],
)
def test_source_refuses_images_that_break_the_rules(images: list[CaptionedImage], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_source(*images)


def test_fingerprint_changes_with_id_split_and_caption_but_not_with_order_or_place() -> None:
    original = make_source(make_image("a"), make_image("b")).fingerprint
    moved = CaptionedImage("a", Path("elsewhere/a"), ("a dog",), "train")
    assert make_source(make_image("b"), moved).fingerprint == original
    assert len(original) == 64
    for changed in (make_image("c"), make_image("a", "val"), make_image("a", captions=("a cat",))):
        assert make_source(changed, make_image("b")).fingerprint != original


def test_fingerprint_tells_one_caption_from_two() -> None:
    joined = make_source(make_image("a", captions=("x\ny",))).fingerprint
    assert make_source(make_image("a", captions=("x", "y"))).fingerprint != joined


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
        "a\\b.jpg",
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


def test_assemble_counts_every_photograph_and_caption_in_or_out() -> None:
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
    source = assemble(Path("root"), make_reading(names, captions, splits), include_unsplit=False)
    assert [image.image_id for image in source.images] == ["in.jpg"]
    assert set(source.excluded) == {
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
    assert len(source.excluded) == 11


def test_images_outside_every_split_go_to_train_only_if_asked() -> None:
    reading = make_reading(
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
    source = assemble(Path("root"), make_reading(names, captions, None), include_unsplit=False)
    assert source.notes == (HASHED_SPLIT,)
    assert {image.image_id: image.split for image in source.images} == {
        name: hash_split(name) for name in names
    }
    assert all(len(image.captions) == 5 for image in source.images)


def test_source_without_one_captioned_image_is_refused_with_the_reasons() -> None:
    reading = make_reading(["a.jpg"], [RawCaption("b.jpg", 0, "x"), RawCaption("c.jpg", 0, "y")], {})
    with pytest.raises(
        DataError, match=r"no image with a caption remains .*captions c.txt.*2 caption\(s\): no photograph"
    ):
        assemble(Path("root"), reading, include_unsplit=False)


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
