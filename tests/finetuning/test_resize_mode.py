"""How photographs become squares in fine-tuning: in training, validation and test, and ever after."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_tuning import evaluations, recipe_of, run, tune, weights, with_source
from transformers import CLIPImageProcessorPil

import tiny
from clipgraft.data import crop_reader
from clipgraft.data.transforms import clip_crop, with_resize_mode
from clipgraft.errors import CheckpointError
from clipgraft.files import file_sha256
from clipgraft.finetuning.finetune import load_inputs
from clipgraft.finetuning.wise_ft import interpolate
from clipgraft.models.clip import load_clip
from clipgraft.models.weights import MANIFEST_NAME
from clipgraft.training import objectives

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


@pytest.mark.integration
@pytest.mark.parametrize("mode", SIZES)
def test_tuned_clip_keeps_its_mode_and_later_tuning_too(world, tmp_path, mode):
    tune(world, tmp_path / "out", num_epochs=1, resize_mode=mode)
    assert dict(load_clip(tmp_path / "out" / "clip").image_processor.size) == SIZES[mode]
    recipe = recipe_of(world, num_epochs=1)
    recipe = recipe.model_copy(update={"clip": recipe.clip.updated({"name": str(tmp_path / "out" / "clip")})})
    again = run(recipe, tmp_path / "again")
    assert dict(again.clip.image_processor.size) == SIZES[mode]


@pytest.mark.integration
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


@pytest.mark.integration
def test_resume_refuses_another_mode(world, tmp_path):
    tune(world, tmp_path / "out", num_epochs=1)
    with pytest.raises(CheckpointError, match=r"finetune\.resize_mode was '', is 'squash'"):
        tune(world, tmp_path / "out", num_epochs=2, resize_mode="squash", resume=True)


def test_interpolation_uses_the_tuned_clips_mode(world):
    clip, data = load_inputs(recipe_of(world))
    after = clip._replace(image_processor=processor_of("squash"))
    assert dict(interpolate(clip, after, data).clip.image_processor.size) == SIZES["squash"]


@pytest.mark.integration
@pytest.mark.parametrize("mode", SIZES)
def test_random_crops_are_the_same_from_cache_or_file(world, tmp_path, monkeypatch, mode):
    # Decoded while training where the cache is too small, in two workers.
    options = {"num_epochs": 2, "crop_scale": 0.4, "resize_mode": mode}
    _, kept = tune(world, tmp_path / "kept", **options)
    monkeypatch.setattr(crop_reader, "cache_bound", lambda: 0)
    _, read = tune(world, tmp_path / "read", num_workers=2, **options)
    assert all(torch.equal(value, weights(read, "")[name]) for name, value in weights(kept, "").items())


def test_random_crops_show_all_of_long_photographs(tmp_path, world, monkeypatch):
    data = shutil.copytree(world / "data", tmp_path / "data")
    for path in (data / "Images").iterdir():  # black in the middle, white at both ends
        image = Image.new("RGB", (160, 40), "white")
        image.paste("black", (60, 0, 100, 40))
        image.save(path)
    seen = []
    encode = objectives.encode_images
    monkeypatch.setattr(
        objectives, "encode_images", lambda model, pixels: seen.append(pixels) or encode(model, pixels)
    )
    run(with_source(recipe_of(world, num_epochs=1, crop_scale=0.8), data), tmp_path / "out")
    trained = torch.cat(seen)
    whites = (trained > 1).float().mean((1, 2, 3))
    assert (whites > 0.8).sum() > 5  # the middle square alone is black
    assert (whites < 0.2).sum() > 0


@pytest.mark.integration
def test_checkpoint_with_crops_of_the_middle_alone_is_refused(world, tmp_path):
    tune(world, tmp_path / "out", num_epochs=1, crop_scale=0.5)
    for checkpoint in (tmp_path / "out" / "checkpoints").iterdir():
        state = json.loads((checkpoint / "state.json").read_text())
        del state["data"]["random crops"]
        (path := checkpoint / "state.json").write_text(json.dumps(state))
        manifest = json.loads((checkpoint / MANIFEST_NAME).read_text())
        manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        (checkpoint / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="was made with other random crops than the present ones"):
        tune(world, tmp_path / "out", num_epochs=2, crop_scale=0.5, resume=True)
