"""Batches of sets in memory: decided by seed, epoch and position alone."""

import pytest
import torch

import tiny
from clipgraft.data.batches import CropBatches, LatentBatches, from_uint8, load_pixels, to_uint8
from clipgraft.data.formats import load_dataset


def builders():
    pixels = torch.randint(
        0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    latents = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 4, 2, 2)
    input_ids = [[[1, index, 2], [1, index, index, 2]] for index in range(10, 20)]
    return {
        "crops": CropBatches(pixels, crop_size=8, batch_size=3, seed=4),
        "latents": LatentBatches(latents, input_ids, eos_token_id=2, context_length=6, batch_size=3, seed=4),
    }


@pytest.mark.parametrize("kind", ["crops", "latents"])
def test_epoch_from_a_position_gives_what_the_unbroken_epoch_gives(kind):
    batches = builders()[kind]
    whole, rest = list(batches.epoch(2, 0)), list(batches.epoch(2, 1))
    assert len(whole) == len(batches) == 3
    for one, other in zip(whole[1:], rest, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("kind", ["crops", "latents"])
def test_epochs_differ(kind):
    batches = builders()[kind]
    first, second = next(iter(batches.epoch(0, 0))), next(iter(batches.epoch(1, 0)))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_caption_stays_with_its_latents_and_is_padded_with_eos():
    for batch in builders()["latents"].epoch(0, 0):
        for latents, ids in zip(batch["latents"], batch["input_ids"], strict=True):
            assert ids[1] == latents[0, 0, 0] + 10
            assert ids[-1] == 2
            assert len(ids) == 6


def test_crop_is_a_piece_of_its_image_in_the_vaes_range():
    batches = builders()["crops"]
    crop = next(iter(batches.epoch(0, 0)))["vae_pixel_values"][0]
    windows = from_uint8(batches.pixels).unfold(2, 8, 1).unfold(3, 8, 1)  # (N, 3, 9, 9, 8, 8)
    assert (windows == crop[None, :, None, None]).all(-1).all(-1).all(1).any()
    assert -1 <= crop.min() <= crop.max() <= 1


def test_pixels_come_back_through_uint8():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)


def test_images_are_decoded_to_the_size_asked_for(tmp_path):
    source = load_dataset(tiny.write_flickr8k(tmp_path / "data", num_images=6))
    pixels = load_pixels(source.images, 24)
    assert pixels.shape == (6, 3, 24, 24)
    assert pixels.dtype == torch.uint8
