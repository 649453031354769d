"""Tables of captions, as tools and people write them."""

import json
from pathlib import Path

import numpy as np
import pytest
from pyarrow import csv

from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import load_dataset
from clipgraft.data.raw import hash_split
from clipgraft.errors import DataError, UserError


def write(
    root: Path, files: dict[str, str], images: tuple[str, ...] = ("images/a.jpg", "images/b.jpg")
) -> Path:
    for name, text in {**dict.fromkeys(images, ""), **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def captions_of(dataset: CaptionDataset) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in dataset.images}


A_DOG = {"images/a.jpg": ("A dog, red",)}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("train.csv", "filepath\ttitle\nimages/a.jpg\tA dog, red\n"),
        ("list.tsv", "title\tfilepath\nA dog, red\timages/a.jpg\n"),
        ("captions.csv", ',image,caption\n0,a.jpg,"A dog, red"\n'),
        ("captions.csv", '"image","caption"\n"a.jpg","A dog, red"\n'),
        ("captions.csv", "Image;Caption\nimages\\a.jpg;A dog, red\n"),
        ("captions.csv", "image_name| comment_number| comment\na.jpg| 0| A dog, red\n"),
        ("captions.csv", 'sep=;\nimage;caption\na.jpg;"A dog, red"\n'),
        ("captions.csv", 'image, caption\na.jpg, "A dog, red"\n'),
        ("captions.csv", 'image,caption\na.jpg,"A dog, red",,\n'),
        ("captions.tsv", "a.jpg\tA dog, red\n"),
        ("captions.txt", ",image,caption\n0,a.jpg,A dog, red\n"),
        ("captions.txt", "filepath\ttitle\na.jpg\tA dog, red\n"),
        ("captions.txt", '"image","caption"\n"a.jpg","A dog, red"\n'),
        ("captions.txt", "image_name,comment_number,comment\na.jpg,0,A dog, red\n"),
        ("text/rows.jsonl", '{"image": "a.jpg", "prompt": "A dog, red"}\n'),
        ("text/rows.json", '[{"image": "a", "caption": ["A dog, red"]}]'),
        ("meta_cap.json", '{"a": {"caption": "A dog, red", "tags": "dog"}}'),
        ("annotations_30k.csv", 'raw,sentids,split,filename\n"[""A dog, red""]","[0]",train,a.jpg\n'),
    ],
)
def test_columns_and_separator_follow_from_the_table(tmp_path: Path, file: str, text: str) -> None:
    got = captions_of(load_dataset(write(tmp_path, {file: text})))
    if file == "captions.txt":  # its ids are below its image folder
        got = {f"images/{name.removeprefix('images/')}": captions for name, captions in got.items()}
    assert got == A_DOG


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        (json.dumps(["It's", 'a "dog"'], indent=1), ("It's", 'a "dog"')),
        (str(["It's", 'a "dog"', None, float("nan")]), ("It's", 'a "dog"')),
        (str(np.array(["It's" * 20, 'a "dog"'])), ("It's" * 20, 'a "dog"')),
        ("['It' is text, too", ("['It' is text, too",)),
        ("['half', '\\ud83d']", ("['half', '\\ud83d']",)),
    ],
)
def test_written_lists_are_several_captions(tmp_path: Path, cell: str, captions: tuple[str, ...]) -> None:
    row = cell.replace('"', '""')
    root = write(tmp_path, {"list.csv": f'image,captions\na.jpg,"{row}"\n'})
    assert captions_of(load_dataset(root))["images/a.jpg"] == captions


@pytest.mark.parametrize("header", ["", "image_name,comment_number,comment\n"])
def test_comment_numbers_are_no_part_of_captions(tmp_path: Path, header: str) -> None:
    rows = "".join(f"a.jpg,{number},{number} dogs, red\n" for number in range(3))
    got = captions_of(load_dataset(write(tmp_path, {"captions.txt": header + rows})))
    assert list(got.values()) == [("0 dogs, red", "1 dogs, red", "2 dogs, red")]


def test_quotes_of_a_caption_in_a_tab_table_are_its_own(tmp_path: Path) -> None:
    text = 'filepath\ttitle\na.jpg\t"Stop" said a sign\nb.jpg\t"Go\na.jpg\tgo"\n'
    assert captions_of(load_dataset(write(tmp_path, {"list.tsv": text}))) == {
        "images/a.jpg": ('"Stop" said a sign', 'go"'),
        "images/b.jpg": ('"Go',),
    }
    text = 'filepath\ttitle\na.jpg\t"A ""red"" dog"\n'
    assert captions_of(load_dataset(write(tmp_path, {"list.tsv": text}))) == {
        "images/a.jpg": ('A "red" dog',)
    }


def test_settings_name_columns_and_separator(tmp_path: Path) -> None:
    root = write(tmp_path, {"list.csv": "where|image|words|caption\na.jpg|x|A dog, red|other\n"})
    columns = {"image_field": "where", "caption_field": "words", "separator": "bar"}
    assert captions_of(load_dataset(root / "list.csv", **columns)) == A_DOG
    assert captions_of(load_dataset(root, **columns)) == A_DOG


def test_textcaps_is_read_with_its_splits(tmp_path: Path) -> None:
    rows = [
        {"image_name": name, "image_path": f"train/{name}.jpg", "set_name": split, "caption_str": text}
        | {"reference_strs": ["A red sign", "A sign"]}
        for name, split in (("a", "train"), ("b", "val"))
        for text in ("A red sign", "A sign")
    ]
    root = write(tmp_path, {"TextCaps_0.1.json": json.dumps({"data": rows})})
    assert [(image.captions, image.split) for image in load_dataset(root).images] == [
        (("A red sign", "A sign"), "train"),
        (("A red sign", "A sign"), "val"),
    ]


def test_unknown_column_names_those_that_are_there(tmp_path: Path) -> None:
    root = write(tmp_path, {"list.csv": "image,caption\na.jpg,A dog\n"})
    with pytest.raises(
        DataError, match=r"no field 'words' \(data.caption_field\); the fields are image, caption"
    ):
        load_dataset(root / "list.csv", caption_field="words")
    (root / "list.csv").rename(root / "metadata.csv")
    with pytest.raises(DataError, match=r"no field 'x' \(data.image_field\); the fields are image, caption"):
        load_dataset(root, image_field="x")
    for name in ("list.csv", "metadata.csv"):
        write(root, {"a.txt": "beside", name: "image,caption\na.jpg,A dog\n"})
        with pytest.raises(DataError, match=r"no field 'y' .*; the fields are image, caption"):
            load_dataset(root, caption_field="y")
        (root / name).unlink()
    with pytest.raises(UserError, match="separator"):
        load_dataset(root, separator="dots")


def test_split_column_decides(tmp_path: Path) -> None:
    names = {"train": "train", "restval": "train", "Validation": "val", "test": "test"}
    rows = [{"file_name": f"{name}.jpg", "text": "x", "split": name} for name in names]
    text = "\n".join(map(json.dumps, rows))
    root = write(tmp_path, {"metadata.jsonl": text}, tuple(f"{name}.jpg" for name in names))
    dataset = load_dataset(root)
    assert {image.image_id: image.split for image in dataset.images} == {
        f"{name}.jpg": split for name, split in names.items()
    }


@pytest.mark.parametrize(("values", "splits"), [("train test", "train test"), ("birds cars", "")])
def test_subsets_that_name_splits_decide(tmp_path: Path, values: str, splits: str) -> None:
    rows = zip(("a", "b"), values.split(), strict=True)
    table = "".join(f"images/{name}.jpg,A dog,{value}\n" for name, value in rows)
    dataset = load_dataset(write(tmp_path, {"list.csv": f"image,caption,subset\n{table}"}))
    hashed = [hash_split(f"images/{name}.jpg") for name in ("a", "b")]
    assert [image.split for image in dataset.images] == (splits.split() or hashed)


def test_tables_named_after_splits_are_one_set(tmp_path: Path) -> None:
    files = {
        f"{split}.csv": f"image,caption\n{name},A dog\n"
        for split, name in (("train", "a.jpg"), ("val", "b.jpg"))
    }
    root = write(tmp_path, files)
    assert {image.image_id: image.split for image in load_dataset(root).images} == {
        "images/a.jpg": "train",
        "images/b.jpg": "val",
    }
    (root / "val.csv").rename(root / "more.csv")
    with pytest.raises(
        DataError, match=r"2 tables of captions \(more.csv, train.csv\); name one as the source"
    ):
        load_dataset(root)


def test_imagefolder_is_read_at_any_depth(tmp_path: Path) -> None:
    files = {f"data/{split}/x/metadata.csv": "file_name,text\na.jpg,A dog\n" for split in ("train", "test")}
    root = write(tmp_path, files, tuple(f"data/{split}/x/a.jpg" for split in ("train", "test")))
    assert {image.image_id: image.split for image in load_dataset(root).images} == {
        "data/train/x/a.jpg": "train",
        "data/test/x/a.jpg": "test",
    }


def test_absolute_name_within_the_folder_is_relative(tmp_path: Path) -> None:
    text = f"image,caption\n{tmp_path / 'images' / 'a.jpg'},A dog\n/etc/b.jpg,A cat\n"
    with pytest.raises(DataError, match=r"line 3: image name '/etc/b.jpg' points out"):
        load_dataset(write(tmp_path, {"list.csv": text}))
    text = text.replace("/etc/", "")
    assert captions_of(load_dataset(write(tmp_path, {"list.csv": text})))["images/a.jpg"] == ("A dog",)


def test_texts_for_a_missing_value_are_empty_captions(tmp_path: Path) -> None:
    missing = [*csv.ConvertOptions().null_values, "None", "<NA>"]  # pandas' own two
    table = "file_name,text\n" + "".join(f"a.jpg,{text}\n" for text in missing) + "b.jpg,A dog\n"
    dataset = load_dataset(write(tmp_path, {"metadata.csv": table}))
    assert captions_of(dataset) == {"images/b.jpg": ("A dog",)}
    reasons = [item.reason for item in dataset.excluded if item.kind == "caption"]
    assert reasons == ["empty caption"] * len(missing)


def test_nan_of_json_is_an_empty_caption(tmp_path: Path) -> None:
    rows = '{"file_name": "a.jpg", "text": NaN}\n{"file_name": "b.jpg", "text": "A dog"}\n'
    assert captions_of(load_dataset(write(tmp_path, {"metadata.jsonl": rows}))) == {
        "images/b.jpg": ("A dog",)
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            '{"file_name": ["a.jpg"], "text": "A dog"}',
            r"image name \['a.jpg'\] in 'file_name'; expected text",
        ),
        ('{"file_name": null, "text": "A dog"}', "image name None in 'file_name'; expected text"),
        ('{"file_name": " ", "text": "A dog"}', "image name ' ' in 'file_name'; expected text"),
        ('{"name": "a.jpg", "text": "A dog"}', "read the fields name, text; expected file_name"),
    ],
)
def test_row_without_a_name_shows_what_it_has(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path, {"metadata.jsonl": row}))


@pytest.mark.parametrize("name", ["https://example.org/1.jpg", "c.jpg"])
def test_names_without_a_file_are_shown(tmp_path: Path, name: str) -> None:
    rows = json.dumps({"file_name": name, "text": "A dog"})
    with pytest.raises(DataError) as error:
        load_dataset(write(tmp_path, {"metadata.jsonl": rows}))
    assert f"no photograph ({name.replace('//', '/')}#0)" in str(error.value)
    assert "2 image(s): no caption (images/a.jpg, ...)" in str(error.value)
