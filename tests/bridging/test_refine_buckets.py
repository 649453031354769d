"""Refining on photographs of several shapes: each in the size nearest in aspect ratio."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from refine_world import recipe_of, weights_of

import tiny
from clipgraft.bridging import latents as own
from clipgraft.bridging.fit import bridge_recipe
from clipgraft.bridging.latents import choose_buckets, encode_images, load_latents
from clipgraft.bridging.refine import _batches, refine_recipe
from clipgraft.data.formats import load_dataset
from clipgraft.data.images import open_image
from clipgraft.data.transforms import vae_pixel_values
from clipgraft.evaluation.variants import load_images
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
from helpers import call

SHAPES = [(80, 80), (150, 50), (60, 120), (100, 60)]
"""Widths and heights; the tiny base's buckets hold 64 x 64 pixels."""
LATENTS = {(80, 80): (8, 8), (150, 50): (4, 12), (60, 120): (10, 6), (100, 60): (6, 10)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    names = {"clip": tiny.write_clip(folder / "clip"), "base": tiny.write_base(folder / "base")}
    names["data"] = tiny.write_flickr8k(folder / "data", 36)
    for index, path in enumerate(sorted((names["data"] / "Images").iterdir())):
        size = SHAPES[index % 4]
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    bridge_recipe(recipe_of(names), folder / "bridge")
    return {**names, "graft": folder / "bridge" / "graft"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_latents_are_those_of_the_nearest_size(world):
    base = FrozenBase.load(str(world["base"]))
    images = load_dataset(world["data"]).train
    latents = load_latents(base, images, choose_buckets(base, "buckets"))
    for image, found in zip(images, latents, strict=True):
        opened = open_image(image.file)
        height, width = LATENTS[opened.size]
        assert found.shape == (4, height, width)
        with torch.no_grad():
            alone = base.encode_latents(vae_pixel_values([opened], 8 * height, 8 * width))[0].half()
        torch.testing.assert_close(torch.from_numpy(found), alone, rtol=1e-2, atol=1e-3)


def test_images_of_one_size_are_encoded_together(world, monkeypatch):
    base, encoded = FrozenBase.load(str(world["base"])), []
    encode = base.encode_latents
    monkeypatch.setattr(base, "encode_latents", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    images = load_dataset(world["data"]).train
    load_latents(base, images, choose_buckets(base, "buckets"))
    assert sum(encoded) == len(images) == 24
    assert encoded == [4, 2] * 4


def test_center_crops_every_image_to_the_square(world):
    base = FrozenBase.load(str(world["base"]))
    data = load_dataset(world["data"])
    found = encode_images(data, base, crop="center")
    assert {array.shape for array in found.train_latents} == {(4, 8, 8)}
    pixels = [vae_pixel_values([open_image(image.file)], 64) for image in found.test]
    with torch.no_grad():
        expected = base.encode_latents(torch.cat(pixels)).half()
    torch.testing.assert_close(torch.stack(found.test_latents), expected, rtol=1e-2, atol=1e-3)


def test_batches_hold_one_size_and_every_image(world):
    base, graft = FrozenBase.load(str(world["base"])), Graft.from_pretrained(world["graft"])
    images = encode_images(load_dataset(world["data"]), base)
    assert {tuple(latents.shape[1:]) for latents in images.test_latents} == set(LATENTS.values())
    batches = _batches(images, graft, recipe_of(world).refine, 0)
    for epoch in (0, 1):
        sizes = [tuple(batch["latents"].shape) for batch in batches.epoch(epoch, 0)]
        assert len(sizes) == len(batches) == 8  # of each size four images and two
        assert sorted(size[0] for size in sizes) == [2] * 4 + [4] * 4
        assert {size[2:] for size in sizes} == set(LATENTS.values())


@pytest.mark.integration
@pytest.mark.parametrize(
    "steps", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_run_broken_anywhere_ends_in_the_same_bits(world, tmp_path, steps):
    every = "refine.checkpoint_every=1", "refine.save_total_limit=99"
    recipe = recipe_of(world, f"refine.gradient_accumulation_steps={steps}", *every)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = refine_recipe(recipe, world["graft"], whole)
    assert result.num_steps == 2 * -(-8 // steps)
    shutil.copytree(whole, cut)
    for checkpoint in (cut / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    refine_recipe(recipe, world["graft"], cut, resume=True)
    ends = weights_of(whole), weights_of(cut)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert [row["loss"] for row in log_of(whole)] == [row["loss"] for row in log_of(cut)]
    assert all(np.isfinite(row["loss"]) for row in log_of(whole))
    assert result.before.keys() == result.after.keys() == {"50", "250", "500", "750", "950"}
    assert all(0 < error < 10 for error in result.after.values())


@pytest.mark.integration
def test_crop_is_named_on_the_command_line(world, tmp_path, capsys):
    options = ["--graft", world["graft"], "--base", world["base"], "--data", world["data"], "--out"]
    small = ["--set", "refine.batch_size=4", "--set", "refine.num_epochs=1", "--set", "refine.warmup_steps=0"]
    steps = {}
    for crop in ("buckets", "center"):
        assert call("refine", *options, tmp_path / crop, *small, "--set", f"refine.crop={crop}") == 0
        steps[crop] = len(log_of(tmp_path / crop))
    assert steps == {"buckets": 8, "center": 6}
    capsys.readouterr()
    assert call("refine", *options, tmp_path / "other", *small, "--set", "refine.crop=square") == 2
    assert "refine.crop" in (error := capsys.readouterr().err)
    assert "'buckets' or 'center'" in error


@pytest.mark.integration
def test_square_images_have_the_batches_of_center(tmp_path, world, monkeypatch):
    data = shutil.copytree(world["data"], tmp_path / "data")
    for index, path in enumerate((data / "Images").iterdir()):
        Image.new("RGB", (70, 70), (index, 2 * index, 3 * index)).save(path)
    monkeypatch.setattr(own, "WINDOW", 8)
    ends = []
    for crop in ("buckets", "center"):
        recipe = recipe_of({**world, "data": data}, f"refine.crop={crop}", "refine.batch_size=5")
        assert refine_recipe(recipe, world["graft"], tmp_path / crop).num_steps == 2 * (24 // 5)
        ends.append(weights_of(tmp_path / crop))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.integration
def test_skipped_photographs_are_named_in_every_result(tmp_path, world):
    data = shutil.copytree(world["data"], tmp_path / "data")
    (data / "Images" / "0003.jpg").write_bytes(b"")
    named = {"0003.jpg": "is empty (0 bytes)"}
    recipe = recipe_of({**world, "data": data}, "data.on_damaged=skip", "refine.num_epochs=1")
    bridge_recipe(recipe, tmp_path / "bridge")
    refine_recipe(recipe, world["graft"], tmp_path / "refine")
    for stage in ("bridge", "refine"):
        assert json.loads((tmp_path / stage / "metrics.json").read_text())["damaged"] == named
    assert load_images(recipe.data, is_flatland=False).record.damaged == named
