"""Parquet and Arrow files with images, as `datasets` and others write them, are read as shards."""

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value, load_from_disk
from pyarrow import parquet

from clipgraft.data.formats import load_dataset
from clipgraft.data.image_file import content_checksums, read_image_bytes
from clipgraft.errors import DataError
from clipgraft.settings import DataSettings
from shard_writers import jpeg


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def images_dataset(num_images, first=0):
    """A data set of `datasets` with images and captions."""
    rows = {
        "image": [
            {"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(first, first + num_images)
        ],
        "text": [f"a photo of {number}" for number in range(first, first + num_images)],
    }
    return Dataset.from_dict(rows, features=Features({"image": Image(), "text": Value("string")}))


def content(dataset):
    """Captions and bytes of all images by split."""
    images = [*(image for _, image in dataset.train.epoch(0, 0)), *dataset.images]
    return {(image.split, image.captions, read_image_bytes(image.file, 10_000)) for image in images}


def written(numbers, split):
    return {(split, (f"a photo of {number}",), jpeg(number)) for number in numbers}


def test_hub_style_parquet_is_read_with_its_splits(tmp_path):
    for name, numbers in (("train-00000-of-00002", (0, 30)), ("train-00001-of-00002", (30, 10))):
        images_dataset(numbers[1], numbers[0]).to_parquet(tmp_path / "data" / f"{name}.parquet")
    images_dataset(5, 40).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("# A set")
    dataset = load_dataset(tmp_path)
    assert dataset.format == "parquet with images"
    assert content(dataset) == written(range(40), "train") | written(range(40, 45), "val")
    assert (len(dataset.train), dataset.excluded) == (40, ())


def test_folder_of_save_to_disk_is_read_with_its_splits(tmp_path):
    parts = {"train": images_dataset(25), "test": images_dataset(5, 25)}
    DatasetDict(parts).save_to_disk(tmp_path / "set", num_shards={"train": 3, "test": 1})
    (tmp_path / "set" / "train" / "cache-1234.arrow").write_bytes(b"of an earlier map")
    dataset = load_dataset(tmp_path / "set")
    assert dataset.format == "Arrow files with images"
    assert content(dataset) == written(range(25), "train") | written(range(25, 30), "test")
    theirs = load_from_disk(tmp_path / "set")["test"].cast_column("image", Image(decode=False))
    assert [row["image"]["bytes"] for row in theirs] == [
        read_image_bytes(image.file, 10_000) for image in dataset.test
    ]


def test_single_data_set_on_disk_is_split_by_hash(tmp_path):
    images_dataset(60).save_to_disk(tmp_path / "set")
    dataset = load_dataset(tmp_path / "set")
    assert {len(dataset.train) + len(dataset.val) + len(dataset.test), len(content(dataset))} == {60}
    assert 35 < len(dataset.train) < 60


def test_plain_bytes_and_a_split_column_are_read(tmp_path):
    table = {
        "jpg": [jpeg(0), jpeg(1), jpeg(2)],
        "captions": [["one", "uno"], ["two"], ["three"]],
        "split": ["train", "restval", "dev"],
    }
    parquet.write_table(pa.table(table), tmp_path / "set.parquet")
    dataset = load_dataset(tmp_path / "set.parquet")
    assert content(dataset) == {
        ("train", ("one", "uno"), jpeg(0)),
        ("train", ("two",), jpeg(1)),
        ("val", ("three",), jpeg(2)),
    }


def test_columns_are_named_and_unknown_ones_refused(tmp_path):
    table = {"photo": [jpeg(0)], "thumbnail": [jpeg(1)], "words": ["a dog"], "text": ["no"]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")

    def load(**named):
        return load_dataset(DataSettings(source=str(tmp_path / "a.parquet"), **named))

    found = content(load(image_field="thumbnail", caption_field="words"))
    assert [item[1:] for item in found] == [(("a dog",), jpeg(1))]
    known = "the columns are photo, thumbnail, words, text"
    for setting in ("image_field", "caption_field"):
        with pytest.raises(DataError, match=rf"a\.parquet: no column 'what' \(data\.{setting}\); {known}"):
            load(**{setting: "what"})
    with pytest.raises(
        DataError, match=rf"no column of images' bytes; {known} \(data\.image_field names one\)"
    ):
        load(image_field="words")
    parquet.write_table(pa.table({"photo": [jpeg(0)], "number": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of captions; the columns are photo, number"):
        load()


def test_rows_without_image_or_caption_are_left_out(tmp_path):
    table = {
        "image": [
            {"bytes": jpeg(0), "path": "a.jpg"},
            {"bytes": None, "path": "b.jpg"},
            None,
            {"bytes": jpeg(3), "path": None},
        ],
        "text": ["a dog", "a cat", "a cow", None],
    }
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    dataset = load_dataset(tmp_path)
    assert [(item.name, item.reason) for item in dataset.excluded] == [
        ("a.parquet/0000001/b.jpg", "sample without image"),
        ("a.parquet/0000002", "sample without image"),
        ("a.parquet/0000003", "sample without caption"),
    ]
    assert len(content(dataset)) == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_file_that_is_cut_is_named(tmp_path, name):
    path = tmp_path / name
    table = pa.table({"image": [jpeg(number) for number in range(200)], "text": ["a dog"] * 200})
    if name.endswith("parquet"):
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=rf"{name} is cut or damaged \(.*\); copy or download it anew"):
        load_dataset(path)


def test_unpacked_images_lost_by_the_cache_are_made_anew(tmp_path):
    images_dataset(8).to_parquet(tmp_path / "train.parquet")
    first = [image for _, image in load_dataset(tmp_path).train.epoch(0, 0)]
    sums = content_checksums([image.file for image in first])
    first[0].file.shard.unlink()
    again = [image for _, image in load_dataset(tmp_path).train.epoch(0, 0)]
    assert content_checksums([image.file for image in again]) == sums


def test_parquet_that_only_names_images_is_a_table(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    parquet.write_table(pa.table({"file_name": ["a.jpg"], "text": ["a dog"]}), tmp_path / "list.parquet")
    dataset = load_dataset(tmp_path / "list.parquet")
    images = [*(image for _, image in dataset.train.epoch(0, 0)), *dataset.images]
    assert [(image.file, image.captions) for image in images] == [(tmp_path / "a.jpg", ("a dog",))]


def test_views_of_bytes_and_texts_are_read_as_their_values(tmp_path):
    columns = {
        "image": pa.array([jpeg(number) for number in range(4)], pa.binary_view()),
        "text": pa.array([f"a photo of {number}" for number in range(4)], pa.string_view()),
        "split": ["train"] * 4,
    }
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert content(load_dataset(tmp_path)) == written(range(4), "train")


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        (
            [{"bytes": None, "path": "a.jpg"}],
            ["a dog"],
            "column 'image' holds struct.* of image files are text",
        ),
        (["a.jpg"], [{"en": "a dog"}], "column 'text' holds struct.*, and captions are text"),
        (["a.jpg"], [[["a dog"]]], "column 'text' holds list.*, and captions are text"),
        (["a.jpg"], [None], "column 'text' holds null"),
    ],
)
def test_columns_of_another_type_are_named(tmp_path, image, text, message):
    parquet.write_table(pa.table({"image": image, "text": text}), tmp_path / "a.parquet")
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "a.parquet")
