"""Fine-tuning on a listing: from its first step on as on images in memory, resumed to the same bits."""

import json

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from tiny_tuning import recipe_of, run, with_source

from clipgraft.data.formats import load_dataset
from clipgraft.errors import DataError, UserError


@pytest.fixture
def images(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return load_dataset(world / "data").images


def write_listing(images, path, *, gone=(), only_train=False):
    """Write a listing whose names are absolute."""
    table = {
        "image": [str(image.file) + (".gone" if n in gone else "") for n, image in enumerate(images)],
        "captions": [list(image.captions) for image in images],
        "split": ["train" if only_train else image.split for image in images],
    }
    parquet.write_table(pa.table(table), path)
    return path


@pytest.fixture
def listed(world, images):
    """A listing beside the images' folder, of all of them."""
    path = write_listing(images, world / "data" / "list.parquet")
    yield path
    path.unlink()


@pytest.mark.integration
def test_a_listing_trains_as_the_images_in_memory(world, listed, tmp_path):
    of_listing = run(with_source(recipe_of(world), listed), tmp_path / "listed")
    listed.rename(tmp_path / "list.parquet")
    in_memory = run(recipe_of(world), tmp_path / "held")
    (tmp_path / "list.parquet").rename(listed)
    assert of_listing.num_train_images == in_memory.num_train_images
    assert of_listing.epoch_mean_loss == in_memory.epoch_mean_loss
    assert of_listing.recall_after == in_memory.recall_after
    for one, other in zip(of_listing.clip.model.parameters(), in_memory.clip.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_a_resumed_listing_ends_with_the_same_bits(world, listed, tmp_path):
    recipe = with_source(recipe_of(world, num_workers=1), listed)
    run(recipe, tmp_path / "whole")
    run(with_source(recipe_of(world, num_epochs=1, num_workers=1), listed), tmp_path / "parts")
    run(recipe, tmp_path / "parts", resume=True)
    name = "clip/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.integration
def test_missing_images_stop_or_are_skipped_and_named(world, images, tmp_path):
    train = [number for number, image in enumerate(images) if image.split == "train"]
    path = write_listing(images, world / "data" / "list.parquet", gone=train[:2])
    try:
        recipe = with_source(recipe_of(world), path)
        with pytest.raises((DataError, UserError), match=r"\.gone: no such image") as raised:
            run(recipe, tmp_path / "stopped")
        skipping = recipe.model_copy(update={"data": recipe.data.updated({"on_damaged": "skip"})})
        result = run(skipping, tmp_path / "skipped")
    finally:
        path.unlink()
    assert "\n" not in str(raised.value)
    assert result.num_train_images == len(train)
    damaged = json.loads((tmp_path / "skipped" / "data.json").read_text())["damaged"]
    assert len(damaged) == 2
    assert all(name.endswith(".gone") for name in damaged)


@pytest.mark.integration
def test_a_listing_of_training_images_alone_is_enough(world, images, tmp_path):
    path = write_listing(images, world / "data" / "list.parquet", only_train=True)
    try:
        result = run(with_source(recipe_of(world), path), tmp_path / "out")
    finally:
        path.unlink()
    assert result.num_train_images == len(images)
    assert result.recall_after is None
    assert json.loads((tmp_path / "out" / "data.json").read_text())["counts"]["train"]["images"] == len(
        images
    )
