"""The other formats, and how a format is told from another."""

import json
from pathlib import Path

import pytest
from PIL import Image

from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import load_dataset
from clipgraft.data.raw import hash_split
from clipgraft.data.split_names import SplitRule
from clipgraft.errors import DataError, UserError
from clipgraft.settings import DataSettings


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def captions_of(dataset: CaptionDataset) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in dataset.images}


def splits_of(dataset: CaptionDataset) -> dict[str, str]:
    return {image.image_id: image.split for image in dataset.images}


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: no such folder; expected a folder of images with captions"
    ):
        load_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("captions.txt", "image,caption\na.jpg,A dog, red\n"),
        ("mine.txt", "a.jpg,A dog, red\n"),
        ("Flickr8k_text/results.token", "a.jpg#0\tA dog, red\n"),
        ("list.tsv", "filepath\ttitle\nimages/a.jpg\tA dog, red\n"),
        ("annotations/mine.json", '{"a.jpg": "A dog, red"}'),
        ("metadata.jsonl", '{"file_name": "images/a.jpg", "text": "A dog, red"}'),
    ],
)
def test_caption_file_alone_is_a_source(tmp_path: Path, file: str, text: str) -> None:
    root = write(
        tmp_path, {"images/a.jpg": "", "images/a.txt": "beside", "b.csv": "image,caption\n", file: text}
    )
    (image,) = load_dataset(root / file).images
    assert (image.file, image.captions) == (root / "images" / "a.jpg", ("A dog, red",))


def test_file_without_captions_is_refused_as_a_source(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "", "list.csv": "width,height\n3,4\n", "a.bin": "1"})
    with pytest.raises(
        DataError, match=r"list.csv, line 2: read the fields width, height; expected file_name"
    ):
        load_dataset(root / "list.csv")
    with pytest.raises(DataError, match=r"a.bin: is no table, token file or JSON of captions"):
        load_dataset(root / "a.bin")


def test_images_without_captions_are_refused_with_the_layouts(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "", "sub/b.png": ""})
    with pytest.raises(DataError) as error:
        load_dataset(root)
    message = str(error.value)
    assert message.startswith(f"{root}: 2 image(s), but no captions in a known format.")
    for place in (
        "Flickr8k.token.txt",
        "captions.txt",
        "metadata.jsonl",
        "metadata.csv",
        "captions_train.json",
        "IMAGE.txt",
    ):
        assert place in message


def test_text_file_beside_an_image_holds_one_caption_a_line(tmp_path: Path) -> None:
    files = {
        "a.jpg": "",
        "a.txt": "A dog runs .\r\n\r\n  A dog\n",
        "sub/b.png": "",
        "sub/b.txt": "A cat, asleep",
    }
    dataset = load_dataset(write(tmp_path, files))
    assert dataset.format == "caption files beside images"
    assert captions_of(dataset) == {"a.jpg": ("A dog runs .", "A dog"), "sub/b.png": ("A cat, asleep",)}
    assert splits_of(dataset) == {name: hash_split(name) for name in ("a.jpg", "sub/b.png")}
    assert (dataset.split_rule, dataset.notes) == (SplitRule.HASH, ())


def test_folders_give_the_split_and_stray_images_are_excluded(tmp_path: Path) -> None:
    names = ["train/a", "validation/b", "Test/c", "stray"]
    files = {f"{name}.jpg": "" for name in names} | {f"{name}.txt": "A dog" for name in names}
    dataset = load_dataset(write(tmp_path, files))
    assert splits_of(dataset) == {"Test/c.jpg": "test", "train/a.jpg": "train", "validation/b.jpg": "val"}
    assert [(item.kind, item.name, item.reason) for item in dataset.excluded] == [
        ("image", "stray.jpg", "in no split"),
        ("caption", "stray.jpg#0", "in no split"),
    ]
    assert dataset.notes == ()


@pytest.mark.parametrize(
    ("row", "captions"),
    [
        ({"text": "A dog"}, ("A dog",)),
        ({"caption": "A dog"}, ("A dog",)),
        ({"captions": ["A dog", "A hound"]}, ("A dog", "A hound")),
        ({"caption_0": "A dog", "caption_1": "A hound", "width": 4}, ("A dog", "A hound")),
    ],
)
def test_metadata_jsonl_reads_each_caption_field(
    tmp_path: Path, row: dict[str, object], captions: tuple[str, ...]
) -> None:
    line = json.dumps({"file_name": "a.jpg", **row})
    dataset = load_dataset(write(tmp_path, {"a.jpg": "", "metadata.jsonl": line + "\n"}))
    assert dataset.format == "metadata file (imagefolder)"
    assert dataset.files == {"captions": "metadata.jsonl", "images": "."}
    assert captions_of(dataset) == {"a.jpg": captions}


def test_metadata_csv_keeps_commas_quotes_and_empty_fields(tmp_path: Path) -> None:
    text = '\ufefffile_name,caption_0,caption_1\na.jpg,"A red, ""big"" dog",\n'
    dataset = load_dataset(write(tmp_path, {"a.jpg": "", "metadata.csv": text}))
    assert captions_of(dataset) == {"a.jpg": ('A red, "big" dog',)}
    assert [(item.name, item.reason) for item in dataset.excluded] == [("a.jpg#1", "empty caption")]


def test_metadata_in_split_folders_names_images_beside_itself(tmp_path: Path) -> None:
    files = {f"{split}/{name}": "" for split, name in (("train", "a.jpg"), ("test", "a.jpg"))}
    files |= {f"{split}/metadata.csv": f"file_name,text\na.jpg,{split} dog\n" for split in ("train", "test")}
    dataset = load_dataset(write(tmp_path, files))
    assert captions_of(dataset) == {"test/a.jpg": ("test dog",), "train/a.jpg": ("train dog",)}
    assert splits_of(dataset) == {"test/a.jpg": "test", "train/a.jpg": "train"}
    assert dataset.files["train captions"] == "train/metadata.csv"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg"',
            r"metadata.jsonl, line 1 is not JSON: Expecting",
        ),
        ("metadata.jsonl", "[]", "line 1 is not JSON of the right type: an object is expected, not a list"),
        (
            "metadata.jsonl",
            '{"file_name": "a.jpg", "label": 3}',
            r"read the fields file_name, label; expected file_name and",
        ),
        ("metadata.jsonl", '{"text": "A dog"}', r"read the fields text; expected file_name and one of text"),
        ("metadata.jsonl", '{"file_name": "a.jpg", "text": 3}', r"line 1: read the caption 3; expected text"),
        (
            "metadata.jsonl",
            '{"file_name": "../a.jpg", "text": "x"}',
            r"line 1: image name '../a.jpg' points out",
        ),
        (
            "metadata.csv",
            "file_name,text\na.jpg,A dog, red\n",
            r"line 2: 3 fields under 2 names, beginning 'a.jpg'",
        ),
        ("metadata.csv", 'file_name,text\na.jpg,"A dog\n', r"metadata.csv, line 2: not readable as CSV"),
        (
            "metadata.csv",
            "image,words\na.jpg,A dog\n",
            r"line 2: read the fields image, words; expected file_name",
        ),
        ("metadata.csv", "file_name,text\nC:\\a.jpg,A dog\n", r"line 2: image name 'C:.*a.jpg' points out"),
    ],
)
def test_metadata_reader_names_the_bad_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path, {"a.jpg": "", file: text}))


def test_two_metadata_files_in_one_folder_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "", "metadata.csv": "", "metadata.jsonl": ""})
    with pytest.raises(DataError, match=r"metadata.jsonl and metadata.csv are both there; keep one"):
        load_dataset(root)


def coco(*captions: tuple[str, str]) -> str:
    names = sorted({name for name, _ in captions})
    return json.dumps(
        {
            "images": [{"id": names.index(name) + 7, "file_name": name} for name in names],
            "annotations": [{"image_id": names.index(name) + 7, "caption": text} for name, text in captions],
        }
    )


@pytest.mark.parametrize("images", ["", "images/"])
def test_coco_reads_a_file_for_each_split(tmp_path: Path, images: str) -> None:
    files = {
        "annotations/captions_train2017.json": coco(
            ("1.jpg", "A dog"), ("2.jpg", "A cat"), ("1.jpg", "A hound\n")
        ),
        "annotations/captions_val2017.json": coco(("3.jpg", "A fish")),
        "annotations/instances_val2017.json": "{}",
        f"{images}train2017/1.jpg": "",
        f"{images}train2017/4.jpg": "",
        f"{images}val2017/3.jpg": "",
    }
    dataset = load_dataset(write(tmp_path, files))
    assert dataset.format == "COCO captions"
    first, third = f"{images}train2017/1.jpg", f"{images}val2017/3.jpg"
    assert captions_of(dataset) == {first: ("A dog", "A hound"), third: ("A fish",)}
    assert splits_of(dataset) == {first: "train", third: "val"}
    assert [(item.kind, item.name, item.reason) for item in dataset.excluded] == [
        ("caption", f"{images}train2017/2.jpg#0", "no photograph"),
        ("image", f"{images}train2017/4.jpg", "no caption"),
    ]


def test_coco_file_that_names_no_split_is_split_by_hash(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, {"captions.json": coco(("1.jpg", "A dog")), "images/1.jpg": ""}))
    assert splits_of(dataset) == {"images/1.jpg": hash_split("images/1.jpg")}
    assert (dataset.split_rule, dataset.notes) == (SplitRule.HASH, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n  oops", r"captions_val.json is not JSON: .* line 2"),
        ("{}", r"captions_val.json: read None in images; expected COCO captions"),
        ('{"images": [3], "annotations": []}', r"read 3 in images; expected COCO captions"),
        (
            '{"images": [{"id": 1, "file_name": 7}], "annotations": []}',
            r"'file_name': 7\} in images; expected",
        ),
        ('{"images": [{"id": 1, "file_name": null}], "annotations": []}', r"'file_name': None\} in images"),
        ('{"images": [{"id": [1], "file_name": "1.jpg"}], "annotations": []}', r"'id': \[1\].* in images"),
        (
            '{"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": [{"image_id": 7, "caption": 5}]}',
            r"'caption': 5\} in annotations; expected COCO captions",
        ),
        (
            '{"images": [], "annotations": [{"image_id": [7], "caption": ""}]}',
            r"'image_id': \[7\].* in annotations; expected COCO captions",
        ),
        (
            '{"images": [{"id": 7, "file_name": "1.jpg"}, {"id": 7, "file_name": "2.jpg"}]}',
            r"captions_val.json: the id 7 stands for '1.jpg' and for '2.jpg'",
        ),
        (
            '{"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}',
            "a caption belongs to image_id 3, which images does not list",
        ),
        (coco(("../1.jpg", "x")), r"image name '../1.jpg' points out of the image folder"),
    ],
)
def test_coco_reader_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path, {"captions_val.json": text, "1.jpg": ""}))


def test_vizwiz_has_coco_under_other_names(tmp_path: Path) -> None:
    files = {
        "annotations/train.json": coco(("1.jpg", "A dog")),
        "annotations/val.json": coco(("2.jpg", "A cat")),
        "annotations/test.json": '{"images": [{"id": 1, "file_name": "3.jpg"}]}',
        "annotations/broken.json": "{",
    } | dict.fromkeys(("train/1.jpg", "val/2.jpg", "test/3.jpg"), "")
    dataset = load_dataset(write(tmp_path, files))
    assert captions_of(dataset) == {"train/1.jpg": ("A dog",), "val/2.jpg": ("A cat",)}
    assert splits_of(dataset) == {"train/1.jpg": "train", "val/2.jpg": "val"}
    assert "no JSON that can be read: annotations/broken.json" in dataset.notes


def test_json_of_another_shape_leaves_caption_files_alone(tmp_path: Path) -> None:
    files = {
        "a.jpg": "",
        "a.txt": "A dog",
        "a.json": "{",
        "captions.json": '{"a.jpg": "other"}',
        "tags.json": "[1]",
    }
    assert captions_of(load_dataset(write(tmp_path, files))) == {"a.jpg": ("A dog",)}


def test_coco_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    text = coco(("1.jpg", "A dog"))
    root = write(tmp_path, {"captions_train.json": text, "captions_val.json": text, "images/1.jpg": ""})
    with pytest.raises(DataError, match=r"captions_val.json: image 'images/1.jpg' is in the train split too"):
        load_dataset(root)


def test_pairs_of_image_and_captions_are_a_dataset(tmp_path: Path) -> None:
    pairs = [(tmp_path / "x" / "a.jpg", ["A  dog", "Dogs"]), (str(tmp_path / "y" / "b.png"), "A cat")]
    dataset = load_dataset(pairs)
    assert captions_of(dataset) == {"x/a.jpg": ("A dog", "Dogs"), "y/b.png": ("A cat",)}
    assert splits_of(dataset) == {name: hash_split(name) for name in ("x/a.jpg", "y/b.png")}
    assert [image.file for image in dataset.images] == [tmp_path / "x" / "a.jpg", tmp_path / "y" / "b.png"]
    with pytest.raises(DataError, match="no image with a caption remains"):
        load_dataset([])


def test_flickr8k_wins_over_the_other_formats(tmp_path: Path) -> None:
    files = {
        "Images/a.jpg": "",
        "Images/a.txt": "beside",
        "captions.txt": "image,caption\na.jpg,kaggle\n",
        "metadata.csv": "file_name,text\nImages/a.jpg,metadata\n",
    }
    root = write(tmp_path, files)
    assert captions_of(load_dataset(root)) == {"a.jpg": ("kaggle",)}
    (root / "captions.txt").unlink()
    assert captions_of(load_dataset(root)) == {"Images/a.jpg": ("metadata",)}
    (root / "metadata.csv").unlink()
    assert captions_of(load_dataset(root)) == {"Images/a.jpg": ("beside",)}


@pytest.mark.integration
def test_reading_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, clipgraft.data.check, clipgraft.data.formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 5000, "no such folder"), ("/dev/null", "device or a pipe")]
)
def test_source_that_is_no_file_is_one_line(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path / name)


@pytest.mark.parametrize(
    "pairs",
    [
        *(5, None, [1], [("a.jpg",)], [("a.jpg", 3)], [("a.jpg", ["x", 3])], [(3, "x")], [[]]),
        [("a.jpg", "\ud83d")],
    ],
)
def test_what_is_no_pair_is_shown(pairs):
    message = "pairs of an image's path and its caption or captions in whole characters; got "
    with pytest.raises(DataError, match=message):
        load_dataset(pairs)


def test_python_takes_tilde_for_the_home_folder(tmp_path, monkeypatch):
    write(tmp_path / "photos", {"a.jpg": "", "a.txt": "A dog"})
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("~/photos", Path("~/photos"), [("~/photos/a.jpg", "A dog")]):
        (image,) = load_dataset(source).images
        assert image.file == tmp_path / "photos" / "a.jpg"


def test_pairs_of_one_image_are_its_captions(tmp_path):
    path = tmp_path / "a.jpg"
    dataset = load_dataset([(path, "A dog"), (path, ("A cat", "A cow"))])
    assert [image.captions for image in dataset.images] == [("A dog", "A cat", "A cow")]
    with pytest.raises(DataError, match="no pair of a path and captions was given"):
        load_dataset([])


def test_ids_of_coco_may_be_texts_and_names_absolute(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    content = {
        "images": [{"id": 1, "file_name": f"{tmp_path}/a.jpg"}],
        "annotations": [{"image_id": "1", "caption": "A dog"}],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert [image.captions for image in load_dataset(tmp_path).images] == [("A dog",)]


@pytest.mark.parametrize(
    ("source", "settings"),
    [
        ("table", {"caption_field": "short"}),
        ("table/metadata.csv", {"caption_field": "short", "on_damaged": "skip"}),
        ("folder", {"include_unsplit": True, "max_train_images": 1}),
    ],
)
def test_origin_loads_the_same_dataset_again(tmp_path, monkeypatch, source, settings):
    files = {"table/metadata.csv": "file_name,text,short\na.jpg,A brown dog runs,A dog\n", "table/a.jpg": ""}
    for name in ("train/a", "test/b", "c"):
        files |= {f"folder/{name}.jpg": "", f"folder/{name}.txt": "A cat"}
    write(tmp_path, files)
    Image.new("RGB", (16, 16)).save(tmp_path / "table" / "a.jpg")
    dataset = load_dataset(tmp_path / source, **settings)
    assert dataset.origin == DataSettings(source=str(tmp_path / source), **settings)
    assert load_dataset(dataset.origin).images == dataset.images
    assert load_dataset(tmp_path / source).images != dataset.images
    monkeypatch.chdir(tmp_path)
    assert load_dataset(source, **settings).origin == dataset.origin
