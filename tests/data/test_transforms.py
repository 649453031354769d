"""Tensors from photographs and captions, against the library's own; crops, cut once and cut anew."""

import hashlib
import io
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPTokenizer

import tiny
from clipgraft import cached_arrays
from clipgraft.data import transforms
from clipgraft.data.images import decode, open_image, read_header
from clipgraft.data.transforms import (
    PIXELS_VERSION,
    _settings_checksum,
    clip_crop,
    clip_pixel_values,
    cut_crops,
    encode_captions,
    tokenize,
    vae_pixel_values,
)
from clipgraft.errors import DataError

BOS, EOS = 0, 1
GOLDEN = {1: {"PNG": "77b1812b2fd80fd7", "JPEG": "9faace21d0c92842", "WEBP": "77b1812b2fd80fd7"}}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return tiny.build_spelling_tokenizer()


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [32, 224])
def test_clip_pixel_values_equal_the_processors_own(size: int) -> None:
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size + 8},
        crop_size={"height": size, "width": size},
        image_mean=[0.1, 0.2, 0.3],
    )
    images = [picture(500, 333), picture(60, 90), picture(size, size)]
    pixels = clip_pixel_values(images, processor)
    assert (pixels.shape, pixels.dtype) == ((3, 3, size, size), torch.float32)
    # Float32 rounding of values up to 3.5; the library rescales in float64 first.
    torch.testing.assert_close(
        pixels, processor(images, return_tensors="pt")["pixel_values"], rtol=0, atol=1e-6
    )


def test_vae_pixels_lie_in_minus_one_to_one_channels_first() -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 51))
    pixels = vae_pixel_values([image], 32)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 32, 32), torch.float32)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))


def test_vae_pixels_fit_the_square_or_are_cropped_to_its_middle() -> None:
    image = picture(96, 32)
    middle = image.crop((32, 0, 64, 32))
    expected = torch.from_numpy(np.array(middle)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(vae_pixel_values([image, middle], 32), torch.stack([expected, expected]))


def test_vae_pixels_fill_a_bucket_and_lose_only_what_stands_out() -> None:
    image = picture(96, 64)  # upright 2:1 keeps 32 of 96 columns
    expected = torch.from_numpy(np.array(image.crop((32, 0, 64, 64)))).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(vae_pixel_values([image], 64, 32)[0], expected)
    assert vae_pixel_values([image], 16, 40).shape == (1, 3, 16, 40)


@pytest.mark.parametrize("size", [0, -8, 100])
def test_vae_size_that_the_vae_cannot_halve_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be a positive multiple of 8 pixels; got {size}"):
        vae_pixel_values([picture(32, 32)], 32, size)


def test_captions_are_padded_with_eos_to_the_longest(tokenizer: CLIPTokenizer) -> None:
    input_ids = tokenize(["ab", "a"], tokenizer)
    a, a_end, b_end = tokenizer.convert_tokens_to_ids(["a", "a</w>", "b</w>"])
    assert input_ids.tolist() == [[BOS, a, b_end, EOS], [BOS, a_end, EOS, EOS]]
    assert input_ids.dtype == torch.int64
    assert encode_captions(["ab", "a"], tokenizer)[1] == 0


def test_captions_padded_to_77_equal_the_librarys(tokenizer: CLIPTokenizer) -> None:
    captions = ["a dog", "", "x" * 90, "y" * 75, "z" * 76]
    input_ids = tokenize(captions, tokenizer, pad_to_context_length=True)
    library = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(input_ids, library["input_ids"])
    assert input_ids.shape == (5, 77)
    assert encode_captions(captions, tokenizer)[1] == 2  # 75 letters fit between BOS and EOS


def test_truncation_keeps_eos_and_is_counted(tokenizer: CLIPTokenizer) -> None:
    input_ids = tokenize(["abcdef", "ab"], tokenizer, context_length=5)
    assert input_ids[0].tolist() == [BOS, *tokenizer.convert_tokens_to_ids(["a", "b", "c"]), EOS]
    assert encode_captions(["abcdef", "ab"], tokenizer, context_length=5)[1] == 1


def test_pixels_are_as_their_version_says(tmp_path) -> None:
    """Transparent, turned by EXIF, and larger than what is made of it."""
    path, exif = tmp_path / "picture.png", Image.Exif()
    exif[0x0112] = 6
    alpha = Image.linear_gradient("L").resize((90, 60))
    image = picture(90, 60)
    image.putalpha(alpha)
    image.save(path, exif=exif)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    opened = open_image(path)
    digest = hashlib.sha256(opened.tobytes() + clip_crop(opened, processor).tobytes())
    digest.update(((vae_pixel_values([opened], 32) + 1) * 127.5).round().byte().numpy().tobytes())
    assert (PIXELS_VERSION, digest.hexdigest()[:16]) == (1, "f5f59c71fe66b234"), (
        "files become other pixels: raise PIXELS_VERSION in data/transforms.py, or what caches hold of the "
        "old ones is taken for the new ones; then write the new sum here"
    )


@pytest.mark.parametrize("context_length", [5, 6, 7])
def test_captions_are_cut_where_the_library_cuts_them(tokenizer: CLIPTokenizer, context_length: int) -> None:
    captions = ["a dog ran", "a dog", "a do g", "do gran", "a"]
    ids, num_truncated = encode_captions(captions, tokenizer, context_length=context_length)
    library = tokenizer(captions, truncation=True, max_length=context_length)["input_ids"]
    assert ids == library
    assert num_truncated == sum(len(row) > context_length for row in tokenizer(captions)["input_ids"])


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|startoftext|>"])
def test_a_caption_naming_a_special_token_is_read_to_its_end(special: str) -> None:
    tokenizer = tiny.build_tokenizer()
    [ids], _ = encode_captions([f"A dog {special} runs"], tokenizer)
    assert ids.count(tokenizer.eos_token_id) == ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == f"adog{special}runs"
    assert tokenizer(special)["input_ids"].count(tokenizer.convert_tokens_to_ids(special)) == 2  # as it was


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


def test_crops_are_the_processors_own_in_the_images_order(paths: list[Path], tmp_path: Path) -> None:
    crops = cut_crops(paths, processor_of(), tmp_path / "cache")
    assert len(crops) == 6
    for index, path in enumerate(paths):
        assert np.array_equal(crops[index], clip_crop(open_image(path), processor_of()))


def test_second_run_decodes_only_a_changed_image(paths: list[Path], tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_full_disk_is_named_and_leaves_no_partial_file(paths: list[Path], tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from transformers import CLIPImageProcessorPil
from clipgraft.data.transforms import cut_crops
from clipgraft.errors import is_user_error, one_line
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    cut_crops([Path(path) for path in sys.argv[2:]], CLIPImageProcessorPil(), Path(sys.argv[1]))
except OSError as error:
    assert is_user_error(error)
    print(one_line(error))
"""
    cache = tmp_path / "cache"
    ended = subprocess.run(
        [sys.executable, "-B", "-c", code, cache, *paths],
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
        return {_settings_checksum(processor) for processor in (CLIPImageProcessorPil(), *others)}

    first = sums()
    assert len(first) == 5
    assert _settings_checksum(CLIPImageProcessorPil(image_mean=[0, 0, 0])) in first  # comes behind the crop
    monkeypatch.setattr(transforms, "version", lambda name: "99" if name == "pillow" else version(name))
    second = sums()
    monkeypatch.setattr(transforms, "PIXELS_VERSION", 99)
    assert len(first | second | sums()) == 15


def test_long_sets_are_cut_in_segments(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_arrays, "SEGMENT_BYTES", 4 * 3 * 32 * 32)
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
