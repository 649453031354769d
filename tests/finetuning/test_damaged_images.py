"""Every command that reads images skips the same damaged ones, and goes on after a stop."""

import json
import shutil

import pytest
from tiny_tuning import recipe_of, run, with_source

import tiny
from clipgraft.errors import CheckpointError, DataError
from helpers import call

DAMAGED = ["0003.jpg", "0010.jpg", "0030.jpg", "0041.jpg"]
"""Of train, of train, of train, of test."""


@pytest.fixture
def recipe(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(world / "data", tmp_path / "data")
    for name in DAMAGED:
        path = folder / "Images" / name
        path.write_bytes(path.read_bytes()[:200])
    return with_source(recipe_of(world), folder)


def skipping(recipe):
    return recipe.model_copy(update={"data": recipe.data.updated({"on_damaged": "skip"})})


def test_by_default_a_damaged_image_stops_by_name(recipe, tmp_path):
    with pytest.raises(DataError, match=r"00(03|10|30|41)\.jpg: is damaged"):
        run(recipe, tmp_path / "out")


@pytest.mark.integration
def test_skipped_images_are_named_and_kept_in_data_json(recipe, tmp_path, capsys):
    result = run(skipping(recipe), tmp_path / "out")
    assert "note: 4 of 48 photographs are damaged and skipped: 0003.jpg (is" in capsys.readouterr().err
    written = json.loads((tmp_path / "out" / "data.json").read_text())
    assert list(written["damaged"]) == DAMAGED
    assert written["counts"]["train"]["images"] == 32 - 3
    assert result.recall_after["num_captions"] == 7 * 5


@pytest.mark.integration
def test_resumed_run_sees_the_same_images(recipe, tmp_path):
    run(skipping(recipe), tmp_path / "whole")
    first = skipping(recipe).model_copy(update={"finetune": recipe.finetune.updated({"num_epochs": 1})})
    run(first, tmp_path / "parts")
    run(skipping(recipe), tmp_path / "parts", resume=True)
    for name in ("clip/model.safetensors", "data.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.integration
def test_a_mended_image_is_changed_data_on_resuming(recipe, world, tmp_path):
    first = skipping(recipe).model_copy(update={"finetune": recipe.finetune.updated({"num_epochs": 1})})
    run(first, tmp_path / "out")
    shutil.copy(world / "data/Images/0003.jpg", tmp_path / "data/Images/0003.jpg")
    with pytest.raises(CheckpointError, match="allow-changed-data") as error:
        run(skipping(recipe), tmp_path / "out", resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.integration
def test_a_run_stopped_by_a_test_image_goes_on_with_skip(recipe, world, tmp_path):
    for name in DAMAGED[:3]:  # those of train are whole
        shutil.copy(world / "data/Images" / name, tmp_path / "data/Images" / name)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"0041\.jpg: is damaged"):
        run(recipe, out)
    assert run(skipping(recipe), out, resume=True).recall_after["num_captions"] == 7 * 5


@pytest.mark.slow
def test_all_commands_take_the_option(recipe, world, tmp_path):
    tiny.write_base(tmp_path / "base")
    models = ["--base", tmp_path / "base", "--data", tmp_path / "data", "--on-damaged", "skip"]
    few = ["--set", "bridge.allow_few_captions=true", "--set", "bridge.num_epochs=1"]
    clip = ["--clip", world / "clip"]
    assert call("bridge", *models, *clip, *few, "--out", tmp_path / "bridge") == 0
    graft = ["--graft", tmp_path / "bridge" / "graft"]
    assert call("refine", *models, *graft, "--set", "refine.batch_size=8", "--out", tmp_path / "refine") == 0
    short = ["--num-prompts", 2, "--set", "evaluate.num_inference_steps=1", "--force"]
    scorer = ["--scorer", world / "clip"]
    assert call("evaluate", *models, *graft, *short, *scorer, "--out", tmp_path / "evaluate") == 0
