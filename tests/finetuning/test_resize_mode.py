"""How photographs become squares in fine-tuning: in training, validation and test, and ever after."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tuning import evaluations, recipe_of, run, tune, weights
from transformers import CLIPImageProcessorPil

import tiny
from clipgraft.data.transforms import clip_crop, with_resize_mode
from clipgraft.errors import CheckpointError
from clipgraft.finetuning.finetune import load_inputs
from clipgraft.finetuning.wise_ft import interpolate
from clipgraft.models.clip import load_clip

SIDE = tiny.IMAGE_SIZE
SIZES = {
    "shortest": {"shortest_edge": SIDE},
    "longest": {"max_height": SIDE, "max_width": SIDE},
    "squash": {"height": SIDE, "width": SIDE},
}


def processor_of(mode):
    return with_resize_mode(tiny.build_clip().image_processor, mode)


@pytest.fixture(scope="module")
def photograph():
    """Red, green and blue side by side: 3:1."""
    image = Image.new("RGB", (192, 64), (0, 255, 0))
    image.paste((255, 0, 0), (0, 0, 64, 64))
    image.paste((0, 0, 255), (128, 0, 192, 64))
    return image


def test_shortest_keeps_the_middle_square(photograph):
    crop = clip_crop(photograph, processor_of("shortest"))
    assert crop.shape == (3, SIDE, SIDE)
    assert (crop[1, :, 2:-2] == 255).all()
    assert (crop == clip_crop(photograph, tiny.build_clip().image_processor)).all()


def test_longest_keeps_all_between_black_bars(photograph):
    crop = clip_crop(photograph, processor_of("longest"))
    assert crop.shape == (3, SIDE, SIDE)
    rows = np.flatnonzero(crop.any(axis=(0, 2)))
    assert (rows[0], rows[-1], len(rows)) == (11, 20, 10)  # a third of 32, in the middle
    assert [crop[channel, 16, column] for channel, column in ((0, 3), (1, 16), (2, 28))] == [255] * 3
    plain = np.asarray(photograph.resize((32, 10), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (crop[:, rows[0] : rows[-1] + 1] == plain).all()


def test_squash_is_a_plain_resize_to_the_square(photograph):
    crop = clip_crop(photograph, processor_of("squash"))
    plain = np.asarray(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (crop == plain).all()


def test_thinnest_image_keeps_a_row_of_pixels():
    image = Image.new("RGB", (1600, 16), "white")
    assert clip_crop(image, processor_of("longest")).any(axis=(0, 2)).sum() == 1


@pytest.mark.parametrize("mode", SIZES)
def test_square_images_are_equal_in_all_modes(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    assert (clip_crop(image, processor_of(mode)) == clip_crop(image, processor_of(""))).all()


@pytest.mark.parametrize("mode", SIZES)
def test_mode_is_the_librarys_own_after_saving(mode, tmp_path, photograph):
    processor_of(mode).save_pretrained(tmp_path)
    library = CLIPImageProcessorPil.from_pretrained(tmp_path)
    assert dict(library.size) == SIZES[mode]
    expected = library(photograph, do_rescale=False, do_normalize=False)["pixel_values"][0]
    assert (clip_crop(photograph, processor_of(mode)) == expected).all()


@pytest.mark.parametrize("mode", SIZES)
def test_tuned_clip_keeps_its_mode_and_later_tuning_too(world, tmp_path, mode):
    tune(world, tmp_path / "out", num_epochs=1, resize_mode=mode)
    assert dict(load_clip(tmp_path / "out" / "clip").image_processor.size) == SIZES[mode]
    recipe = recipe_of(world, num_epochs=1)
    recipe = recipe.model_copy(update={"clip": recipe.clip.updated({"name": str(tmp_path / "out" / "clip")})})
    again = run(recipe, tmp_path / "again")
    assert dict(again.clip.image_processor.size) == SIZES[mode]


def test_mode_changes_training_and_all_figures(world, tmp_path):
    # The images are of one colour each: only black bars change them.
    own, _ = tune(world, tmp_path / "own", num_epochs=1)
    shortest, first = tune(world, tmp_path / "shortest", num_epochs=1, resize_mode="shortest")
    longest, second = tune(world, tmp_path / "longest", num_epochs=1, resize_mode="longest")
    assert own.epoch_mean_loss == shortest.epoch_mean_loss != longest.epoch_mean_loss
    assert not torch.equal(
        *(weights(model, "visual")["visual_projection.weight"] for model in (first, second))
    )
    assert [row["val_loss"] for row in evaluations(tmp_path / "own")] != [
        row["val_loss"] for row in evaluations(tmp_path / "longest")
    ]


def test_resume_refuses_another_mode(world, tmp_path):
    tune(world, tmp_path / "out", num_epochs=1)
    with pytest.raises(CheckpointError, match=r"finetune\.resize_mode was '', is 'squash'"):
        tune(world, tmp_path / "out", num_epochs=2, resize_mode="squash", resume=True)


def test_interpolation_uses_the_tuned_clips_mode(world):
    clip, data = load_inputs(recipe_of(world))
    after = clip._replace(image_processor=processor_of("squash"))
    assert dict(interpolate(clip, after, data).clip.image_processor.size) == SIZES["squash"]
