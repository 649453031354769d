"""The table before training: it adds up, and it names what is wrong."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from transformers import CLIPTokenizer

import tiny
from clipgraft.data.caption_check import Lengths
from clipgraft.data.check import DatasetCheck, check_dataset
from clipgraft.data.check_table import render
from clipgraft.data.dataset import CaptionedImage, CaptionedImages
from clipgraft.data.formats import load_dataset


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return tiny.build_spelling_tokenizer()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in three splits: one damaged, two equal in train and test; a caption without image."""
    captions = {
        "train/a": "a dog\nno\n\n",
        "train/broken": "broken",
        "val/b": "x" * 80,
        "test/c": "again the dog",
    }
    for name, text in captions.items():
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        seed = 1 if name in ("train/a", "test/c") else 2
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(text)
    (tmp_path / "train" / "broken.png").write_bytes(b"GIF89a")
    (tmp_path / "train" / "silent.png").write_bytes(b"never opened")
    return tmp_path


def printed(check: DatasetCheck) -> str:
    text = io.StringIO()
    Console(width=120, file=text).print(render(check))
    return text.getvalue()


def test_check_measures_a_small_folder(folder: Path, tokenizer: CLIPTokenizer) -> None:
    check = check_dataset(load_dataset(folder), tokenizer)
    assert check.counts == {
        "train": {"images": 2, "captions": 3},
        "val": {"images": 1, "captions": 1},
        "test": {"images": 1, "captions": 1},
    }
    assert [(g.kind, g.reason, g.count, g.examples) for g in check.excluded] == [
        ("image", "no caption", 1, ("train/silent.png",))
    ]
    assert check.captions_per_image == {1: 3, 2: 1}
    assert check.caption_words == Lengths(1, 1, 3)
    assert check.captions_per_length == {1: 3, 2: 1, 3: 1}
    assert check.vocabulary_size == len({"a", "dog", "no", "broken", "x" * 80, "again", "the"})
    assert check.caption_tokens == Lengths(4, 8, 82)  # "no", "broken" and 80 letters; BOS and EOS count
    assert check.num_over_context_length == 1
    assert check.unreadable == {
        "train/broken.png": "is a GIF; expected a JPEG, PNG, WebP, AVIF or HEIC image"
    }
    assert check.duplicates == (("test/c.png", "train/a.png"),)
    assert check.leakage == ({"test/c.png": "test", "train/a.png": "train"},)


def test_check_without_tokenizer_and_photographs_has_nulls(folder: Path) -> None:
    check = check_dataset(load_dataset(folder), read_images=False)
    assert (check.caption_tokens, check.num_over_context_length) == (None, None)
    assert (check.num_images_read, check.unreadable) == (0, None)
    assert json.loads(check.to_json())["unreadable"] is None  # not looked for is not none found
    assert check.leakage == ({"test/c.png": "test", "train/a.png": "train"},)  # bytes are compared always
    assert "photographs         not opened" in printed(check)
    assert "tokens" not in printed(check)


def test_samples_are_five_images_spread_over_the_source(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").touch()
        (tmp_path / f"{number:02}.txt").write_text(f"caption {number}")
    samples = check_dataset(load_dataset(tmp_path), read_images=False).samples
    assert [sample.image_id for sample in samples] == ["00.jpg", "02.jpg", "04.jpg", "07.jpg", "09.jpg"]
    assert samples[1].captions == ("caption 2",)


def test_each_photograph_is_told_of(folder: Path) -> None:
    told: list[int] = []
    check = check_dataset(load_dataset(folder), on_image=lambda: told.append(1))
    assert len(told) == check.num_images_read == 4


def test_printed_table_adds_up_and_names_what_is_wrong(folder: Path, tokenizer: CLIPTokenizer) -> None:
    text = printed(check_dataset(load_dataset(folder), tokenizer))
    rows = {" ".join(line.split()) for line in text.splitlines()}
    assert {"train 2 3", "val 1 1", "test 1 1", "included 4 5", "found in all 5 5"} <= rows
    assert "excluded: no caption 1 train/silent.png" in rows
    assert "captions per image 3 with 1, 1 with 2" in rows
    assert "tokens per caption 4 to 82, median 8; 1 pass 77 and lose their end" in rows
    assert "1 photograph cannot be opened" in rows
    assert "train/broken.png: is a GIF; expected a JPEG, PNG, WebP, AVIF or HEIC image" in rows
    assert "test/c.png (test) = train/a.png (train)" in rows


def test_printed_captions_cannot_steer_terminal_or_markup(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.txt").write_text("[red]a\x1b[2J dog[/red]")
    text = printed(check_dataset(load_dataset(tmp_path), read_images=False))
    assert r"[red]a\x1b[2J dog[/red]" in text
    assert "\x1b[2J" not in text


def test_long_lists_are_cut_in_the_terminal_and_whole_in_json(tmp_path: Path) -> None:
    for number in range(13):
        (tmp_path / f"{number:02}.jpg").touch()
        (tmp_path / f"{number:02}.txt").write_text("a dog")
    check = check_dataset(load_dataset(tmp_path))
    text = printed(check)
    assert "13 photographs cannot be opened" in text
    assert "09.jpg: is empty (0 bytes)" in text
    assert "and 3 more" in text
    assert len(json.loads(check.to_json())["unreadable"]) == 13


def test_json_holds_every_field(folder: Path, tokenizer: CLIPTokenizer) -> None:
    check = check_dataset(load_dataset(folder), tokenizer)
    content = json.loads(check.to_json())
    assert set(content) == set(DatasetCheck.__slots__)
    assert content["counts"]["train"] == {"images": 2, "captions": 3}
    assert content["captions_per_image"] == {"1": 3, "2": 1}
    assert content["caption_tokens"] == {"shortest": 4, "median": 8, "longest": 82}
    assert content["samples"][0]["file"].endswith("c.png")


def test_real_folder_is_whole(flickr8k_dir: Path) -> None:
    check = check_dataset(load_dataset(flickr8k_dir))
    assert check.num_images_read == 50
    assert (check.unreadable, check.duplicates, check.leakage) == ({}, (), ())
    assert check.captions_per_image == {5: 50}
    assert [(group.reason, group.count) for group in check.excluded] == [("no photograph", 40_210)]
    assert "opened, none damaged, no duplicates" in printed(check)


@pytest.mark.integration
def test_a_check_of_a_plain_folder_imports_only_what_it_uses(folder: Path) -> None:
    code = f"""
import sys
sys.argv = ["clipgraft", "data", "check", {str(folder)!r}]
from clipgraft.cli.app import main
try: main()
except SystemExit as end: assert not end.code
idle = {{"torch", "transformers", "matplotlib", "scipy", "datasets", "pyarrow", "fsspec", "pandas"}}
assert not (idle | {{"clipgraft.flatland"}}) & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_images_not_in_memory_are_checked_too(folder: Path) -> None:
    whole = load_dataset(folder)
    held, streamed = (
        CaptionedImages(image for image in whole.images if (image.split == "train") == is_train)
        for is_train in (False, True)
    )
    apart = replace(whole, images=held, streamed=streamed)
    found, expected = check_dataset(apart), check_dataset(whole)
    assert found.counts == expected.counts
    assert found.unreadable == expected.unreadable
    assert [set(group) for group in found.leakage] == [set(group) for group in expected.leakage]
    assert found.caption_words == expected.caption_words
    assert {f.kind for f in found.findings} == {f.kind for f in expected.findings}
    assert {image.image_id for image in found.samples} == {image.image_id for image in expected.samples}


def test_images_not_in_memory_are_not_passed_over_when_training(folder: Path) -> None:
    class Unread(CaptionedImages):
        def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, CaptionedImage]]:
            raise AssertionError("a pass over all images")

    whole = load_dataset(folder)
    streamed = Unread(whole.in_split("train"))
    apart = replace(whole, images=whole.val, streamed=streamed)
    check = check_dataset(apart, read_images=False)
    assert check.counts["train"] == {"images": len(streamed)}
    assert check.counts["val"] == {"images": 1, "captions": 1}
    assert "train 2" in {" ".join(line.split()) for line in printed(check).splitlines()}
