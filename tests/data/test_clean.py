"""`--fix`: a cleaned copy that every command reads, with each change listed, and a source left alone."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipgraft.data.check import check_dataset
from clipgraft.data.clean import write_cleaned
from clipgraft.data.dataset import CaptionDataset, CaptionedImage, CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.data.image_file import Member
from clipgraft.errors import DataError, UserError
from clipgraft.settings import DataSettings
from helpers import call, files_of_at_most, refused

CAPTIONS = {
    "train/a.png": ["A dog &amp;amp; a cat", "Un cafÃ©", "...", "A boat"],
    "train/copy.png": ["A dog & a cat", "Two boats"],
    "train/leak.png": ["A kite"],
    "test/leak.png": ["A red kite"],
    "val/b.png": ["A brown dog ."],
    "train/broken.png": ["broken"],
    "train/silent.png": ["123"],
    "train/empty.png": [""],
}
SEEDS = {"train/copy.png": 0, "train/leak.png": 2, "test/leak.png": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set with every flaw that is mended, its splits named by folders."""
    root = tmp_path / "source"
    for number, name in enumerate(CAPTIONS):
        pixels = np.random.default_rng(SEEDS.get(name, number)).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name)
    (root / "train/broken.png").write_bytes(b"\x89PNG")
    rows = [{"file_name": name, "captions": texts} for name, texts in CAPTIONS.items()]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


def rows_of(path: Path) -> list[dict[str, str | None]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def state_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fix(source: Path, out: Path) -> CaptionDataset:
    dataset = load_dataset(source)
    write_cleaned(dataset, check_dataset(dataset), out)
    return load_dataset(out)


def test_cleaned_copy_has_mended_captions_and_one_of_each_image(folder: Path, tmp_path: Path) -> None:
    cleaned = fix(folder, tmp_path / "out")
    assert {image.image_id: (image.split, image.captions) for image in cleaned.images} == {
        "images/train/a.png": ("train", ("A dog & a cat", "Un café", "A boat", "Two boats")),
        "images/test/leak.png": ("test", ("A red kite", "A kite")),
        "images/val/b.png": ("val", ("A brown dog .",)),
    }
    assert cleaned.excluded == ()
    assert cleaned.split_rule == "a split column or field"


def test_each_change_is_listed_with_its_reason(folder: Path, tmp_path: Path) -> None:
    fix(folder, tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "changes.jsonl")
    changes = [(row["image"], row["what"], row["old"], row["new"]) for row in rows]
    assert sorted(changes, key=str) == sorted(
        [
            ("train/a.png", "caption", "A dog &amp;amp; a cat", "A dog & a cat"),
            ("train/a.png", "caption", "Un cafÃ©", "Un café"),
            ("train/a.png", "caption", "...", None),
            ("train/a.png", "caption", "A dog & a cat", None),
            ("train/copy.png", "image", "train/copy.png", "train/a.png"),
            ("train/leak.png", "image", "train/leak.png", "test/leak.png"),
            ("train/broken.png", "image", "train/broken.png", None),
            ("train/silent.png", "caption", "123", None),
            ("train/silent.png", "image", "train/silent.png", None),
            ("train/empty.png", "image", "train/empty.png", None),
            ("train/empty.png", "caption", "train/empty.png#0", None),
        ],
        key=str,
    )
    assert all(row["why"] for row in rows)
    whys = {(row["old"], row["why"]) for row in rows}
    assert ("A dog &amp;amp; a cat", "HTML entities") in whys
    assert ("A dog & a cat", "the image has it twice") in whys


def test_source_stays_and_a_clean_set_is_left_unchanged(folder: Path, tmp_path: Path) -> None:
    before = state_of(folder)
    once = fix(folder, tmp_path / "once")
    assert state_of(folder) == before
    twice = fix(tmp_path / "once", tmp_path / "twice")
    assert rows_of(tmp_path / "twice" / "changes.jsonl") == []
    assert [image.captions for image in twice.images] == [image.captions for image in once.images]
    kinds = {finding.kind for finding in check_dataset(twice).findings}
    assert not kinds & {"leakage", "duplicates", "entities", "mojibake", "no_letters", "unreadable"}


def test_photographs_are_hard_links_or_copies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix(folder, tmp_path / "linked")
    assert (tmp_path / "linked/images/val/b.png").samefile(folder / "val/b.png")

    def no_links(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", no_links)
    fix(folder, tmp_path / "copied")
    copied = tmp_path / "copied/images/val/b.png"
    assert not copied.samefile(folder / "val/b.png")
    assert copied.read_bytes() == (folder / "val/b.png").read_bytes()


def test_links_within_the_source_become_files(folder: Path, tmp_path: Path) -> None:
    (folder / "val/b.png").rename(folder / "val/real.png")
    (folder / "val/b.png").symlink_to("real.png")
    fix(folder, tmp_path / "out")
    assert not (tmp_path / "out/images/val/b.png").is_symlink()
    assert (tmp_path / "out/images/val/b.png").read_bytes() == (folder / "val/real.png").read_bytes()


def test_members_of_shards_become_files(folder: Path, tmp_path: Path) -> None:
    content = (folder / "val/b.png").read_bytes()
    (tmp_path / "0.tar").write_bytes(b"x" * 512 + content)
    member = Member(tmp_path / "0.tar", 512, len(content), "b.png")
    images = CaptionedImages([CaptionedImage("0/b.png", member, ("A dog .",), "train")])
    dataset = CaptionDataset(tmp_path / "0.tar", "shards", {}, images, ())
    write_cleaned(dataset, check_dataset(dataset), tmp_path / "out")
    assert (tmp_path / "out/images/0/b.png").read_bytes() == content


def test_places_that_would_lose_or_mix_files_are_refused(folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(folder)
    check = check_dataset(dataset)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").touch()
    with pytest.raises(UserError, match=r"full is there and not empty; name a new folder"):
        write_cleaned(dataset, check, tmp_path / "full")
    with pytest.raises(UserError, match=r"is there and not empty"):
        write_cleaned(dataset, check, tmp_path / "full/a.txt")
    with pytest.raises(UserError, match=r"clean lies in .*source, with which it would be read"):
        write_cleaned(dataset, check, folder / "clean")
    both = load_dataset(DataSettings.build({"sources": [{"source": str(folder)}, {"source": str(folder)}]}))
    with pytest.raises(UserError, match=r"clean lies in .*source, with which it would be read"):
        write_cleaned(both, check, folder / "clean")
    assert state_of(tmp_path / "full").keys() == {"a.txt"}


def test_a_full_disk_names_the_copy_and_loses_nothing(folder: Path, tmp_path: Path, capsys) -> None:
    before, out = state_of(tmp_path), tmp_path / "new" / "out"
    with files_of_at_most(100):
        line = refused(capsys, "data", "check", folder, "--fix", out)
    assert line == f"error: no space left on the disk ({out}); free some and run again"
    assert state_of(tmp_path) == before
    assert list(out.parent.iterdir()) == []


def test_a_full_disk_names_the_page_of_a_check(folder: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "sheet.html"
    with files_of_at_most(100):
        line = refused(capsys, "data", "check", folder, "--sheet", page)
    assert line == f"error: no space left on the disk ({page}); free some and run again"
    assert not page.exists()


def test_nothing_is_left_of_a_copy_that_cannot_be_written(tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    Image.new("RGB", (20, 20)).save(root / "a.png")
    (root / "a.txt").write_text("123")
    dataset = load_dataset(root)
    with pytest.raises(DataError, match="nothing remains of it"):
        write_cleaned(dataset, check_dataset(dataset), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_command_writes_the_copy_and_says_what_it_holds(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "out").mkdir()  # an empty folder will do
    assert call("data", "check", folder, "--fix", tmp_path / "out", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["unreadable"].keys() == {"train/broken.png"}
    assert "out: 3 images, 7 captions; 11 changes in changes.jsonl" in shown.err.replace("\n", "")
    assert call("data", "check", tmp_path / "out") == 0
    assert "lies in" in refused(capsys, "data", "check", folder, "--fix", folder / "out")
    assert not (folder / "out").exists()
