"""Fine-tuning on images that are not in memory: shards, read by workers, broken off and resumed."""

import json

import pytest
from tiny_tuning import recipe_of

import tiny
from clipgraft.data.formats import load_dataset
from clipgraft.errors import CheckpointError
from clipgraft.finetuning.finetune import finetune
from clipgraft.models.clip import load_clip
from clipgraft.training.objectives import ContrastiveObjective
from regression import read_log
from shard_writers import jpeg, write_shards, write_tar


class BrokenOffError(Exception):
    """In place of a signal, which would end this process's other tests too."""


class Mortal(ContrastiveObjective):
    """Breaks off at a call of `embed` in training."""

    num_calls, dies_at = 0, 0

    def embed(self, batch):
        if self.training:
            type(self).num_calls += 1
        if self.num_calls == self.dies_at > 0:
            raise BrokenOffError
        return super().embed(batch)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.write_clip(folder / "clip")
    write_shards(folder / "data", 70, 10)
    return folder


def run(world, out, *, dies_at=0, resume=False, data=None, on_damaged="stop", **settings):
    Mortal.num_calls, Mortal.dies_at = 0, dies_at
    recipe = recipe_of(world, accumulation="separate", checkpoint_every=2, **settings)
    source = recipe.data.updated({"source": str(data or world / "data"), "on_damaged": on_damaged})
    recipe = recipe.model_copy(update={"data": source})
    dataset = load_dataset(recipe.data)
    return finetune(
        load_clip(world / "clip"), dataset, output_dir=out, resume=resume, recipe=recipe, objective=Mortal
    )


def weights_of(out):
    return (out / "clip/model.safetensors").read_bytes()


@pytest.mark.slow
def test_run_broken_off_in_a_shard_ends_in_the_same_bits(world, tmp_path):
    result = run(world, tmp_path / "whole", num_workers=0)
    num_steps = 2 * (result.num_train_images // 8)
    with pytest.raises(BrokenOffError):
        run(world, tmp_path / "parts", num_workers=2, dies_at=num_steps - 2)
    run(world, tmp_path / "parts", num_workers=1, resume=True)
    assert weights_of(tmp_path / "parts") == weights_of(tmp_path / "whole")
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert result.num_steps == num_steps
    checked = json.loads((tmp_path / "whole/data.json").read_text())
    assert checked["counts"]["train"]["images"] == result.num_train_images


@pytest.mark.integration
def test_other_shards_are_refused_when_resuming(world, tmp_path):
    run(world, tmp_path / "out", num_epochs=1)
    other = write_shards(tmp_path / "other", 60, 10)
    with pytest.raises(CheckpointError, match=r"made with other .*train images"):
        run(world, tmp_path / "out", resume=True, data=other)


@pytest.mark.integration
def test_frozen_vision_tower_encodes_images_as_they_come(world, tmp_path):
    result = run(world, tmp_path / "out", frozen_vision_layers=-1, num_epochs=1)
    before, after = load_clip(world / "clip").model, result.clip.model
    assert before.vision_model.state_dict().keys() == after.vision_model.state_dict().keys()
    same = [
        (value == after.vision_model.state_dict()[name]).all()
        for name, value in before.vision_model.state_dict().items()
    ]
    assert all(same)
    assert (before.text_projection.weight != after.text_projection.weight).any()


@pytest.mark.integration
def test_skipped_image_of_a_shard_is_named_and_counted(world, tmp_path):
    images = [(f"train{n:02}.{end}", content) for n in range(16) for end, content in sample(n)]
    data = write_tar(tmp_path / "train.tar", images)
    result = run(world, tmp_path / "out", data=data, on_damaged="skip", num_workers=1, num_epochs=1)
    assert result.num_damaged_images == 1
    damaged = json.loads((tmp_path / "out/data.json").read_text())["damaged"]
    (reason,) = damaged.values()
    assert reason.startswith("is damaged")


def sample(number):
    """Image and caption of a sample; the fourth image is cut."""
    content = jpeg(number)
    return ("jpg", content[: len(content) // 2] if number == 3 else content), ("txt", f"a photo of {number}")
