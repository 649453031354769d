"""The command line, called as a user calls it."""

import json
import os
import subprocess
import sys

import pytest
from torch import distributed
from typer.main import get_command

from clipgraft.cli import app as cli
from helpers import call, refused, run_apart


@pytest.mark.integration
def test_a_base_draws_with_its_own_text_encoder(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("generate", "A dog", "--base", world["base"], "--out", out, "--steps", 1) == 0
    assert (out / "a-dog_seed0.png").is_file()
    assert "no graft and no base; name one of them" in refused(capsys, "generate", "A dog", "--out", out)


@pytest.mark.integration
def test_several_pictures_of_a_prompt_count_their_seeds_up(world, tmp_path):
    options = ["--base", world["base"], "--steps", 1, "--seed", 4, "--num-images", 2]
    assert call("generate", "A dog", "--out", tmp_path, *options) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"a-dog_seed4.png", "a-dog_seed5.png"}


def test_tilde_behind_an_equals_sign_is_the_home_folder(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert call("data", "draw", "--out=~/drawn", "--num-images", 20) == 0
    options = ["--recipe", world["recipe"], "--set", "finetune.num_epochs=0"]
    assert call("finetune", "--data=~/drawn", "--out=~/tuned", *options) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"drawn", "tuned"} <= names
    assert "~" not in names


def test_evaluating_another_base_needs_captions_or_prompts(world, tmp_path, capsys):
    message = refused(
        capsys, "evaluate", "--base", world["base"], "--scorer", world["clip"], "--out", tmp_path / "out"
    )
    assert "no prompts: the data has no test split; name captioned images with --data" in message


@pytest.mark.slow
def test_export_gives_equal_latents_in_plain_diffusers(finished, tmp_path):
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


@pytest.mark.integration
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


def test_help_shows_flags_as_flags(capsys):
    groups = {(): get_command(cli.app), ("data",): get_command(cli.data_app)}
    for group, own in groups.items():
        for command in ((), *((name,) for name in own.commands)):
            assert call(*group, *command, "--help") == 0
    out = capsys.readouterr().out
    assert "--resume" in out
    assert "<bool>" not in out


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


def test_evaluation_leaves_the_run_that_it_measures_alone(finished, capsys):
    before = (finished / "recipe.toml").read_bytes()
    for out in (finished, finished / "bridge", finished / "finetune"):
        message = refused(capsys, "evaluate", finished, "--out", out, "--num-prompts", 2)
        assert "lies in the out folder" in message or "holds another kind of run" in message
    assert (finished / "recipe.toml").read_bytes() == before


@pytest.mark.integration
def test_processes_that_cannot_find_each_other_are_refused(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    for command in (["finetune"], ["generate", "A dog", "--base", world["base"]]):
        message = refused(capsys, *command, "--out", tmp_path / "out")
        assert "WORLD_SIZE=2 in the environment says" in message
        assert "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set" in message


@pytest.mark.slow
def test_no_home_and_no_cache_is_one_line(world, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XDG_CACHE_HOME"}
    ended = run_apart(
        *("finetune", "--recipe", str(world["recipe"]), "--out", str(tmp_path / "out")),
        env=environment | {"HOME": "/proc"},
    )
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith("set XDG_CACHE_HOME to a folder that can be written")


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
        (["--seed", -2], "'seed': input should be greater than or equal to 0; got -2"),
        (["--seed", 2**64], "'seed': input should be less than 18446744073709551616"),
        (["--seed", 2**64 - 1, "--num-images", 2], "'seed': input should be less than 18446744073709551616"),
        (["--height", 12], "'height': input should be a multiple of 8; got 12"),
        (["--num-images", 0], "'num_images_per_prompt': input should be greater than or equal to 1; got 0"),
        (["--batch-size", 0], "batch_size must be at least 1; got 0"),
        (["--strength", 0], "'strength': input should be greater than 0; got 0"),
        (["--scheduler", "magic"], "'scheduler': no such scheduler; schedulers are dpm++, dpm++-2m, "),
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


def test_words_unknown_to_a_base_are_noted_and_recorded(finished, tmp_path, capsys):
    graft = finished / "bridge" / "graft"
    prompt = "A zebra and " + "a dog " * 50 + "beach"
    options = ("--out", tmp_path / "o", "--steps", 1, "--long-prompts", "cut")
    assert call("generate", prompt, "--graft", graft, *options) == 0
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
