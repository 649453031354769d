"""Crops on disk: what they hold, what is cut anew, and what survives damage."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from clipgraft.data import crops as crops_module
from clipgraft.data.crops import cut_crops
from clipgraft.data.images import open_image
from clipgraft.data.transforms import clip_crop
from clipgraft.errors import DataError


def processor_of(side: int = 32) -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    found = []
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        found.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(found[-1])
    return found


def test_crops_are_the_processors_own_in_the_order_of_the_images(paths: list[Path], tmp_path: Path) -> None:
    crops = cut_crops(paths, processor_of(), tmp_path / "cache")
    assert len(crops) == 6
    for index, path in enumerate(paths):
        assert np.array_equal(crops[index], clip_crop(open_image(path), processor_of()))


def test_second_run_decodes_nothing_and_a_changed_image_is_cut_alone(
    paths: list[Path], tmp_path: Path
) -> None:
    first, second, third = [], [], []
    cut_crops(paths, processor_of(), tmp_path / "cache", first.append)
    cut_crops(paths[::-1], processor_of(), tmp_path / "cache", second.append)
    Image.new("RGB", (50, 50), "red").save(paths[2])
    crops = cut_crops(paths, processor_of(), tmp_path / "cache", third.append)
    assert (first, second, third) == ([1, 2, 3, 4, 5, 6], [], [1])
    assert np.array_equal(crops[2], clip_crop(open_image(paths[2]), processor_of()))


def test_other_settings_are_other_crops(paths: list[Path], tmp_path: Path) -> None:
    small = cut_crops(paths, processor_of(32), tmp_path / "cache")
    large = cut_crops(paths, processor_of(40), tmp_path / "cache")
    assert (small[0].shape, large[0].shape) == ((3, 32, 32), (3, 40, 40))


def test_equal_files_are_cut_once(paths: list[Path], tmp_path: Path) -> None:
    paths[1].write_bytes(paths[0].read_bytes())
    done: list[int] = []
    crops = cut_crops(paths, processor_of(), tmp_path / "cache", done.append)
    assert done == [1, 2, 3, 4, 5]
    assert np.array_equal(crops[0], crops[1])


@pytest.mark.parametrize("damage", ["flip", "cut short", "delete"])
def test_damaged_crop_is_cut_anew(paths: list[Path], tmp_path: Path, damage: str) -> None:
    before = cut_crops(paths, processor_of(), tmp_path / "cache")
    expected = [before[index] for index in range(6)]
    (segment,) = (tmp_path / "cache").rglob("*.npy")
    content = bytearray(segment.read_bytes())
    content[-5] ^= 0xFF
    if damage == "delete":
        segment.unlink()
    else:
        segment.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    done: list[int] = []
    after = cut_crops(paths, processor_of(), tmp_path / "cache", done.append)
    assert len(done) == {"flip": 1, "cut short": 6, "delete": 6}[damage]
    assert all(np.array_equal(after[index], expected[index]) for index in range(6))


def test_long_sets_are_cut_in_segments(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crops_module, "SEGMENT_BYTES", 4 * 3 * 32 * 32)
    crops = cut_crops(paths, processor_of(), tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2
    assert np.array_equal(crops[5], clip_crop(open_image(paths[5]), processor_of()))


def test_crops_can_be_sent_to_another_process_without_their_content(
    paths: list[Path], tmp_path: Path
) -> None:
    crops = cut_crops(paths, processor_of(), tmp_path / "cache")
    expected = crops[3]
    sent = pickle.dumps(crops)
    assert len(sent) < 3 * 32 * 32
    assert np.array_equal(pickle.loads(sent)[3], expected)


def test_image_that_cannot_be_read_is_named(paths: list[Path], tmp_path: Path) -> None:
    paths[4].write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"4.png: is no image of a known format"):
        cut_crops(paths, processor_of(), tmp_path / "cache")
    paths[4].unlink()
    with pytest.raises(FileNotFoundError, match=r"4.png: no such image"):
        cut_crops(paths, processor_of(), tmp_path / "cache")
