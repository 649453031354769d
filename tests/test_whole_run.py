"""Going on with a run: what it must be the same in, what may change, and more epochs than it began with."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.config import load_recipe
from clipgraft.models.clip import load_clip, save_clip
from clipgraft.training.checkpoints import VERSION
from helpers import call, refused

TRAIN = ("--set", "finetune.batch_size=8", "--set", "finetune.learning_rate=1e-3", "--set", 'device="cpu"')
TRAIN += ("--set", 'finetune.mixed_precision="no"')

CROPPED = ("--set", "finetune.crop_scale=0.5", "--set", "finetune.captions_per_image=2")
GOLDEN_LOSSES = [7.05106, 4.48312, 2.95444, 2.71214]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A world, and a fine-tuning of two epochs, four steps each, in it."""
    folder = tmp_path_factory.mktemp("world")
    cache = folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        tiny.write_clip(folder / "clip")
        tiny.write_base(folder / "base")
        tiny.write_flickr8k(folder / "data", 48)
        (folder / "captions.txt").write_text("\n".join(f"a dog and {index} cats" for index in range(160)))
        assert finetune(folder, folder / "run", epochs=2) == 0
        yield folder


@pytest.fixture
def world(finished, tmp_path, monkeypatch):
    """A copy of that world, to change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("clip", "base", "data", "run"):
        shutil.copytree(finished / name, tmp_path / name)
    shutil.copy(finished / "captions.txt", tmp_path)
    return tmp_path


def finetune_options(world, out, *, epochs, data="data", clip="clip"):
    options = ["--data", world / data, "--clip", world / clip, "--out", out, *TRAIN]
    return ["finetune", *options, "--set", f"finetune.num_epochs={epochs}"]


def finetune(world, out, *more, epochs=2, **places):
    return call(*finetune_options(world, out, epochs=epochs, **places), *more)


def log_of(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one, other):
    one, other = weights_of(one), weights_of(other)
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.mark.integration
def test_more_epochs_later_equal_more_epochs_at_once(world, capsys):
    first = (world / "run/log.jsonl").read_text()
    assert finetune(world, world / "run", "--resume", epochs=3) == 0
    assert "8 steps are made; the run now has 12, not 8. The learning rate is now 0.001" in (
        " ".join(capsys.readouterr().err.split())
    )
    assert (world / "run/log.jsonl").read_text().startswith(first)
    assert load_recipe(world / "run/recipe.toml").finetune.num_epochs == 3
    assert finetune(world, world / "long", epochs=3) == 0
    assert log_of(world / "run") == log_of(world / "long")
    assert_equal_weights(world / "run/clip", world / "long/clip")
    assert "num_epochs was 3, is 1" in refused(
        capsys, *finetune_options(world, world / "run", epochs=1), "--resume"
    )


@pytest.mark.integration
def test_bridge_and_refinement_take_more_epochs(world, capsys):
    models = ["--clip", world / "clip", "--base", world / "base", "--captions", world / "captions.txt"]
    options = ["bridge", *models, "--out", world / "br", "--set", "bridge.batch_size=32"]
    options += ["--set", 'bridge.mixed_precision="no"', "--set", "bridge.warmup_steps=0"]
    assert call(*options, "--set", "bridge.num_epochs=1") == 0
    first = (world / "br/log.jsonl").read_text()
    assert call(*options, "--set", "bridge.num_epochs=2", "--resume") == 0
    assert "lr_schedule = 'cosine' spreads over all steps" in " ".join(capsys.readouterr().err.split())
    assert (world / "br/log.jsonl").read_text().startswith(first)
    assert len(log_of(world / "br")) == 2 * len(first.splitlines())
    options = ["refine", "--graft", world / "br/graft", "--base", world / "base", "--data", world / "data"]
    options += [
        "--set",
        "refine.batch_size=16",
        "--set",
        'refine.mixed_precision="no"',
        "--out",
        world / "rf",
    ]
    assert call(*options, "--set", "refine.num_epochs=1") == 0
    first = (world / "rf/log.jsonl").read_text()
    assert call(*options, "--set", "refine.num_epochs=3", "--resume") == 0
    assert (world / "rf/log.jsonl").read_text().startswith(first)
    assert len(log_of(world / "rf")) == 3 * len(first.splitlines())


def test_moved_run_resumes_with_settings_that_keep_weights(world, capsys):
    before = (world / "run/log.jsonl").read_text()
    (world / "data").rename(world / "moved")
    (world / "clip").rename(world / "moved-clip")
    options = ["--set", "finetune.num_workers=1", "--set", "finetune.checkpoint_every=3", "--resume"]
    options += ["--set", "finetune.save_total_limit=5"]
    assert finetune(world, world / "run", *options, data="moved", clip="moved-clip") == 0
    assert (world / "run/log.jsonl").read_text() == before


def darken(world):
    for path in (world / "data/Images").iterdir():
        Image.new("RGB", (40, 32)).save(path)


def test_replaced_images_are_refused_unless_a_flag_allows(world, capsys):
    darken(world)
    options = [*finetune_options(world, world / "run", epochs=3), "--resume"]
    message = refused(capsys, *options)
    assert "was made with other photographs than the present ones" in message
    assert "--allow-changed-data" in message
    assert call(*options, "--allow-changed-data") == 0
    assert len(log_of(world / "run")) == 12


def test_other_captions_are_refused_by_name(world, capsys):
    path = world / "data/Flickr8k.token.txt"
    path.write_text(path.read_text().replace("dog", "cat", 3))
    message = refused(capsys, *finetune_options(world, world / "run", epochs=3), "--resume")
    assert "was made with other captions than the present ones" in message


@pytest.mark.parametrize("tower", ["vision_model", "text_model"])
def test_other_start_weights_are_refused_by_name(world, capsys, tower):
    clip = load_clip(world / "clip")
    next(getattr(clip.model, tower).parameters()).data.add_(0.01)
    save_clip(clip, world / "clip")
    message = refused(capsys, *finetune_options(world, world / "run", epochs=3), "--resume")
    assert "was made with other weights of CLIP than the present ones" in message


def test_bridge_is_not_resumed_on_another_teacher(world, capsys):
    models = ["--clip", world / "clip", "--base", world / "base", "--captions", world / "captions.txt"]
    options = ["bridge", *models, "--out", world / "br", "--set", "bridge.batch_size=32"]
    options += ["--set", 'bridge.mixed_precision="no"', "--set", "bridge.num_epochs=1"]
    assert call(*options) == 0
    path = world / "base/text_encoder/model.safetensors"
    weights = load_file(path)
    weights[max(weights)] = weights[max(weights)] + 0.01
    save_file(weights, path, metadata={"format": "pt"})
    assert "was made with other weights of the base than the present ones" in refused(
        capsys, *options, "--resume"
    )


@pytest.mark.integration
def test_refinement_is_not_resumed_on_other_photographs(world, capsys):
    models = ["--clip", world / "clip", "--base", world / "base", "--captions", world / "captions.txt"]
    assert call("bridge", *models, "--set", "bridge.num_epochs=0", "--out", world / "br") == 0
    options = ["refine", "--graft", world / "br/graft", "--base", world / "base", "--data", world / "data"]
    options += [
        "--set",
        "refine.batch_size=16",
        "--set",
        'refine.mixed_precision="no"',
        "--out",
        world / "rf",
    ]
    options += ["--set", "refine.num_epochs=1"]
    assert call(*options) == 0
    darken(world)
    assert "was made with other photographs than the present ones" in refused(capsys, *options, "--resume")


@pytest.mark.integration
def test_steps_of_fine_tuning_are_those_of_this_version(world):
    """Where this fails, a checkpoint of before would go on otherwise: raise `checkpoints.VERSION`."""
    assert finetune(world, world / "cropped", *CROPPED, epochs=1) == 0
    assert [loss for _, loss in log_of(world / "cropped")] == pytest.approx(GOLDEN_LOSSES, rel=1e-3)
    assert VERSION == 2
