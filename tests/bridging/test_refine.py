"""The refine stage on tiny models: resumable, in a run's columns, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from refine_world import recipe_of, weights_of
from safetensors.torch import load_file

import tiny
from clipgraft.bridging.fit import bridge_recipe
from clipgraft.bridging.latents import load_latents
from clipgraft.bridging.refine import (
    RefineResult,
    _checksum_of_latents,
    build_objective,
    check_settings,
    refine_recipe,
)
from clipgraft.bridging.refine import refine as refine_graft
from clipgraft.config import load_recipe
from clipgraft.data.buckets import Bucket
from clipgraft.data.formats import load_dataset
from clipgraft.data.images import open_image
from clipgraft.data.transforms import vae_pixel_values
from clipgraft.errors import CheckpointError, DataError, UserError
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
from clipgraft.models.lineage import read_lineage
from clipgraft.models.weights import tensors_sha256
from clipgraft.runs.run import Run
from clipgraft.settings import RefineSettings
from clipgraft.whole_run import check, run_all
from helpers import call, refused, states_of

SQUARE = (Bucket(64, 64),)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    paths = {
        "clip": tiny.write_clip(folder / "clip"),
        "base": tiny.write_base(folder / "base"),
        "data": tiny.write_flickr8k(folder / "data"),
    }
    bridge_recipe(recipe_of(paths), folder / "bridge")
    return {**paths, "graft": folder / "bridge" / "graft"}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def other_graft(world, tmp_path_factory):
    """Of the same CLIP and base, but with one map for all token classes."""
    folder = tmp_path_factory.mktemp("other")
    bridge_recipe(recipe_of(world, "bridge.by_token_class=false"), folder)
    return folder / "graft"


def refine(recipe, graft, folder, **options):
    return refine_recipe(recipe, graft, folder, **options)


def stacked(latents):
    return torch.from_numpy(np.stack([*latents]))


@pytest.mark.integration
def test_refining_changes_only_the_bridge(world, tmp_path):
    result = refine(recipe_of(world), world["graft"], tmp_path)
    assert set(result.before) == set(result.after) == {"50", "250", "500", "750", "950"}
    assert result.num_steps == 8
    assert Run(tmp_path).result(RefineResult).model_dump() == result.model_dump()
    before, after = load_file(world["graft"] / "model.safetensors"), weights_of(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"bridge.linear.weight", "bridge.bias"}
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {"loss", "noise_error", "teacher_error", "feature_error"} <= set(rows[0])
    assert Graft.from_pretrained(tmp_path / "graft").base == Graft.from_pretrained(world["graft"]).base


@pytest.mark.integration
def test_a_resumed_refinement_ends_in_the_same_bits(world, tmp_path):
    recipe = recipe_of(world, "refine.checkpoint_every=3", "refine.save_total_limit=9")
    refine(recipe, world["graft"], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    refine(recipe, world["graft"], tmp_path / "cut", resume=True)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.integration
def test_a_refinement_is_not_resumed_with_another_graft(world, other_graft, tmp_path, capsys):
    recipe = recipe_of(world, "refine.num_epochs=1")
    refine(recipe, world["graft"], tmp_path)
    with pytest.raises(CheckpointError, match="weights of the graft"):
        refine(recipe, other_graft, tmp_path, resume=True)
    options = ["--graft", other_graft, "--recipe", tmp_path / "recipe.toml", "--out", tmp_path, "--resume"]
    assert "weights of the graft" in refused(capsys, "refine", *options)


def test_a_refined_graft_tells_what_it_was_refined_from(world, tmp_path):
    graft = refine(recipe_of(world, "refine.num_epochs=1"), world["graft"], tmp_path).graft
    assert [stage.stage for stage in graft.lineage.stages] == ["bridge", "refine"]
    refined = graft.lineage.find("refine")
    assert refined.started_from == str(world["graft"])
    assert refined.counts == {"num_train_images": 16}
    assert Graft.from_pretrained(tmp_path / "graft").lineage == graft.lineage


@pytest.mark.integration
def test_an_object_is_refined_and_stays_as_it_is(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graft, data = Graft.from_pretrained(world["graft"]), load_dataset(world["data"])
    before = {name: weight.clone() for name, weight in graft.text_encoder.state_dict().items()}
    base = FrozenBase.load(str(world["base"]))
    options = {"num_epochs": 2, "batch_size": 4, "mixed_precision": "no", "warmup_steps": 0}
    lent = graft.text_encoder.train(), *base.modules.values()
    modes = states_of(*lent)
    refined = refine_graft(graft, base, data, gradient_checkpointing=True, **options).graft
    assert states_of(*lent) == modes
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(before[name], weight) for name, weight in graft.text_encoder.state_dict().items())
    assert base.vae is not None
    by_name = refine(recipe_of(world), world["graft"], tmp_path / "out").graft.text_encoder.state_dict()
    ours = refined.text_encoder.state_dict()
    assert all(torch.equal(ours[name], by_name[name]) for name in by_name)


@pytest.mark.integration
def test_a_refinements_recipe_names_what_its_graft_was_made_of(world, tmp_path):
    options = ["--clip", world["clip"], "--base", world["base"], "--data", world["data"]]
    small = ["--set", "bridge.num_epochs=0", "--allow-few-captions"]
    assert call("bridge", *options, *small, "--out", tmp_path / "bridge") == 0
    graft = tmp_path / "bridge" / "graft"
    assert call("refine", "--graft", graft, *options[2:], "--out", tmp_path / "refine") == 0
    recipe = load_recipe(tmp_path / "refine" / "recipe.toml")
    assert recipe.clip.name == str(world["clip"])
    assert recipe.bridge.num_epochs == 0


@pytest.mark.integration
def test_rates_of_text_layers_are_those_of_the_settings(world, tmp_path):
    options = ["refine.text_layers=1", "refine.text_learning_rate=1e-6", "refine.learning_rate=1e-3"]
    options += ["refine.num_epochs=1", "refine.checkpoint_every=1", "refine.lr_schedule=constant"]
    refine(recipe_of(world, *options), world["graft"], tmp_path)
    before, after = load_file(world["graft"] / "model.safetensors"), weights_of(tmp_path)
    moved = {name: (after[name] - before[name]).abs().max().item() for name in before}
    text = max(change for name, change in moved.items() if name.startswith("text_model"))
    bridge = max(change for name, change in moved.items() if name.startswith("bridge"))
    assert bridge == pytest.approx(1000 * text, rel=0.5)  # AdamW's steps are as long as its rate


def test_gradient_checkpointing_follows_its_setting(world):
    for is_on in (False, True):
        base = FrozenBase.load(str(world["base"]))
        settings = RefineSettings(num_epochs=1, gradient_checkpointing=is_on)
        build_objective(Graft.from_pretrained(world["graft"]), base, settings)
        assert base.unet.is_gradient_checkpointing == is_on


@pytest.mark.integration
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
    images = load_dataset(world["data"]).in_split("test")
    first = stacked(load_latents(base, images, SQUARE))
    expected = base.encode_latents(vae_pixel_values([open_image(image.file) for image in images], 64))
    assert torch.equal(first, expected.half())
    assert first.shape == (4, 4, 8, 8)
    monkeypatch.setattr(base, "encode_latents", None)  # a second encoding would fail
    assert torch.equal(stacked(load_latents(base, images[::-1], SQUARE)), first.flip(0))


def test_a_changed_image_costs_one_encoding(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base, encoded = FrozenBase.load(str(world["base"])), []
    images = load_dataset(shutil.copytree(world["data"], tmp_path / "data")).in_split("test")
    encode = base.encode_latents
    monkeypatch.setattr(base, "encode_latents", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    first = load_latents(base, images, SQUARE)
    Image.new("RGB", (80, 80), "red").save(images[2].file)
    second = load_latents(base, images, SQUARE)
    assert encoded == [4, 1]
    assert [np.array_equal(*pair) for pair in zip(first, second, strict=True)] == [True, True, False, True]


def test_the_sum_of_latents_is_that_of_one_tensor():
    latents = torch.randn(3, 4, 8, 8).half()
    assert _checksum_of_latents(list(latents.numpy())) == tensors_sha256({"latents": latents})


def test_an_image_without_finite_latents_is_named(world):
    base = FrozenBase.load(str(world["base"]))
    images = load_dataset(world["data"]).in_split("test")
    with torch.no_grad():
        base.vae.quant_conv.bias[0] = float("nan")
    for _ in range(2):
        with pytest.raises(DataError, match=f"no finite latents of .*{images[0].file.name}; take the image"):
            load_latents(base, images, SQUARE)


def test_damaged_latents_are_said_and_encoded_anew(world, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    base = FrozenBase.load(str(world["base"]))
    images = load_dataset(world["data"]).in_split("test")
    first = stacked(load_latents(base, images, SQUARE))
    (path,) = (tmp_path / "clipgraft" / "latents").glob("*/*")
    path.write_bytes(path.read_bytes()[:-9])
    assert torch.equal(stacked(load_latents(base, images, SQUARE)), first)
    assert "is damaged" in caplog.text


def test_a_base_that_predicts_no_noise_is_refused(world, tmp_path):
    base = shutil.copytree(world["base"], tmp_path / "base")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(base / "scheduler")
    with pytest.raises(CheckpointError, match=r"predicts 'v_prediction'; only through one that predicts"):
        refine(recipe_of({**world, "base": base}), world["graft"], tmp_path / "out")


def test_an_inpainting_base_is_refused(world, tmp_path):
    base = tiny.write_inpainting_base(tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"takes 9 channels \(inpainting\); only through one that"):
        refine(recipe_of({**world, "base": base}), world["graft"], tmp_path / "out")
    with pytest.raises(UserError, match=r"takes 9 channels \(inpainting\), so it needs an image and a mask"):
        check(recipe_of({**world, "base": base}))  # before hours of training


def test_a_source_without_training_pictures_is_refused(world, tmp_path):
    data = shutil.copytree(world["data"], tmp_path / "data")
    (data / "Flickr_8k.trainImages.txt").write_text("")
    with pytest.raises(ValueError, match="no training image to refine on; name a source with a train split"):
        refine(recipe_of({**world, "data": data}), world["graft"], tmp_path / "out")


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


@pytest.mark.slow
def test_a_run_refines_the_tuned_graft_and_its_card_says_so(world, tmp_path):
    small = ["finetune.num_epochs=1", "finetune.batch_size=8", "finetune.mixed_precision=no"]
    small += ["refine.num_epochs=1", "generate.num_inference_steps=1", 'generate.prompts=["A dog"]']
    recipe = recipe_of(world, *small)
    run_all(recipe, tmp_path / "run")
    refined = tmp_path / "run" / "refine"
    lineage = read_lineage(refined / "graft")
    assert [stage.stage for stage in lineage.stages] == ["finetune", "bridge", "refine"]
    assert lineage.stages[-1].started_from == str(tmp_path / "run" / "bridge" / "graft")
    assert (tmp_path / "run" / "generate" / "refined").is_dir()
    assert call("export", refined / "graft", "--format", "bridge", "--out", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- CLIP: `clip`, fine-tuned." in card
    assert "text_to_image_recall@1" in card


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ("refine.feature_weight=0", ValueError, "nothing to refine by"),
        ("refine.mixed_precision=fp16", ValueError, "'fp16' needs a GPU"),
        ("generate.height=7", ValueError, "height"),
        ("base.name=nowhere", FileNotFoundError, "no model at nowhere"),
        ("bridge.allow_few_captions=false", ValueError, "only 80 different captions"),
        ("evaluate.prompts=nowhere.txt", FileNotFoundError, "file of prompts not found"),
        ("evaluate.scorer=nowhere", FileNotFoundError, "no model at nowhere"),
    ],
)
def test_later_refusals_come_before_fine_tuning(world, tmp_path, setting, error, message):
    others = ["refine.noise_weight=0", "refine.teacher_weight=0", "device=cpu", "evaluate.num_prompts=1"]
    with pytest.raises(error, match=message):
        run_all(recipe_of(world, *others, setting), tmp_path)
    assert not (tmp_path / "finetune").exists()


def test_a_refined_graft_is_one_more_variant_of_a_run(tmp_path):
    for stage in ("bridge_before", "bridge"):
        (tmp_path / stage / "graft").mkdir(parents=True)
    assert list(Run(tmp_path).variants()) == ["teacher", "before", "after"]
    (tmp_path / "refine" / "graft").mkdir(parents=True)
    assert list(Run(tmp_path).variants()) == ["teacher", "before", "after", "refined"]
