"""The refine stage on tiny models: resumable, in a run's columns, and what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import tiny
from clipgraft.config import apply_overrides
from clipgraft.data.readers import read_source
from clipgraft.errors import CheckpointError
from clipgraft.models.base import FrozenBase
from clipgraft.models.encoder import load_graft
from clipgraft.settings import RefineSettings
from clipgraft.stages.bridge import bridge
from clipgraft.stages.folder import run_encoders
from clipgraft.stages.latents import load_latents
from clipgraft.stages.refine import check_settings, refine


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    paths = {
        "clip": tiny.write_clip(folder / "clip"),
        "base": tiny.write_base(folder / "base"),
        "data": tiny.write_flickr8k(folder / "data"),
    }
    bridge(recipe_of(paths), folder / "bridge")
    return {**paths, "graft": folder / "bridge" / "graft"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def recipe_of(world, *overrides):
    names = {"clip.name": "clip", "base.name": "base", "data.source": "data"}
    texts = [f"{key}={json.dumps(str(world[name]))}" for key, name in names.items()]
    small = ["bridge.num_epochs=0", "bridge.allow_few_captions=true", "bridge.mixed_precision=no"]
    small += ["refine.num_epochs=2", "refine.batch_size=4", "refine.mixed_precision=no"]
    return apply_overrides({}, [*texts, *small, "refine.warmup_steps=0", *overrides])


def weights_of(folder):
    return load_file(folder / "graft" / "model.safetensors")


def test_refining_changes_the_bridge_alone_and_writes_what_it_measured(world, tmp_path):
    metrics = refine(recipe_of(world), world["graft"], tmp_path)
    assert set(metrics["before"]) == set(metrics["after"]) == {"50", "250", "500", "750", "950"}
    assert metrics["num_steps"] == 8
    before, after = load_file(world["graft"] / "model.safetensors"), weights_of(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"bridge.linear.weight", "bridge.bias"}
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "noise_error", "teacher_error", "feature_error"} <= set(rows[0])
    assert load_graft(tmp_path / "graft").base == load_graft(world["graft"]).base


def test_a_resumed_refinement_ends_in_the_same_bits(world, tmp_path):
    recipe = recipe_of(world, "refine.checkpoint_every=3", "refine.keep_checkpoints=9")
    refine(recipe, world["graft"], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    refine(recipe, world["graft"], tmp_path / "cut", resume=True)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_last_text_layers_change_by_low_rank_updates(world, tmp_path):
    options = ["refine.text_layers=1", "refine.text_lora_rank=2", "refine.text_learning_rate=1e-2"]
    refine(recipe_of(world, *options), world["graft"], tmp_path)
    before, after = load_file(world["graft"] / "model.safetensors"), weights_of(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    text = {name for name in changed if name.startswith("text_model")}
    assert text
    assert all(".layers.1.self_attn." in name for name in text)
    assert set(before) == set(after)


def test_latents_are_those_of_the_vae_and_are_encoded_once(world, monkeypatch):
    base = FrozenBase.load(str(world["base"]))
    images = read_source(world["data"]).in_split("test")
    first = load_latents(base, images, 64)
    assert first.shape == (4, 4, 8, 8)
    assert first.dtype == torch.float16
    monkeypatch.setattr(base, "encode_latents", None)  # a second encoding would fail
    assert torch.equal(load_latents(base, images, 64), first)


def test_a_graft_of_another_base_is_refused(world, tmp_path):
    other = tiny.write_base(tmp_path / "other", seed=5)
    with pytest.raises(CheckpointError, match="the graft was made for another base"):
        refine(recipe_of({**world, "base": other}), world["graft"], tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_weight": 0, "teacher_weight": 0, "feature_weight": 0}, "nothing to refine by"),
        ({"num_epochs": 0}, "refine.num_epochs is 0: nothing would be trained"),
        ({"snr_gamma": 0.5}, "snr_gamma must be 0 or at least 1; got 0.5"),
        ({"text_lora_rank": 4}, "text_lora_rank needs text_layers"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        check_settings(RefineSettings(**{"num_epochs": 1, **settings}))


def test_a_refined_graft_is_one_more_column_of_a_run(tmp_path):
    for stage in ("bridge_before", "bridge"):
        (tmp_path / stage / "graft").mkdir(parents=True)
    assert list(run_encoders(tmp_path)) == ["teacher", "before", "after"]
    (tmp_path / "refine" / "graft").mkdir(parents=True)
    assert list(run_encoders(tmp_path)) == ["teacher", "before", "after", "refined"]
