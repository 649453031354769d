"""Flickr8k's two forms, as its copies really are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import load_dataset
from clipgraft.data.raw import IN_NO_SPLIT, NO_CAPTION, NO_PHOTOGRAPH
from clipgraft.errors import DataError

TOKENS = "a.jpg#0\tA dog runs .\na.jpg#1\tA dog\nb.jpg#0\tA cat , asleep .\n"
LISTS = {"Flickr_8k.trainImages.txt": "a.jpg\n", "Flickr_8k.devImages.txt": "b.jpg\n"}


def write(
    root: Path, files: dict[str, str | bytes], images: tuple[str, ...] = ("a.jpg", "b.jpg"), folder="Images"
) -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in images:
        (root / folder / name).touch()
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def captions_of(dataset: CaptionDataset) -> dict[str, tuple[str, ...]]:
    return {image.image_id: image.captions for image in dataset.images}


EXPECTED = {"a.jpg": ("A dog runs .", "A dog"), "b.jpg": ("A cat , asleep .",)}


def test_official_form_is_found_and_its_files_are_named(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, {"Flickr8k.token.txt": TOKENS, **LISTS}))
    assert dataset.format == "Flickr8k token file"
    assert dataset.files == {
        "captions": "Flickr8k.token.txt",
        "images": "Images",
        "train split": "Flickr_8k.trainImages.txt",
        "val split": "Flickr_8k.devImages.txt",
    }
    assert dataset.notes == ("no list of the test split",)
    assert captions_of(dataset) == EXPECTED
    assert {image.image_id: image.split for image in dataset.images} == {"a.jpg": "train", "b.jpg": "val"}
    assert dataset.images[0].file == tmp_path / "Images" / "a.jpg"


@pytest.mark.parametrize(
    "folder",
    [
        "Images",
        "images",
        "Flicker8k_Dataset",
        "Flickr8k_Dataset",
        "Flickr8k_Dataset/Flicker8k_Dataset",
        "archive/x/Images",
    ],
)
def test_image_folder_is_found_under_each_of_its_names(tmp_path: Path, folder: str) -> None:
    dataset = load_dataset(write(tmp_path, {"Flickr8k.token.txt": TOKENS, **LISTS}, folder=folder))
    assert dataset.files["images"] == folder
    assert captions_of(dataset) == EXPECTED


def test_images_beside_the_caption_file_are_found(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, {"Flickr8k.token.txt": TOKENS}, folder="."))
    assert dataset.files["images"] == "."
    assert captions_of(dataset) == EXPECTED


def test_nested_text_folder_and_what_macos_adds_do_not_disturb(tmp_path: Path) -> None:
    files = {
        "Flickr8k_text/Flickr8k.token.txt": TOKENS,
        "Flickr8k_text/Flickr8k.lemma.token.txt": "no caption file",
        "__MACOSX/Flickr8k_text/Flickr8k.token.txt": "rubbish",
        "Flickr8k_text/._Flickr8k.token.txt": b"\0\5",
        **{f"Flickr8k_text/{name}": text for name, text in LISTS.items()},
    }
    dataset = load_dataset(write(tmp_path, files, folder="Flicker8k_Dataset"))
    assert dataset.files["captions"] == "Flickr8k_text/Flickr8k.token.txt"
    assert captions_of(dataset) == EXPECTED


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\t", " "),
        lambda text: text.replace("\t", "  \t "),
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\n\n").rstrip(),
    ],
    ids=["crlf", "cr", "space", "spaces-and-tab", "byte-order-mark", "blank-lines"],
)
def test_token_file_reads_the_same_in_every_variant(tmp_path: Path, change: Callable[[str], str]) -> None:
    lists = {name: change(text) for name, text in LISTS.items()}
    assert (
        captions_of(load_dataset(write(tmp_path, {"Flickr8k.token.txt": change(TOKENS), **lists})))
        == EXPECTED
    )


def test_windows_1252_is_read_and_noted(tmp_path: Path) -> None:
    dataset = load_dataset(write(tmp_path, {"Flickr8k.token.txt": "a.jpg#0\tA café\n".encode("cp1252")}))
    assert captions_of(dataset) == {"a.jpg": ("A café",)}
    assert "not UTF-8, so read as Windows-1252: Flickr8k.token.txt" in dataset.notes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.jpg#0\tA\0dog", "holds NUL bytes, so it is UTF-16 or no text; save it as UTF-8"),
        (b"a.jpg#0\tA caf\x81", "is neither UTF-8 nor Windows-1252"),
    ],
)
def test_file_in_no_readable_encoding_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path, {"Flickr8k.token.txt": content}))


@pytest.mark.parametrize("line", ["b.jpg A cat", "b.jpg#0", "b.jpg#zero\tA cat", "just words"])
def test_token_reader_names_a_line_without_a_caption(tmp_path: Path, line: str) -> None:
    root = write(tmp_path, {"Flickr8k.token.txt": f"a.jpg#0\tA dog\n\n{line}\n"})
    with pytest.raises(DataError) as error:
        load_dataset(root)
    expected = "expected IMAGE.jpg#NUMBER, a tab and the caption"
    assert str(error.value) == f"{root / 'Flickr8k.token.txt'}, line 3: read {line!r}; {expected}"


def test_kaggle_form_reads_as_the_token_file_does(tmp_path: Path) -> None:
    text = 'image,caption\na.jpg,A dog runs .\na.jpg,A dog\nb.jpg,"A cat , asleep ."\n'
    dataset = load_dataset(write(tmp_path, {"captions.txt": text}))
    assert dataset.format == "Flickr8k captions.txt (Kaggle)"
    assert captions_of(dataset) == EXPECTED
    assert "hash" in dataset.split_rule


@pytest.mark.parametrize(
    ("field", "caption"),
    [
        ("A cat , asleep .", "A cat , asleep ."),
        ('"A "" red "" cat , asleep ."', 'A " red " cat , asleep .'),
        ('"Stop" said a sign', '"Stop" said a sign'),
        ('"Stop" reads "go"', '"Stop" reads "go"'),
        ("=cmd|' /C calc'!A0", "=cmd|' /C calc'!A0"),
        ("  two  spaces ", "two spaces"),
    ],
)
def test_kaggle_caption_keeps_commas_and_quotes(tmp_path: Path, field: str, caption: str) -> None:
    dataset = load_dataset(write(tmp_path, {"captions.txt": f"image,caption\na.jpg,{field}\n"}))
    assert captions_of(dataset) == {"a.jpg": (caption,)}


def test_kaggle_form_reads_without_its_header(tmp_path: Path) -> None:
    assert captions_of(load_dataset(write(tmp_path, {"captions.txt": "a.jpg,A dog\n"}))) == {
        "a.jpg": ("A dog",)
    }


def test_kaggle_reader_names_a_line_without_a_caption(tmp_path: Path) -> None:
    root = write(tmp_path, {"captions.txt": "image,caption\na.jpg,A dog\nb.jpg A cat\n"})
    with pytest.raises(
        DataError, match=r"captions.txt, line 3: read 'b.jpg A cat'; expected IMAGE.jpg, a comma"
    ):
        load_dataset(root)


@pytest.mark.parametrize("form", ["{}#0\tA dog", "image,caption\n{},A dog"])
def test_caption_line_pointing_out_of_the_folder_is_refused(tmp_path: Path, form: str) -> None:
    file = "Flickr8k.token.txt" if "#" in form else "captions.txt"
    with pytest.raises(
        DataError, match=r"line \d: image name '../secret.jpg' points out of the image folder"
    ):
        load_dataset(write(tmp_path, {file: form.format("../secret.jpg")}))


def test_split_list_pointing_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    files = {"Flickr8k.token.txt": TOKENS, "Flickr_8k.trainImages.txt": "/etc/a.jpg\n"}
    with pytest.raises(
        DataError, match=r"Flickr_8k.trainImages.txt, line 1: image name '/etc/a.jpg' points out"
    ):
        load_dataset(write(tmp_path, files))


def test_image_in_two_splits_is_refused(tmp_path: Path) -> None:
    files = {"Flickr8k.token.txt": TOKENS, **LISTS, "Flickr_8k.testImages.txt": "c.jpg\na.jpg\n"}
    with pytest.raises(DataError, match=r"testImages.txt, line 2: image 'a.jpg' is in the train split too"):
        load_dataset(write(tmp_path, files))


def test_two_lists_of_one_split_are_refused(tmp_path: Path) -> None:
    files = {"Flickr8k.token.txt": TOKENS, **LISTS, "Flickr_8k.valImages.txt": "a.jpg\n"}
    with pytest.raises(
        DataError, match=r"two lists of the val split \(Flickr_8k.devImages.txt and Flickr_8k.valImages.txt\)"
    ):
        load_dataset(write(tmp_path, files))


def test_two_token_files_side_by_side_are_refused(tmp_path: Path) -> None:
    files = {"Flickr8k.token.txt": TOKENS, "copy.token.txt": TOKENS}
    with pytest.raises(
        DataError, match=r"2 caption files \(Flickr8k.token.txt, copy.token.txt\); keep the one"
    ):
        load_dataset(write(tmp_path, files))


def test_captions_without_an_image_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"Flickr8k.token.txt is there, but no folder with its images; expected JPEG files"
    ):
        load_dataset(write(tmp_path, {"Flickr8k.token.txt": TOKENS}, images=()))


def test_real_folder_takes_the_token_file_and_the_split_lists(flickr8k_dir: Path) -> None:
    dataset = load_dataset(flickr8k_dir)
    assert dataset.format == "Flickr8k token file"
    assert dataset.files["captions"] == "Flickr8k.token.txt"
    assert dataset.files["test split"] == "Flickr_8k.testImages.txt"
    assert dataset.notes == ("there too, and not read: captions.txt",)
    assert [count["images"] for count in dataset.counts.values()] == [38, 8, 4]
    assert len(dataset.images.captions) == 250
    assert len(dataset.images.captions) + len(dataset.excluded) == 40_460
    assert {item.reason for item in dataset.excluded} == {NO_PHOTOGRAPH}
    assert "2258277193_586949ec62.jpg.1#0" in {item.name for item in dataset.excluded}


def with_all_photographs(
    root: Path, flickr8k_dir: Path, caption_file: Path, name: str, *, lists: bool
) -> Path:
    """Lay out real captions with an empty file for each good id of the official token file."""
    (root / "Images").mkdir()
    tokens = (flickr8k_dir / "Flickr8k.token.txt").read_text().splitlines()
    for image_id in {line.split("#")[0] for line in tokens} - {"2258277193_586949ec62.jpg.1"}:
        (root / "Images" / image_id).touch()
    (root / name).write_bytes(caption_file.read_bytes())
    for path in flickr8k_dir.glob("Flickr_8k.*Images.txt") if lists else ():
        (root / path.name).write_bytes(path.read_bytes())
    return root


@pytest.mark.integration
def test_real_captions_exclude_92_images_and_the_bad_id(flickr8k_dir: Path, tmp_path: Path) -> None:
    token_file = flickr8k_dir / "Flickr8k.token.txt"
    root = with_all_photographs(tmp_path, flickr8k_dir, token_file, token_file.name, lists=True)
    dataset = load_dataset(root)
    assert [count["images"] for count in dataset.counts.values()] == [6000, 1000, 1000]
    out_images = [item for item in dataset.excluded if item.kind == "image"]
    assert [item.reason for item in out_images] == [IN_NO_SPLIT] * 92
    assert [item.name for item in dataset.excluded if item.reason == NO_PHOTOGRAPH] == [
        "2258277193_586949ec62.jpg.1#0"
    ]
    assert len(dataset.images.captions) + len(dataset.excluded) - len(out_images) == 40_460
    assert load_dataset(root, include_unsplit=True).counts["train"]["images"] == 6092


@pytest.mark.integration
def test_real_kaggle_file_gives_the_captions_of_the_token_file(flickr8k_dir: Path, tmp_path: Path) -> None:
    token_file = flickr8k_dir / "Flickr8k.token.txt"
    root = with_all_photographs(tmp_path, flickr8k_dir, token_file, token_file.name, lists=False)
    official = captions_of(load_dataset(root))
    (root / token_file.name).unlink()
    (root / "captions.txt").write_bytes((flickr8k_dir / "captions.txt").read_bytes())
    kaggle = load_dataset(root)
    assert kaggle.format == "Flickr8k captions.txt (Kaggle)"
    assert captions_of(kaggle) == official
    assert sum("," in caption for captions in official.values() for caption in captions) == 2447


@pytest.mark.integration
@pytest.mark.parametrize(
    ("variant", "num_captions", "reasons"),
    [
        ("crlf", 40_450, {NO_PHOTOGRAPH: 5, NO_CAPTION: 3, IN_NO_SPLIT: 0}),
        ("spaces-for-tabs", 40_460, {NO_PHOTOGRAPH: 5, NO_CAPTION: 1, IN_NO_SPLIT: 0}),
        ("extra-images", 40_960, {NO_PHOTOGRAPH: 505, NO_CAPTION: 1, IN_NO_SPLIT: 0}),
    ],
)
def test_every_caption_of_real_broken_copies_is_counted(
    flickr8k_dir: Path, tmp_path: Path, variant: str, num_captions: int, reasons: dict[str, int]
) -> None:
    caption_file = flickr8k_dir / "variants" / f"{variant}.token.txt"
    root = with_all_photographs(tmp_path, flickr8k_dir, caption_file, "Flickr8k.token.txt", lists=True)
    dataset = load_dataset(root, include_unsplit=True)
    found = [item.reason for item in dataset.excluded]
    assert {reason: found.count(reason) for reason in reasons} == reasons
    out_captions = sum(item.kind == "caption" for item in dataset.excluded)
    assert len(dataset.images.captions) + out_captions == num_captions


def test_flickr30k_repairs_the_row_without_its_second_bar(tmp_path: Path) -> None:
    rows = ["image_name| comment_number| comment", "a.jpg| 0|  A | dog .", "b.jpg| 4   A cat ."]
    folder = "flickr30k_images/flickr30k_images"
    root = write(tmp_path, {"flickr30k_images/results.csv": "\n".join(rows)}, folder=folder)
    dataset = load_dataset(root)
    assert captions_of(dataset) == {"a.jpg": ("A | dog .",), "b.jpg": ("A cat .",)}
    assert "no second bar, so the caption begins behind the number: line 3 of results.csv" in dataset.notes


def test_flickr30k_token_file_is_read(tmp_path: Path) -> None:
    root = write(tmp_path, {"results_20130124.token": TOKENS}, folder="flickr30k-images")
    assert captions_of(load_dataset(root)) == EXPECTED


def test_results_of_something_else_are_no_captions(tmp_path: Path) -> None:
    files = {"results.csv": "epoch,loss\n1,2\n", "a.txt": "A dog"}
    assert captions_of(load_dataset(write(tmp_path, files, folder="."))) == {"a.jpg": ("A dog",)}


@pytest.mark.parametrize("name", ["a#1.jpg", "a.heic", "a.avif", "a.jfif"])
def test_names_with_hashes_and_of_any_format_are_read(tmp_path, name):
    (tmp_path / "Images").mkdir()
    for file in (name, "b.jpg"):
        (tmp_path / "Images" / file).write_bytes(b"\xff\xd8\xff")
    (tmp_path / "captions.txt").write_text(f"image,caption\n{name},A dog\nb.jpg,A cat\n")
    expected = {name: ("A dog",), "b.jpg": ("A cat",)}
    assert {image.image_id: image.captions for image in load_dataset(tmp_path).images} == expected
    (tmp_path / "Flickr8k.token.txt").write_text(f"{name}#0\tA dog\nb.jpg#0\tA cat\n")
    assert {image.image_id: image.captions for image in load_dataset(tmp_path).images} == expected
