"""`clipgraft distill`, its result in other commands, in a whole run and its report, and what it refuses."""

import json
import shutil
import tomllib

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.config import PRESETS, apply_overrides, parse_overrides
from clipgraft.flatland.words import UNKNOWN_TO_TEACHER
from clipgraft.runs.run import Run
from clipgraft.whole_run import run_all
from helpers import call, refused

SMALL = ["--set", "distill.batch_size=16", "--set", "distill.warmup_steps=0"]


@pytest.fixture
def options(distill_world):
    world = distill_world
    named = ["--graft", world.graft, "--base", world.base, "--captions", world.captions]
    return ["distill", *named, "--new-words", world.words, *SMALL]


@pytest.fixture(scope="module")
def distilled(distill_world, tmp_path_factory):
    """What a distillation wrote, the base named by its graft."""
    out = tmp_path_factory.mktemp("distilled") / "out"
    named = ["--graft", distill_world.graft, "--captions", distill_world.captions]
    assert call("distill", *named, "--new-words", distill_world.words, *SMALL, "--out", out) == 0
    return out


@pytest.mark.integration
def test_a_distilled_encoder_draws_beside_its_graft(options, distill_world, tmp_path, capsys):
    assert call(*options, "--out", tmp_path / "out") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 new word(s) in 27 of 135 captions" in printed
    assert "the empty prompt's states moved by" in printed
    encoder = tmp_path / "out" / "text_encoder"
    drawn = ["--out", tmp_path / "images", "--steps", 2, "--device", "cpu"]
    assert call("generate", "A kite", "--graft", encoder, *drawn) == 0
    compared = ["--graft", "teacher", "--graft", distill_world.graft, "--graft", encoder]
    drawn[1] = tmp_path / "compared"
    assert call("compare", "A kite", *compared, *drawn) == 0
    rows = json.loads((tmp_path / "compared" / "images.json").read_text())
    assert [row["variant"] for row in rows] == ["teacher", "bridge", "out"]


def test_the_folder_of_a_distillation_names_its_encoder(distilled, tmp_path, capsys):
    line = refused(capsys, "generate", "A kite", "--graft", distilled, "--out", tmp_path / "images")
    assert f"is a run of distill, not a graft; name {distilled / 'text_encoder'}" in line


def test_the_base_is_the_one_that_the_graft_names(distilled, distill_world):
    recipe = tomllib.loads((distilled / "recipe.toml").read_text())
    assert recipe["base"]["name"] == str(distill_world.base)


def test_captions_and_data_exclude_each_other(options, tmp_path, capsys):
    line = refused(capsys, *options, "--data", tmp_path, "--out", tmp_path / "out")
    assert "--captions replaces --data; leave one of them out" in line


def test_missing_words_are_asked_for(options, tmp_path, capsys):
    del options[options.index("--new-words") : options.index("--new-words") + 2]
    assert "no new words: name those" in refused(capsys, *options, "--out", tmp_path / "out")


def test_a_base_of_another_kind_is_refused(options, distill_world, tmp_path, capsys):
    options[options.index("--base") + 1] = tiny.write_base(tmp_path / "other", seed=5, width=128)
    assert "the graft was made for another base" in refused(capsys, *options, "--out", tmp_path / "out")
    t5 = shutil.copytree(distill_world.base, tmp_path / "t5")
    config = json.loads((t5 / "text_encoder" / "config.json").read_text())
    (t5 / "text_encoder" / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    options[options.index("--base") + 1] = t5
    line = refused(capsys, *options, "--out", tmp_path / "out")
    assert "its text encoder is of type 't5'; only one of CLIP's" in line


def test_new_words_within_the_out_folder_are_refused(options, distill_world, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    options[options.index("--new-words") + 1] = shutil.copy(distill_world.words, out)
    line = refused(capsys, *options, "--out", out, "--overwrite")
    assert "out" in line
    assert (out / "words.txt").is_file()


def test_more_layers_than_there_are_are_refused(options, tmp_path, capsys):
    line = refused(capsys, *options, "--set", "distill.text_layers=3", "--out", tmp_path / "out")
    assert "text_layers must be between 0 and the tower's 2; got 3" in line


def test_a_graft_with_damaged_weights_is_refused(options, distill_world, tmp_path, capsys):
    graft = shutil.copytree(distill_world.graft, tmp_path / "graft")
    weights = load_file(graft / "model.safetensors")
    save_file(
        {name: torch.zeros_like(weight) for name, weight in weights.items()}, graft / "model.safetensors"
    )
    options[options.index("--graft") + 1] = graft
    assert "is damaged" in refused(capsys, *options, "--out", tmp_path / "out")


@pytest.mark.integration
def test_a_distilled_encoder_cannot_be_refined(options, tmp_path, capsys):
    assert call(*options, "--out", tmp_path / "out") == 0
    data = tiny.write_flickr8k(tmp_path / "data")
    encoder, base = tmp_path / "out" / "text_encoder", options[options.index("--base") + 1]
    refined = ["refine", "--graft", encoder, "--base", base, "--data", data, "--out", tmp_path / "refined"]
    line = refused(capsys, *refined, "--set", "refine.mixed_precision=no")
    assert "a distilled text encoder has neither CLIP nor bridge" in line


@pytest.mark.slow
def test_a_whole_run_distills_and_shows_it(distill_world, recipe_for, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = tiny.write_flickr8k(tmp_path / "data")
    small = [f"data.source={json.dumps(str(data))}", "bridge.allow_few_captions=true", 'distill.captions=""']
    small += ["finetune.num_epochs=1", "finetune.batch_size=8", "finetune.mixed_precision=no"]
    small += ["generate.num_inference_steps=1", 'generate.prompts=["A kite"]', "evaluate.num_prompts=2"]
    small += ["evaluate.num_inference_steps=1", f"evaluate.scorer={json.dumps(str(distill_world.clip))}"]
    recipe = apply_overrides(recipe_for(distill_world), parse_overrides(small))
    with Run.begin(tmp_path / "run", recipe) as run:
        run_all(recipe, run.path)
    headings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in headings] == [f"[{number}/6" for number in range(1, 7)]
    assert list(run.variants()) == ["teacher", "before", "after", "distilled"]
    assert (run.path / "generate" / "distilled").is_dir()
    evaluation = json.loads((run.path / "evaluate" / "evaluation.json").read_text())
    assert "distilled" in {row["variant"] for row in evaluation["images"]}
    assert "random_bridge" in {row["variant"] for row in evaluation["images"]}
    page = (run.path / "report.html").read_text()
    assert "<h2>Distillation</h2>" in page
    assert "kite (" in page
    assert "the base&#39;s text encoder, distilled" in page
    log = (run.path / "distill" / "log.jsonl").read_text()
    with Run.begin(run.path, recipe, resume=True):
        run_all(recipe, run.path, resume=True)
    assert (run.path / "distill" / "log.jsonl").read_text() == log


def test_the_demo_learns_all_words_unknown_to_its_base():
    assert set(PRESETS["demo"]().distill.new_words) == UNKNOWN_TO_TEACHER
