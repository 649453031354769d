"""Damaged photographs stop the work, or are skipped by name; the same ones each time."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipgraft.cli.app import app
from clipgraft.data import damage
from clipgraft.data.check import check_dataset
from clipgraft.data.damage import DAMAGED, skip_damaged
from clipgraft.data.dataset import Excluded
from clipgraft.data.formats import load_dataset
from clipgraft.errors import DataError, UserError
from clipgraft.settings import DataSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve photographs, five of them damaged in different ways."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        path = folder / f"p{number:02}.jpg"
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(f"Photograph {number}.\nThe same again.")
    whole = (folder / "p03.jpg").read_bytes()
    (folder / "p01.jpg").write_bytes(b"")
    (folder / "p03.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "p05.jpg").write_bytes(b"GIF89a")
    (folder / "p07.jpg").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0")
    Image.new("RGB", (8, 8)).save(folder / "p09.jpg")
    return folder


def skipping(folder: Path) -> DataSettings:
    return DataSettings(source=str(folder), on_damaged="skip")


def test_damaged_photographs_are_skipped_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset(skipping(folder))
    assert [image.image_id for image in dataset.images] == [f"p{n:02}.jpg" for n in (0, 2, 4, 6, 8, 10, 11)]
    assert list(dataset.damaged) == [f"p{n:02}.jpg" for n in (1, 3, 5, 7, 9)]
    assert dataset.damaged["p01.jpg"] == "is empty (0 bytes)"
    said = " ".join(capsys.readouterr().err.split())
    assert "note: 5 of 12 photographs are damaged and skipped: p01.jpg (is empty (0 bytes)), p03.jpg" in said
    assert "p07.jpg" not in said
    assert Excluded("image", "p07.jpg", DAMAGED) in dataset.excluded
    assert Excluded("caption", "p07.jpg#1", DAMAGED) in dataset.excluded
    assert len(dataset.excluded) == 5 * 3


def test_python_skips_by_name_in_folders_and_pairs(folder: Path) -> None:
    whole = load_dataset(folder)
    kept = load_dataset(folder, on_damaged="skip")
    assert kept.images == load_dataset(skipping(folder)).images
    assert 0 < len(kept.images) < len(whole.images)
    pairs = load_dataset([(image.file, image.captions) for image in whole.images], on_damaged="skip")
    assert {image.file for image in pairs.images} == {image.file for image in kept.images}
    with pytest.raises(UserError, match="on_damaged"):
        load_dataset(folder, on_damaged="ignore")


def test_without_the_setting_nothing_is_opened(folder: Path) -> None:
    dataset = load_dataset(DataSettings(source=str(folder)))
    assert dataset == load_dataset(folder)
    assert len(dataset.images) == 12
    assert dataset.damaged == {}


def test_the_second_load_remembers_and_skips_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset(skipping(folder))

    def never(path: Path) -> str:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(damage, "_why_damaged", never)
    assert load_dataset(skipping(folder)) == first
    moved = folder.rename(folder.parent / "moved")
    assert load_dataset(skipping(moved)).fingerprint == first.fingerprint


def test_a_mended_photograph_comes_back(folder: Path) -> None:
    load_dataset(skipping(folder))
    shutil.copy(folder / "p02.jpg", folder / "p01.jpg")
    assert "p01.jpg" in [image.image_id for image in load_dataset(skipping(folder)).images]


def test_a_folder_of_damage_alone_is_one_line(folder: Path) -> None:
    for path in folder.glob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"every photograph is damaged: p00\.jpg \(is empty .*, \.\.\."
    ) as error:
        load_dataset(skipping(folder))
    assert "\n" not in str(error.value)


def test_a_lack_of_memory_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(image: Image.Image) -> Image.Image:
        raise DataError("is damaged (MemoryError)") from MemoryError()

    monkeypatch.setattr(damage, "decode_beside_others", no_memory)
    with pytest.raises(DataError, match="MemoryError"):
        skip_damaged(load_dataset(folder))


def test_check_names_skipped_photographs_in_its_json(folder: Path) -> None:
    check = json.loads(check_dataset(load_dataset(skipping(folder))).to_json())
    assert list(check["damaged"]) == [f"p{n:02}.jpg" for n in (1, 3, 5, 7, 9)]
    assert check["unreadable"] == {}
    group = {"kind": "image", "reason": DAMAGED, "count": 5, "examples": ["p01.jpg", "p03.jpg", "p05.jpg"]}
    assert group in check["excluded"]


def test_data_check_takes_the_option(folder: Path) -> None:
    run = CliRunner().invoke(app, ["data", "check", str(folder), "--json", "--on-damaged", "skip"])
    check = json.loads(run.stdout)
    assert len(check["damaged"]) == 5
    run = CliRunner().invoke(app, ["data", "check", str(folder), "--json"])
    assert len(json.loads(run.stdout)["unreadable"]) == 5
