"""The commands that train, called as a user calls them."""

import json
import os
import shlex
import shutil
import time
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import save_file

from clipgraft.cli.app import app
from clipgraft.cli.training import NEXT_COMMANDS
from clipgraft.config import PRESETS, load_recipe
from clipgraft.runs.folder import unknown_names
from clipgraft.whole_run import PURPOSES, stages_of
from helpers import call, files_of_at_most, interrupted_when, refused, run_apart


def test_run_leaves_report_metrics_figure_and_named_images(finished):
    for name in ("report.html", "metrics.json", "loss.png", "loss.svg", "recipe.toml", "environment.json"):
        assert (finished / name).stat().st_size > 0
    for column in ("teacher", "before", "after"):
        assert {path.name for path in (finished / "generate" / column).glob("*.png")} == {
            "a-dog-running-on-the-beach-at-sunset_seed0.png",
            "a-colorful-garden-with-blooming-flowers_seed0.png",
        }
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["finetune"]["after"]["num_images"] == 4
    assert len(metrics["finetune"]["epoch_mean_loss"]) == 2
    assert set(metrics["bridge"]["linear"]["relative_error"]) == {"bos", "words", "eos", "padding"}
    assert "data:image/" in (finished / "report.html").read_text()


def test_recipe_beside_a_result_is_the_recipe_that_was_run(finished, world):
    assert load_recipe(finished / "recipe.toml") == load_recipe(world["recipe"])


@pytest.mark.integration
def test_finished_stages_are_not_run_again_on_resume(finished, world):
    weights = finished / "finetune" / "clip" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert call("run", world["recipe"], "--out", finished, "--resume") == 0
    assert weights.stat().st_mtime_ns == before


@pytest.mark.integration
def test_stages_run_alone(world, tmp_path, finished):
    small = ["--recipe", world["recipe"], "--set", "finetune.num_epochs=1", "--set", "bridge.num_epochs=0"]
    assert call("finetune", *small, "--out", tmp_path / "ft") == 0
    assert call("bridge", *small, "--clip", tmp_path / "ft" / "clip", "--out", tmp_path / "br") == 0
    graft = tmp_path / "br" / "graft"
    assert call("generate", "A dog", "A cat", "--graft", graft, "--out", tmp_path / "out", "--steps", 2) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a-dog_seed0.png", "a-cat_seed0.png"}
    assert call("report", tmp_path / "ft") == 0
    assert (tmp_path / "ft" / "report.html").is_file()


def test_images_without_captions_are_refused(world, tmp_path, capsys):
    shutil.copytree(world["data"] / "Images", tmp_path / "photos")
    message = refused(
        capsys,
        "finetune",
        "--recipe",
        world["recipe"],
        "--data",
        tmp_path / "photos",
        "--out",
        tmp_path / "o",
    )
    assert "caption" in message


def test_unreadable_caption_line_is_named_with_its_number(world, tmp_path, capsys):
    data = shutil.copytree(world["data"], tmp_path / "data")
    tokens = data / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text().replace("0001.jpg#0\t", "no caption here ", 1))
    message = refused(capsys, "data", "check", data, "--clip", world["clip"])
    assert "Flickr8k.token.txt, line 6" in message


def test_damaged_image_is_named_when_training_meets_it(world, tmp_path, capsys):
    data = shutil.copytree(world["data"], tmp_path / "data")
    (data / "Images" / "0003.jpg").write_bytes(b"")
    message = refused(
        capsys, "finetune", "--recipe", world["recipe"], "--data", data, "--out", tmp_path / "out"
    )
    assert "0003.jpg" in message


def test_base_without_a_unet_is_refused(world, tmp_path, capsys):
    base = shutil.copytree(world["base"], tmp_path / "base")
    shutil.rmtree(base / "unet")
    message = refused(
        capsys, "bridge", "--recipe", world["recipe"], "--base", base, "--out", tmp_path / "out"
    )
    assert "unet" in message


def test_base_of_another_cross_attention_width_is_refused(world, tmp_path, capsys):
    base = shutil.copytree(world["base"], tmp_path / "base")
    config = base / "unet" / "config.json"
    config.write_text(config.read_text().replace('"cross_attention_dim": 24', '"cross_attention_dim": 40'))
    message = refused(
        capsys, "bridge", "--recipe", world["recipe"], "--base", base, "--out", tmp_path / "out"
    )
    assert "40" in message
    assert "24" in message


@pytest.mark.slow
def test_hub_out_of_reach_is_said_soon_with_what_to_fetch(world, tmp_path):
    arguments = ["finetune", "--recipe", str(world["recipe"]), "--clip", "openai/clip-vit-base-patch32"]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    environment.pop("HF_HUB_OFFLINE", None)
    begun = time.monotonic()
    ended = run_apart(*arguments, "--out", str(tmp_path / "out"), env=environment)
    assert ended.returncode == 2
    assert "hf download openai/clip-vit-base-patch32" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert time.monotonic() - begun < 60  # 10 s of waiting at most, and the imports of a slow machine


def test_out_folder_of_another_run_is_left_alone(finished, world, capsys):
    message = refused(capsys, "run", world["recipe"], "--out", finished)
    assert "add --resume or --overwrite" in message
    assert (finished / "report.html").is_file()


def test_resume_with_other_settings_is_refused(finished, world, capsys):
    message = refused(capsys, "run", world["recipe"], "--out", finished, "--resume", "--set", "seed=5")
    assert "begun with other settings" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["generate.loras=nowhere.safetensors"], "no LoRA at"),
        (["generate.loras={recipe}"], "is not a .safetensors file"),
        (["refine.num_epochs=1", "refine.text_layers=99"], "text_layers must be between 0 and the tower's"),
        (["evaluate.num_prompts=2", "evaluate.prompts=nowhere.txt"], "file of prompts not found"),
    ],
)
def test_run_refuses_before_it_trains(world, tmp_path, capsys, settings, message):
    options = [word for text in settings for word in ("--set", text.format(**world))]
    assert message in refused(capsys, "run", world["recipe"], "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out" / "finetune").exists()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("lora_unet_conv_in", "is a LoRA for another base: its unet layer conv_in is 8x9, this base's 8x36"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "changes the text encoder alone, and a graft has no"),
    ],
)
def test_run_refuses_a_lora_that_its_grafts_cannot_use(world, tmp_path, capsys, layer, message):
    weights = {f"{layer}.lora_down.weight": torch.zeros(1, 9), f"{layer}.lora_up.weight": torch.zeros(8, 1)}
    save_file(weights, tmp_path / "fur.safetensors")
    options = ("--set", f"generate.loras={tmp_path}/fur.safetensors", "--out", tmp_path / "out")
    assert message in refused(capsys, "run", world["recipe"], *options)
    assert not (tmp_path / "out" / "finetune").exists()


@pytest.mark.integration
def test_a_moved_run_goes_on_with_what_is_finished(finished, world, tmp_path):
    moved, elsewhere = tmp_path / "moved", tmp_path / "elsewhere"
    shutil.copytree(finished, moved)
    finished.rename(elsewhere)
    weights = [moved / stage / "model.safetensors" for stage in ("finetune/clip", "bridge/graft")]
    before = [path.stat().st_mtime_ns for path in weights]
    options = ["--out", moved, "--resume", "--data", f"{world['data']}/"]
    try:
        assert call("run", moved / "recipe.toml", *options, "--set", "refine.num_epochs=1") == 0
    finally:
        elsewhere.rename(finished)
    assert [path.stat().st_mtime_ns for path in weights] == before
    assert (moved / "refine" / "graft" / "model.safetensors").is_file()
    assert unknown_names(moved) == []


def test_options_of_resume_need_resume(tmp_path, capsys):
    for option in (["--from-step", 8], ["--allow-changed-data"]):
        assert "add --resume" in refused(capsys, "finetune", "--out", tmp_path / "o", *option)


def test_full_disk_is_one_line_and_leaves_no_partial_weights(world, tmp_path, capsys):
    out = tmp_path / "out"
    with files_of_at_most(20_000):  # logs fit, weights do not
        message = refused(capsys, "finetune", "--recipe", world["recipe"], "--out", out)
    assert message.startswith("error: no space left")
    assert not list(out.rglob("*.safetensors"))


def test_interrupted_run_saves_and_can_be_resumed(world, tmp_path, capsys):
    out = tmp_path / "out"
    log = out / "log.jsonl"
    with interrupted_when(lambda: log.is_file() and log.read_text().count("\n") >= 3):
        long = ["--set", "finetune.num_epochs=2000"]
        assert call("finetune", "--recipe", world["recipe"], "--out", out, *long) == 130
    errors = capsys.readouterr().err
    assert "state saved in" in errors
    assert "--resume" in errors
    assert "Traceback" not in errors
    assert list((out / "checkpoints").glob("step-*"))


@pytest.mark.integration
def test_fine_tuning_on_real_photographs_lowers_the_loss(flickr8k_dir: Path, world, tmp_path):
    options = ["--set", "finetune.num_epochs=6", "--set", "finetune.batch_size=19"]
    arguments = ["--recipe", world["recipe"], "--data", flickr8k_dir, "--out", tmp_path / "out"]
    assert call("finetune", *arguments, *options) == 0
    losses = json.loads((tmp_path / "out" / "metrics.json").read_text())["epoch_mean_loss"]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("line", NEXT_COMMANDS.format(out="runs/demo").splitlines()[1:])
def test_commands_after_the_demo_are_commands(line):
    program, name, *arguments = shlex.split(line)
    command = typer.main.get_command(app).commands[name]
    assert program == "clipgraft"
    command.make_context(name, arguments, resilient_parsing=False).close()


def test_whole_run_counts_the_stages_it_makes():
    assert stages_of(PRESETS["demo"]()) == [
        *("finetune", "bridge_before", "bridge", "distill", "generate", "evaluate")
    ]
    assert set(PURPOSES) == set(stages_of(PRESETS["flickr8k_sd15"]()))
