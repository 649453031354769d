"""Caption files beside images, as captioners and trainers write them."""

import os
from pathlib import Path

import pytest

from clipgraft.data.formats import load_dataset
from clipgraft.errors import DataError


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def captions_of(root: Path, **settings: str) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in load_dataset(root, **settings).images}


@pytest.mark.parametrize("file", ["a.txt", "a.caption", "a.jpg.txt"])
def test_usual_extensions_are_found(tmp_path: Path, file: str) -> None:
    assert captions_of(write(tmp_path, {"a.jpg": "", file: "A dog"})) == {"a.jpg": ("A dog",)}


def test_other_extension_is_named_and_taken_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "", "a.tags": "A dog", "b.jpg": "", "b.tags": "A cat"})
    with pytest.raises(
        DataError, match=r"files beside images end in .tags \(2\): name one with data.caption_ext"
    ):
        load_dataset(root)
    for name in ("tags", ".tags"):
        assert captions_of(root, caption_extension=name) == {"a.jpg": ("A dog",), "b.jpg": ("A cat",)}


def test_two_caption_files_must_agree(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "", "a.txt": "A dog", "a.caption": "dog, 1girl"})
    with pytest.raises(
        DataError, match=r"a.txt and a.caption disagree; name one with data.caption_extension"
    ):
        load_dataset(root)
    assert captions_of(root, caption_extension=".caption") == {"a.jpg": ("dog, 1girl",)}
    (root / "a.caption").write_text("A  dog\n")
    assert captions_of(root) == {"a.jpg": ("A dog",)}


@pytest.mark.parametrize(
    "text", ['{"caption": "A dog"}', '{\n "caption": "A dog",\n "tags": [', '["A dog", "x"]']
)
def test_json_is_refused_even_if_it_is_cut_off(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"a.caption: holds JSON; expected plain text"):
        load_dataset(write(tmp_path, {"a.jpg": "", "a.caption": text}))


@pytest.mark.parametrize("text", ["## A dog", "- a dog\n- a cat", "**Caption:** a dog", "```\na dog\n```"])
def test_markdown_is_said(tmp_path: Path, text: str) -> None:
    notes = load_dataset(write(tmp_path, {"a.jpg": "", "a.txt": text})).notes
    assert "Markdown in a caption file, read as it stands: a.txt" in notes


def test_description_cut_into_lines_is_said(tmp_path: Path) -> None:
    files = {
        "a.jpg": "",
        "a.txt": "A dog",
        "b.jpg": "",
        "b.txt": "\n\n".join(["A", "line", "of", "many"] * 2),
    }
    notes = load_dataset(write(tmp_path, files)).notes
    assert "each line is a caption, and images have 1 to 8 of them; most has b.jpg" in notes


def test_kohyas_folder_names_are_captions_where_none_is_given(tmp_path: Path) -> None:
    files = {"img/10_sks dog/a.jpg": "", "img/10_sks dog/a.txt": "A sks dog runs", "img/10_sks dog/b.jpg": ""}
    root = write(tmp_path, files)
    dataset = load_dataset(root)
    assert [image.captions for image in dataset.images] == [("A sks dog runs",), ("sks dog",)]
    assert "kohya's folders, whose number of repeats is not used: img/10_sks dog" in dataset.notes
    write(root, {"c.jpg": ""})  # now they are folders as any others
    assert captions_of(root) == {"img/10_sks dog/a.jpg": ("A sks dog runs",)}


def test_onetrainers_masks_are_counted_out_by_their_name(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.jpg": "", "a.txt": "A dog", "a-masklabel.png": ""})
    (out,) = load_dataset(root).excluded
    assert (out.name, out.reason) == ("a-masklabel.png", "mask of another image (OneTrainer)")


def test_table_beside_caption_files_is_said(tmp_path: Path) -> None:
    root = write(
        tmp_path, {"a.jpg": "", "a.txt": "A dog", "x.csv": "image,caption\na.jpg,A cat\n", "y.csv": "q\n1\n"}
    )
    dataset = load_dataset(root)
    assert dataset.images.captions == ["A dog"]
    assert "there too, and not read: x.csv" in dataset.notes
    (root / "x.csv").write_bytes(b"\0\1")
    assert "no text that can be read: x.csv" in load_dataset(root).notes


@pytest.mark.parametrize("file", ["A.TXT", "a.Caption", "a.jpg.TXT", "a.TAGS"])
def test_caption_files_are_found_in_any_case(tmp_path: Path, file: str) -> None:
    root = write(tmp_path, {"a.jpg": "", file: "A dog", "b.JPG": "", "b.txt": "A cat", "b.tags": "A cat"})
    extension = "tags" if file == "a.TAGS" else ""
    assert captions_of(root, caption_extension=extension) == {"a.jpg": ("A dog",), "b.JPG": ("A cat",)}


def test_folder_without_captions_says_what_is_there(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **{"a.jpg": "", "a.txt": "\n", "list.csv": "where,words\na.jpg,A dog\n", "b.zip": ""},
            "rows.json": '[{"id": 1, "talk": []}]',
        },
    )
    (root / "a.caption").mkdir()
    with pytest.raises(DataError) as error:
        load_dataset(root)
    for part in (
        "caption files beside images are empty",
        "the columns or fields in list.csv are where, words;",
        "the columns or fields in rows.json are id, talk",
        "b.zip must be",
    ):
        assert part in str(error.value)
    assert "files beside images end in" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "text", "why"),
    [
        ("list.csv", "image,caption\na.jpg,A\0dog\n", "list.csv: holds NUL bytes"),
        ("list.json", '[{"image": "a.jpg", "caption": "A', "list.json is not JSON: Unterminated string"),
        ("boxes.json", '{"images": [], "annotations": []}', "boxes.json has no rows of images and captions"),
    ],
)
def test_folder_without_captions_says_why_a_table_is_none(
    tmp_path: Path, file: str, text: str, why: str
) -> None:
    with pytest.raises(DataError) as error:
        load_dataset(write(tmp_path, {"a.jpg": "", file: text}))
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"caption_extension": ".tags"},
            r"no caption in files beside them that end in '\.tags'",
        ),
        ({"caption_field": "words"}, "data.image_field, caption_field and separator apply to tables only"),
    ],
)
def test_a_setting_that_finds_nothing_is_named(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    root = write(tmp_path, {"a.jpg": "", "a.txt": "A dog"})
    with pytest.raises(DataError, match=message):
        load_dataset(root, **settings)


def test_files_without_captions_are_looked_at_a_few_times(tmp_path, monkeypatch):
    num_calls, stat = 0, os.stat

    def counted(*arguments, **options):
        nonlocal num_calls
        num_calls += 1
        return stat(*arguments, **options)

    for number in range(300):
        (tmp_path / f"{number}.jpg").touch()
    monkeypatch.setattr(os, "stat", counted)
    with pytest.raises(DataError, match="no captions in a known format"):
        load_dataset(tmp_path)
    assert 300 <= num_calls < 20 * 300
