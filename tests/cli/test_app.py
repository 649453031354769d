"""The command line on tiny real models; every mistake is answered in one line with exit code 2."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import distributed

import tiny
from clipgraft.cli import app as cli
from clipgraft.config import load_recipe
from clipgraft.runs.folder import unknown_names
from helpers import RECIPE, call, refused, run_apart


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny CLIP, base and source, and a recipe that names them."""
    folder = tmp_path_factory.mktemp("world")
    paths = {
        "clip": tiny.write_clip(folder / "clip"),
        "base": tiny.write_base(folder / "base"),
        "data": tiny.write_flickr8k(folder / "data"),
    }
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(**{name: json.dumps(str(path)) for name, path in paths.items()}))
    return {**paths, "recipe": recipe}


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A whole run's folder."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert call("run", world["recipe"], "--out", out) == 0
    return out


def test_run_leaves_report_metrics_figure_and_a_picture_named_after_each_prompt(finished):
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


def test_finished_stages_are_not_run_again_on_resume(finished, world):
    weights = finished / "finetune" / "clip" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert call("run", world["recipe"], "--out", finished, "--resume") == 0
    assert weights.stat().st_mtime_ns == before


def test_stages_run_alone(world, tmp_path, finished):
    small = ["--recipe", world["recipe"], "--set", "finetune.num_epochs=1", "--set", "bridge.num_epochs=0"]
    assert call("finetune", *small, "--out", tmp_path / "ft") == 0
    assert call("bridge", *small, "--clip", tmp_path / "ft" / "clip", "--out", tmp_path / "br") == 0
    graft = tmp_path / "br" / "graft"
    assert call("generate", "A dog", "A cat", "--graft", graft, "--out", tmp_path / "out", "--steps", 2) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"a-dog_seed0.png", "a-cat_seed0.png"}
    assert call("report", tmp_path / "ft") == 0
    assert (tmp_path / "ft" / "report.html").is_file()


def test_a_base_draws_with_its_own_text_encoder(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("generate", "A dog", "--base", world["base"], "--out", out, "--steps", 1) == 0
    assert (out / "a-dog_seed0.png").is_file()
    assert "no graft and no base; name one of them" in refused(capsys, "generate", "A dog", "--out", out)


def test_several_pictures_of_a_prompt_count_their_seeds_up(world, tmp_path):
    options = ["--base", world["base"], "--steps", 1, "--seed", 4, "--num-images", 2]
    assert call("generate", "A dog", "--out", tmp_path, *options) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"a-dog_seed4.png", "a-dog_seed5.png"}


def test_base_that_draws_no_flatland_needs_captions_or_prompts_to_be_evaluated(world, tmp_path, capsys):
    message = refused(
        capsys, "evaluate", "--base", world["base"], "--scorer", world["clip"], "--out", tmp_path / "out"
    )
    assert "no prompts: the data has no test split; name captioned images with --data" in message


def test_exported_folder_loads_in_plain_diffusers_with_latents_equal_to_the_bit(finished, tmp_path):
    graft = finished / "bridge" / "graft"
    assert call("export", graft, "--out", tmp_path / "pipeline") == 0
    code = f"""
import clipgraft, torch
from pathlib import Path
from diffusers import DiffusionPipeline
from clipgraft.generation.pipeline import build_pipeline
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
plain = DiffusionPipeline.from_pretrained({str(tmp_path / "pipeline")!r})
graft = Graft.from_pretrained(Path({str(graft)!r}))
ours = build_pipeline(FrozenBase.load(graft.base.name), graft.text_encoder)
draw = lambda pipeline: pipeline(["A dog", ""], num_inference_steps=2, output_type="latent",
                                 generator=torch.Generator().manual_seed(0)).images
assert type(plain.text_encoder) is clipgraft.GraftedTextEncoder
assert torch.equal(draw(plain), draw(ours))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_data_check_prints_json_for_machines(world, capsys):
    assert call("data", "check", world["data"], "--clip", world["clip"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["train"] == {"images": 16, "captions": 80}


def test_data_check_shows_counts_and_samples(world, capsys):
    assert call("data", "check", world["data"], "--clip", world["clip"]) == 0
    out = capsys.readouterr().out
    assert "Flickr8k" in out
    assert "tokens per caption" in out


def test_drawn_set_is_read_back_by_the_flickr8k_reader(tmp_path, capsys, world):
    assert call("data", "draw", "--out", tmp_path / "set", "--num-images", 16) == 0
    assert call("data", "check", tmp_path / "set", "--clip", world["clip"], "--json") == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert {split: count["images"] for split, count in counts.items()} == {"train": 12, "val": 2, "test": 2}


def test_doctor_names_every_part_with_ok_or_the_fix(capsys):
    assert call("doctor") == 0
    out = capsys.readouterr().out
    for part in ("torch", "device", "threads", "memory", "disk", "cache", "flatland", "model hub"):
        assert part in out


def test_help_does_not_import_torch():
    code = "import sys; sys.argv = ['clipgraft', '--help']\nfrom clipgraft.cli.app import main\n"
    code += "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (
            ["--set", "finetune.learning_rate=0"],
            "'finetune.learning_rate': input should be greater than 0; got 0",
        ),
        (["--set", "finetune.learning_rate=-1"], "greater than 0; got -1"),
        (["--set", "finetune.learning_rat=1"], "did you mean 'learning_rate'"),
        (["--set", "finetune.mixed_precision=fp16", "--set", "device=cpu"], "'fp16' needs a GPU"),
        (["--set", "finetune.batch_size=64"], "between 1 and the number of images, 16; got 64"),
        (["--clip", "nowhere/nothing/at/all"], "nowhere/nothing/at/all"),
        (["--recipe", "nowhere.toml"], "recipe not found: nowhere.toml"),
    ],
)
def test_wrong_setting_is_one_line(world, tmp_path, capsys, options, message):
    recipe = [] if "--recipe" in options else ["--recipe", world["recipe"]]
    assert message in refused(capsys, "finetune", *recipe, "--out", tmp_path / "out", *options)


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


def test_caption_line_that_cannot_be_read_is_named_with_its_number(world, tmp_path, capsys):
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
        (["generate.lora=nowhere.safetensors"], "no LoRA at"),
        (["generate.lora={recipe}"], "is not a .safetensors file"),
        (["refine.num_epochs=1", "refine.text_layers=99"], "text_layers must be between 0 and the tower's"),
        (["evaluate.num_prompts=2", "evaluate.prompts=nowhere.txt"], "prompts file not found"),
    ],
)
def test_run_refuses_before_it_trains(world, tmp_path, capsys, settings, message):
    options = [word for text in settings for word in ("--set", text.format(**world))]
    assert message in refused(capsys, "run", world["recipe"], "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out" / "finetune").exists()


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


def test_evaluation_leaves_the_run_that_it_measures_alone(finished, capsys):
    before = (finished / "recipe.toml").read_bytes()
    for out in (finished, finished / "bridge", finished / "finetune"):
        message = refused(capsys, "evaluate", finished, "--out", out, "--num-prompts", 2)
        assert "lies in the out folder" in message or "holds another kind of run" in message
    assert (finished / "recipe.toml").read_bytes() == before


def test_processes_that_cannot_find_each_other_are_refused(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    for command in (["finetune"], ["generate", "A dog", "--base", world["base"]]):
        message = refused(capsys, *command, "--out", tmp_path / "out")
        assert "WORLD_SIZE=2 in the environment says" in message
        assert "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set" in message


def test_no_home_and_no_cache_is_one_line(world, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    ended = run_apart(
        *("finetune", "--recipe", str(world["recipe"]), "--out", str(tmp_path / "out")),
        env=environment | {"HOME": "/proc"},
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith("set XDG_CACHE_HOME to a folder that can be written")


def test_how_to_go_on_is_said_with_resume_alone(tmp_path, capsys):
    for option in (["--from-step", 8], ["--allow-changed-data"]):
        assert "add --resume" in refused(capsys, "finetune", "--out", tmp_path / "o", *option)


def test_graft_that_is_none_is_refused(world, tmp_path, capsys):
    assert "graft" in refused(
        capsys, "generate", "A dog", "--graft", tmp_path / "no", "--out", tmp_path / "o"
    )
    assert "not a graft" in refused(
        capsys, "generate", "A dog", "--graft", world["clip"], "--out", tmp_path / "o"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", 60], "'width': input should be a multiple of 8; got 60"),
        (["--steps", 0], "'num_inference_steps': input should be greater than or equal to 1; got 0"),
        (["--guidance-scale", "nan"], "'guidance_scale': input should be a finite number; got nan"),
        (["--seed", -1], "'seed': input should be greater than or equal to 0; got -1"),
        (["--seed", 2**64], "'seed': input should be less than 18446744073709551616"),
        (["--seed", 2**64 - 1, "--num-images", 2], "'seed': input should be less than 18446744073709551616"),
        (["--height", 12], "'height': input should be a multiple of 8; got 12"),
        (["--num-images", 0], "'num_images_per_prompt': input should be greater than or equal to 1; got 0"),
        (["--batch-size", 0], "batch_size must be at least 1; got 0"),
        (["--strength", 0], "'strength': input should be greater than 0; got 0"),
        (["--scheduler", "magic"], "'scheduler': input should be 'dpm++', 'pndm', 'ddim'"),
        (["--device", "tpu"], "device must be auto, cpu, cuda or mps; got 'tpu'"),
        (["--offload", "disk"], "offload must be one of none, model, sequential; got 'disk'"),
        (["--offload", "model", "--device", "cpu"], "offload 'model' moves weights to a CUDA GPU"),
        (["--init-image", "nowhere.png"], "nowhere.png: no such image"),
        (
            ["--init-image", __file__, "--strength", 0.01, "--steps", 25],
            "25 steps at strength 0.01 leave none",
        ),
        (["--init-image", __file__], "test_app.py: is"),
        (["--from-file", "nowhere.txt"], "file of prompts not found: nowhere.txt"),
        (["--from-image", "nowhere.png"], "takes prompt and parameters from the image; leave prompts out"),
    ],
)
def test_wrong_picture_setting_is_refused(finished, tmp_path, capsys, options, message):
    graft = finished / "bridge" / "graft"
    assert message in refused(
        capsys, "generate", "A dog", "--graft", graft, "--out", tmp_path / "o", *options
    )


def test_what_a_base_cannot_read_of_a_prompt_is_said_and_recorded(finished, tmp_path, capsys):
    graft = finished / "bridge" / "graft"
    prompt = "A zebra and " + "a dog " * 50 + "beach"
    assert call("generate", prompt, "--graft", graft, "--out", tmp_path / "o", "--steps", 1) == 0
    errors = " ".join(capsys.readouterr().err.split())
    assert "77 are read; cut off: 'a dog" in errors
    assert "read in pieces: zebra, and" in errors
    notes = json.loads((tmp_path / "o" / "images.json").read_text())[0]["notes"]
    assert len(notes) == 2
    assert notes[0].endswith("beach'")


def test_export_does_not_write_over_files(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "already holds files" in refused(
        capsys, "export", finished / "bridge" / "graft", "--out", tmp_path
    )


def test_report_of_a_missing_run_is_refused(tmp_path, capsys):
    assert "run folder not found" in refused(capsys, "report", tmp_path / "nowhere")


def test_full_disk_is_one_line_and_leaves_no_half_written_weights(world, tmp_path):
    limit = 20_000  # bytes a file may have: logs fit, weights do not

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = tmp_path / "out"
    ended = run_apart("finetune", "--recipe", str(world["recipe"]), "--out", str(out), preexec_fn=set_limit)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: no space left")
    assert not list(out.rglob("*.safetensors"))


def test_interrupted_run_saves_says_how_to_go_on_and_goes_on(world, tmp_path):
    arguments = ["finetune", "--recipe", str(world["recipe"]), "--out", str(tmp_path / "out")]
    arguments += ["--set", "finetune.num_epochs=2000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "clipgraft", *arguments], stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "state saved in" in errors
    assert "--resume" in errors
    assert list((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert "Traceback" not in errors


def test_bug_of_ours_shows_its_traceback(monkeypatch):
    def fail() -> None:
        int("not a number")  # a ValueError that a library raises, not one of our sentences

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(ValueError, match="invalid literal"):
        call("doctor")


def test_version_is_printed(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("clipgraft 0.")


def test_a_process_of_several_leaves_its_group_before_it_ends(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    for arguments, exit_code in ((["--version"], 0), (["no-such-command"], 2)):
        store = tmp_path / str(exit_code)
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
        assert call(*arguments) == exit_code
        assert not distributed.is_initialized()


def test_fine_tuning_on_real_photographs_lowers_the_loss(flickr8k_dir: Path, world, tmp_path):
    options = ["--set", "finetune.num_epochs=6", "--set", "finetune.batch_size=19"]
    arguments = ["--recipe", world["recipe"], "--data", flickr8k_dir, "--out", tmp_path / "out"]
    assert call("finetune", *arguments, *options) == 0
    losses = json.loads((tmp_path / "out" / "metrics.json").read_text())["epoch_mean_loss"]
    assert losses[-1] < losses[0]
