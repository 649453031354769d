"""Tensors from photographs and captions, against the library's own preprocessing."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPTokenizer

import tiny
from clipgraft.data.images import open_image
from clipgraft.data.transforms import (
    PIXELS_VERSION,
    clip_crop,
    clip_pixel_values,
    encode_captions,
    tokenize,
    vae_pixel_values,
)

BOS, EOS = 0, 1


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """A real CLIP tokenizer that spells: one token for each letter."""
    vocab = {"<|startoftext|>": BOS, "<|endoftext|>": EOS}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocab[letter], vocab[f"{letter}</w>"] = len(vocab), len(vocab) + 1
    return CLIPTokenizer(vocab=vocab, merges=[])


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


def test_vae_pixel_values_lie_in_minus_one_to_one_with_channels_first() -> None:
    image = Image.new("RGB", (64, 64), (255, 0, 51))
    pixels = vae_pixel_values([image], 32)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 32, 32), torch.float32)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([1.0, -1.0, -0.6]))


def test_vae_pixel_values_keep_pixels_that_fit_and_crop_the_middle_of_those_that_do_not() -> None:
    image = picture(96, 32)
    middle = image.crop((32, 0, 64, 32))
    expected = torch.from_numpy(np.array(middle)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(vae_pixel_values([image, middle], 32), torch.stack([expected, expected]))


@pytest.mark.parametrize("size", [0, -8, 100])
def test_vae_size_that_the_vae_cannot_halve_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size must be a positive multiple of 8 pixels; got {size}"):
        vae_pixel_values([picture(32, 32)], size)


def test_captions_are_padded_with_eos_to_the_longest(tokenizer: CLIPTokenizer) -> None:
    input_ids, num_truncated = tokenize(["ab", "a"], tokenizer)
    a, a_end, b_end = tokenizer.convert_tokens_to_ids(["a", "a</w>", "b</w>"])
    assert input_ids.tolist() == [[BOS, a, b_end, EOS], [BOS, a_end, EOS, EOS]]
    assert (input_ids.dtype, num_truncated) == (torch.int64, 0)


def test_captions_padded_to_77_equal_the_librarys(tokenizer: CLIPTokenizer) -> None:
    captions = ["a dog", "", "x" * 90, "y" * 75, "z" * 76]
    input_ids, num_truncated = tokenize(captions, tokenizer, pad_to_context_length=True)
    library = tokenizer(captions, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    assert torch.equal(input_ids, library["input_ids"])
    assert input_ids.shape == (5, 77)
    assert num_truncated == 2  # 90 and 76 letters; 75 letters fit between BOS and EOS


def test_truncation_keeps_eos_and_is_counted(tokenizer: CLIPTokenizer) -> None:
    input_ids, num_truncated = tokenize(["abcdef", "ab"], tokenizer, context_length=5)
    assert input_ids[0].tolist() == [BOS, *tokenizer.convert_tokens_to_ids(["a", "b", "c"]), EOS]
    assert num_truncated == 1


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
def test_a_caption_that_names_a_special_token_is_read_to_its_end(special: str) -> None:
    tokenizer = tiny.build_tokenizer()
    [ids], _ = encode_captions([f"A dog {special} runs"], tokenizer)
    assert ids.count(tokenizer.eos_token_id) == ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:-1]).replace(" ", "") == f"adog{special}runs"
    assert tokenizer(special)["input_ids"].count(tokenizer.convert_tokens_to_ids(special)) == 2  # as it was
