"""Listings give the images, captions and splits that the small readers give, without holding them."""

import csv
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from clipgraft.data import listing_tables
from clipgraft.data.check import check_dataset
from clipgraft.data.dataset import CaptionDataset, CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.data.listed_images import ListedImages
from clipgraft.errors import DataError, MissingFileError, UserError
from clipgraft.settings import DataSettings

NUM_IMAGES = 60
SPLITS = ["train", "val", "test", "validation", "Train"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and blocks of a few rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing_tables, "BLOCK_BYTES", 1000)
    return tmp_path / "cache" / "clipgraft"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 60 images, a third of them below a folder."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "more").mkdir()
    for number in range(NUM_IMAGES):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / name_of(number))
    return folder


def name_of(number: int) -> str:
    return f"{'more/' if number % 3 == 0 else ''}{number:03d}.png"


def captions_of(number: int) -> list[str]:
    return [f"photo {number}, « caption {index} »" for index in range(1 + number % 3)]


def write_rows(path: Path, delimiter: str, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([header, *rows])


def write_csv(path: Path) -> None:
    """A row for each caption, the quoted ones with commas and line breaks."""
    rows = [[name_of(n), f"{text}\nnext line"] for n in range(NUM_IMAGES) for text in captions_of(n)]
    write_rows(path, ",", ["image", "caption"], rows)


def write_tsv(path: Path) -> None:
    """As open_clip's, unquoted, with a caption that begins with a quote."""
    lines = [f'./{name_of(n)}\t"{text}' for n in range(NUM_IMAGES) for text in captions_of(n)]
    path.write_text("\n".join(["filepath\ttitle", *lines]) + "\n", encoding="utf-8")


def write_index(path: Path) -> None:
    """With pandas' index column, a split, a byte order mark and CRLF."""
    rows = [
        f"{n},{name_of(n)},{text.replace(',', '')},{SPLITS[n % 5]}"
        for n in range(NUM_IMAGES)
        for text in captions_of(n)
    ]
    path.write_bytes(("\r\n".join([",filename,caption,split", *rows])).encode("utf-8-sig"))


def write_wide(path: Path) -> None:
    """Several columns of captions, some of them empty, and short rows."""
    rows = [[name_of(n), *captions_of(n), *[""] * (3 - len(captions_of(n)))] for n in range(NUM_IMAGES)]
    write_rows(path, ";", ["file_name", "caption_0", "caption_1", "caption_2"], rows)


def write_json_in_csv(path: Path) -> None:
    rows = [[name_of(n).replace("/", "\\"), json.dumps(captions_of(n))] for n in range(NUM_IMAGES)]
    write_rows(path, ",", ["image", "captions"], rows)


def write_lists_in_csv(path: Path) -> None:
    """As pandas writes a column of lists."""
    rows = [[name_of(n), str(captions_of(n))] for n in range(NUM_IMAGES)]
    write_rows(path, ",", ["image", "captions"], rows)


def write_jsonl(path: Path) -> None:
    rows = [{"file_name": name_of(n), "captions": captions_of(n), "other": [n]} for n in range(NUM_IMAGES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_jsonl_of_rows(path: Path) -> None:
    rows = [
        {"image": name_of(n), "text": text, "split": SPLITS[n % 5]}
        for n in range(NUM_IMAGES)
        for text in captions_of(n)
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


TABLES: dict[str, Callable[[Path], None]] = {
    "quoted.csv": write_csv,
    "open_clip.tsv": write_tsv,
    "index.csv": write_index,
    "wide.csv": write_wide,
    "lists.csv": write_json_in_csv,
    "pandas.csv": write_lists_in_csv,
    "metadata.jsonl": write_jsonl,
    "rows.jsonl": write_jsonl_of_rows,
}


def as_listing(monkeypatch: pytest.MonkeyPatch, source: Path, **options: object) -> CaptionDataset:
    monkeypatch.setattr(listing_tables, "LISTING_BYTES", 0)
    return load_dataset(source, **options)


def of_train(data: CaptionDataset) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in data.train.first(len(data.train))}


@pytest.mark.parametrize("name", TABLES)
def test_a_listing_gives_what_the_small_reader_gives(images, tmp_path, monkeypatch, name):
    folder = tmp_path / "set"
    os.symlink(images, folder)
    table = images / name
    TABLES[name](table)
    small = load_dataset(images / name)
    large = as_listing(monkeypatch, images / name)
    table.unlink()
    assert (small.format, large.format) != ("listing", "table of captions")
    assert large.format == "listing"
    assert of_train(large) == of_train(small)
    assert large.val == small.val
    assert large.test == small.test
    assert large.split_rule == small.split_rule
    assert [*large.train.iter_captions()] == [
        caption for image in large.train.first(NUM_IMAGES) for caption in image.captions
    ]


def test_parquet_with_names_is_a_listing_of_any_size(images, monkeypatch):
    names = [name_of(n) for n in range(NUM_IMAGES)]
    columns = {"image_path": names, "caption": [captions_of(n) for n in range(NUM_IMAGES)]}
    parquet.write_table(pa.table(columns), images / "list.parquet", row_group_size=7)
    (images / "same.jsonl").write_text(
        "".join(
            json.dumps({"image_path": n, "caption": c}) + "\n" for n, c in zip(*columns.values(), strict=True)
        )
    )
    large, small = load_dataset(images / "list.parquet"), load_dataset(images / "same.jsonl")
    for name in ("list.parquet", "same.jsonl"):
        (images / name).unlink()
    assert large.format == "listing"
    assert of_train(large) == of_train(small)
    assert large.val == small.val


@pytest.fixture
def listed(images, monkeypatch, tmp_path) -> ListedImages:
    write_csv(images / "list.csv")
    data = as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()
    assert isinstance(data.train, ListedImages)
    return data.train


def test_an_epoch_is_that_of_the_images_in_memory(listed):
    held = CaptionedImages(listed.first(len(listed)))
    for epoch, start in ((0, 0), (1, 0), (1, 7), (2, len(held))):
        assert list(listed.epoch(3, epoch, start)) == list(held.epoch(3, epoch, start))


def test_the_listing_is_converted_once(images, monkeypatch, cache):
    write_csv(images / "list.csv")
    first = as_listing(monkeypatch, images / "list.csv")
    (made,) = (cache / "listings").iterdir()
    inode = made.stat().st_ino
    again = load_dataset(images / "list.csv")
    assert [path.stat().st_ino for path in (cache / "listings").iterdir()] == [inode]
    assert of_train(again) == of_train(first)
    assert again.train.fingerprint == first.train.fingerprint
    with (images / "list.csv").open("a", encoding="utf-8") as file:
        file.write(f"{name_of(0)},one more\n")
    assert as_listing(monkeypatch, images / "list.csv").train.fingerprint != first.train.fingerprint
    (images / "list.csv").unlink()


def test_the_fingerprint_is_of_content_not_of_place(images, monkeypatch, tmp_path):
    write_csv(images / "list.csv")
    first = as_listing(monkeypatch, images / "list.csv")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in images.rglob("*"):
        if path.is_file():
            (moved / path.relative_to(images)).parent.mkdir(exist_ok=True)
            os.link(path, moved / path.relative_to(images))
    (images / "list.csv").unlink()
    monkeypatch.setattr(listing_tables, "BLOCK_BYTES", 100_000)
    assert load_dataset(moved).train.fingerprint == first.train.fingerprint


def test_tables_named_after_splits_are_one_listing(images, monkeypatch):
    rows = [[name_of(n), captions_of(n)[0]] for n in range(NUM_IMAGES)]
    write_rows(images / "train.csv", ",", ["image", "caption"], rows[:40])
    write_rows(images / "val.csv", ",", ["image", "caption"], rows[40:])
    data = as_listing(monkeypatch, images)
    for name in ("train.csv", "val.csv"):
        (images / name).unlink()
    assert (len(data.train), len(data.val), len(data.test)) == (40, 20, 0)
    assert data.split_rule == "names of caption files"


def test_folders_of_splits_decide_and_others_are_excluded(tmp_path, monkeypatch):
    names = [f"{folder}{n}.png" for folder in ("train/", "test/", "") for n in range(4)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    write_rows(tmp_path / "list.csv", ",", ["image", "caption"], [[name, name] for name in names])
    data = as_listing(monkeypatch, tmp_path / "list.csv")
    assert (len(data.train), len(data.val), len(data.test)) == (4, 0, 4)
    assert data.split_rule == "names of folders"
    assert "4 images are in no split, and excluded" in data.notes
    assert len(as_listing(monkeypatch, tmp_path / "list.csv", include_unsplit=True).train) == 8


def test_images_that_are_not_there_are_met_when_they_are_read(images, monkeypatch):
    rows = [[name_of(n), "there"] for n in range(NUM_IMAGES)]
    rows += [[f"gone/{n}.png", "not there"] for n in range(NUM_IMAGES)]
    write_rows(images / "list.csv", ",", ["image", "caption"], rows)
    data = as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()
    assert any(not image.file.exists() for _, image in data.train.epoch(0, 0))
    assert all(image.file.exists() for image in (*data.val, *data.test))
    assert any("val images are not there" in note for note in data.notes)


def test_held_out_images_are_bounded_and_said(images, monkeypatch):
    rows = [[name_of(n), "text", "val" if n % 2 else "train"] for n in range(NUM_IMAGES)]
    write_rows(images / "list.csv", ",", ["image", "caption", "split"], rows)
    monkeypatch.setattr("clipgraft.data.listed_images.MAX_HELD_OUT", 10)
    data = as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()
    assert len(data.val) == 10
    assert any("the first 10 of 30 val images" in note for note in data.notes)


def test_empty_and_overlong_captions_are_counted(images, monkeypatch):
    monkeypatch.setattr(listing_tables, "BLOCK_BYTES", 50_000)  # a row has to fit
    rows = [[name_of(n), ["a dog", " ", "", "x" * 10_001][n % 4]] for n in range(NUM_IMAGES)]
    write_rows(images / "list.csv", ",", ["image", "caption"], rows)
    data = as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()
    assert "45 captions are empty or too long, and excluded" in data.notes
    assert len(data.train) + len(data.val) + len(data.test) == 15


WRONG = {
    "image,caption\n../a.png,text\n": "points out of the image folder",
    "image,caption\n/etc/a.png,text\n": "points out of the image folder",
    "image,caption\n000.png,one,two\n": "put captions that hold the separator in double quotes",
    "image,caption\n,text\n": "a row has no image name",
    "image,caption,split\n001.png,text,somewhere\n": "read the split 'somewhere'",
    "image,caption,split\n001.png,text,train\n001.png,text,val\n": "'001.png' is in two splits",
    "image,caption\n001.png,\n": "no training image with a caption",
    "image,caption,caption\n001.png,a,b\n": "a column's name comes twice",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_read_is_one_line(images, monkeypatch, cache, text):
    (images / "list.csv").write_text(text)
    try:
        with pytest.raises(DataError, match=WRONG[text]) as raised:
            as_listing(monkeypatch, images / "list.csv")
    finally:
        (images / "list.csv").unlink()
    assert "\n" not in str(raised.value)
    if "no training image" not in WRONG[text]:
        assert not list((cache / "listings").glob("*"))


def test_bytes_that_are_not_utf8_are_one_line(images, monkeypatch):
    (images / "list.csv").write_bytes(b"image,caption\n001.png,caf\xe9\n")
    with pytest.raises(DataError, match="save it as UTF-8"):
        as_listing(monkeypatch, images / "list.csv")
    monkeypatch.setattr(listing_tables, "HEAD_BYTES", 20)
    with pytest.raises(DataError, match=r"UTF8.*; save it as UTF-8"):
        as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()


def test_json_lines_that_change_their_type_are_one_line(images, monkeypatch):
    rows = [{"image": "001.png", "text": "a"}, {"image": "002.png", "text": ["b"]}]
    (images / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"changed from string to array") as raised:
        as_listing(monkeypatch, images / "list.jsonl")
    (images / "list.jsonl").unlink()
    assert "\n" not in str(raised.value)


def test_training_images_alone_are_checked_without_a_pass(images, monkeypatch):
    """As fine-tuning does before its first step: nothing is held, and nothing is read."""
    rows = [[name_of(n), "text", "train"] for n in range(NUM_IMAGES)]
    write_rows(images / "list.csv", ",", ["image", "caption", "split"], rows)
    data = as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()
    monkeypatch.setattr(ListedImages, "epoch", None)
    check = check_dataset(data, read_images=False)
    assert check.counts["train"]["images"] == NUM_IMAGES
    assert (check.findings, check.duplicates, check.samples) == ((), (), ())


def test_a_stated_number_of_images_is_refused(images, monkeypatch):
    write_csv(images / "list.csv")
    monkeypatch.setattr(listing_tables, "LISTING_BYTES", 0)
    with pytest.raises(DataError, match=r"so data\.num_train_images says nothing"):
        load_dataset(DataSettings(source=str(images / "list.csv"), num_train_images=5))
    (images / "list.csv").unlink()


def test_names_of_another_folder_are_said_before_training(images, monkeypatch):
    write_rows(images / "list.csv", ",", ["image", "caption"], [[f"no{n}.png", "text"] for n in range(40)])
    with pytest.raises(MissingFileError, match=r"none of \d+ images looked for is there, such as .*no\d"):
        as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()


def test_a_table_beside_a_folder_of_captions_names_images_above(images, monkeypatch):
    (images / "lists").mkdir()
    write_csv(images / "lists" / "list.csv")
    data = as_listing(monkeypatch, images / "lists" / "list.csv")
    (images / "lists" / "list.csv").unlink()
    assert all(image.file.exists() for _, image in data.train.epoch(0, 0))


def test_absolute_names_below_the_table_are_read(images, monkeypatch):
    rows = [[str(images / name_of(n)), "text"] for n in range(NUM_IMAGES)]
    write_rows(images / "list.csv", ",", ["image", "caption"], rows)
    data = as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()
    assert {image.image_id for image in data.train.first(100)} <= {name_of(n) for n in range(NUM_IMAGES)}


def test_missing_pyarrow_is_named_with_its_extra(images, monkeypatch):
    write_csv(images / "list.csv")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'clipgraft\[data\]'"):
        as_listing(monkeypatch, images / "list.csv")
    (images / "list.csv").unlink()


def test_memory_is_a_few_bytes_an_image(listed):
    """Rows and splits as numbers, nothing of names and captions."""
    assert listed._rows.dtype == np.uint32
    assert listed._listing.splits.dtype == np.int8
    assert len(list(islice(listed.iter_captions(), 3))) == 3
