"""Crops on disk: what they hold, what is cut anew, and what survives damage."""

import hashlib
import io
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from clipgraft.data import transforms
from clipgraft.data.images import decode, open_image, read_header
from clipgraft.data.transforms import PIXELS_VERSION, _settings_sum, clip_crop, cut_crops
from clipgraft.errors import DataError

GOLDEN = {1: {"PNG": "77b1812b2fd80fd7", "JPEG": "9faace21d0c92842", "WEBP": "77b1812b2fd80fd7"}}


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


def test_damaged_crops_are_cut_anew(paths: list[Path], tmp_path: Path) -> None:
    before = cut_crops(paths, processor_of(), tmp_path / "cache")
    expected = [before[index] for index in range(6)]
    (segment,) = (tmp_path / "cache").rglob("*.safetensors")
    segment.write_bytes(segment.read_bytes()[:-1000])
    done: list[int] = []
    after = cut_crops(paths, processor_of(), tmp_path / "cache", done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    assert all(np.array_equal(after[index], expected[index]) for index in range(6))


def test_full_disk_is_named_and_leaves_no_partial_file(paths: list[Path], tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from test_crops import cut_crops, processor_of
from clipgraft.errors import is_user_error, one_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    cut_crops([Path(path) for path in sys.argv[2:]], processor_of(), Path(sys.argv[1]))
except OSError as error:
    assert is_user_error(error)
    print(one_line(error))
"""
    cache = tmp_path / "cache"
    ended = subprocess.run(
        [sys.executable, "-B", "-c", code, cache, *paths],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.startswith(f"no space left on the disk ({cache}")
    assert ended.stdout.count("\n") == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_large_images_are_cut_in_one_thread(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []

    class Processor(CLIPImageProcessorPil):
        def __call__(self, *args: object, **kwargs: object) -> object:
            threads.append(threading.current_thread())
            return super().__call__(*args, **kwargs)

    expected = cut_crops(paths, processor_of(), tmp_path / "all at once")
    monkeypatch.setattr(transforms, "PARALLEL_PIXELS", 40 * 48 - 1)
    done: list[int] = []
    processor = Processor(**processor_of().to_dict())
    crops = cut_crops(paths, processor, tmp_path / "one by one", done.append)
    assert threads == [threading.main_thread()] * 6
    assert done == [1, 2, 3, 4, 5, 6]
    assert all(np.array_equal(crops[index], expected[index]) for index in range(6))


def test_pixels_are_those_of_the_version() -> None:
    """Where other pixels come out, PIXELS_VERSION is to be raised, so that no cache gives the old ones."""
    rows, columns = np.mgrid[:40, :56]
    pixels = np.stack([rows * 6, columns * 4, (rows * columns) % 256], axis=-1).astype(np.uint8)
    sums = {}
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90}), ("WEBP", {"lossless": True})):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, **options)
        crop = clip_crop(decode(read_header(file.getvalue(), 10_000)), processor_of())
        sums[kind] = hashlib.sha256(crop.tobytes()).hexdigest()[:16]
    assert sums == GOLDEN[PIXELS_VERSION]


def test_crop_without_resizing_is_the_middle_of_the_photograph(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (crop,) = cut_crops([tmp_path / "a.png"], processor_of(), tmp_path / "cache")
    assert np.array_equal(crop, pixels[:, 8:40].transpose(2, 0, 1))


def test_what_decides_the_pixels_decides_where_crops_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def sums() -> set[str]:
        changed = {
            "resample": 2,
            "do_center_crop": False,
            "do_resize": False,
            "crop_size": {"height": 8, "width": 8},
        }
        others = (CLIPImageProcessorPil(**{name: value}) for name, value in changed.items())
        return {_settings_sum(processor) for processor in (CLIPImageProcessorPil(), *others)}

    first = sums()
    assert len(first) == 5
    assert _settings_sum(CLIPImageProcessorPil(image_mean=[0, 0, 0])) in first  # comes behind the crop
    monkeypatch.setattr(transforms, "version", lambda name: "99" if name == "pillow" else version(name))
    second = sums()
    monkeypatch.setattr(transforms, "PIXELS_VERSION", 99)
    assert len(first | second | sums()) == 15


def test_long_sets_are_cut_in_segments(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "SEGMENT_BYTES", 4 * 3 * 32 * 32)
    crops = cut_crops(paths, processor_of(), tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    assert np.array_equal(crops[5], clip_crop(open_image(paths[5]), processor_of()))


def test_image_that_cannot_be_read_is_named(paths: list[Path], tmp_path: Path) -> None:
    paths[4].write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"4.png: is no image of a known format"):
        cut_crops(paths, processor_of(), tmp_path / "cache")
    paths[4].unlink()
    with pytest.raises(FileNotFoundError, match=r"4.png: no such image"):
        cut_crops(paths, processor_of(), tmp_path / "cache")
