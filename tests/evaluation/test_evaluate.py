"""evaluate() on objects, and `clipgraft evaluate` on runs and grafts of tiny real models."""

import json
import shutil
from pathlib import Path

import pytest
from evaluated import (
    BRIDGES,
    OPTIONS,
)

from clipgraft.data.formats import load_dataset
from clipgraft.errors import UserError
from clipgraft.evaluation.evaluate import evaluate, name_grafts
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from clipgraft.models.graft import Graft
from helpers import call, files_of_at_most, refused, states_of


@pytest.mark.slow
def test_objects_give_the_figures_of_folders(record, run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    grafts = {name: Graft.from_pretrained(run_dir / stage / "graft") for name, stage in BRIDGES.items()}
    base = FrozenBase.load(str(run_dir.parent / "base"))
    data = load_dataset(run_dir.parent / "data")
    scorer = load_clip(str(run_dir.parent / "clip"))
    lent = scorer.model.train(), *base.modules.values(), *(graft.text_encoder for graft in grafts.values())
    before = states_of(*lent)
    found = evaluate(
        {**grafts, "teacher": None},
        base,
        data,
        scorer=scorer,
        num_prompts=4,
        num_inference_steps=2,
        num_images_per_prompt=2,
        force=True,
    )
    assert states_of(*lent) == before
    assert not list(tmp_path.iterdir())
    differences = {row.metric: row.value for row in found.difference("before", "after")}
    for metric in ("clip_score_raw", "state_error_words", "same_seed_cosine"):
        expected = next(
            row["value"]
            for row in record["differences"]
            if (row["metric"], row["baseline"], row["variant"]) == (metric, "before", "after")
        )
        # Folders run on an engine, a base that is given does not.
        assert differences[metric] == pytest.approx(expected, abs=0.01), metric
    assert "after - before" in found.table()


def test_another_base_needs_a_scorer_of_its_own(run_dir):
    base = FrozenBase.load(str(run_dir.parent / "base"))
    with pytest.raises(UserError, match="no CLIP is named to score images with"):
        evaluate({"teacher": None}, base, num_prompts=4)


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"base": None}, "own text encoder is the variant 'teacher'; got 'base'"),
        ({"chance": Path("graft")}, "variant 'chance': that name is reserved for a floor or ceiling"),
        ({"teacher": Path("graft")}, "variant 'teacher': that name is reserved"),
    ],
)
def test_variants_have_no_reserved_names(variants, message):
    with pytest.raises(UserError, match=message):
        evaluate(variants, "flatland", num_prompts=4)


@pytest.mark.integration
def test_folders_may_be_texts_and_begin_at_home(run_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\na cat\n")
    found = evaluate(
        {"mine": str(run_dir / "bridge" / "graft"), "teacher": None},
        str(run_dir.parent / "base"),
        output_dir="~/scores",
        scorer=load_clip(str(run_dir.parent / "clip")),
        prompts=str(prompts),
        num_prompts=2,
        num_inference_steps=1,
    )
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text()) == json.loads(found.to_json())
    assert not (tmp_path / "~").exists()


def test_unknown_setting_names_the_nearest_one():
    with pytest.raises(UserError, match="unknown setting 'num_prompt'; did you mean 'num_prompts'"):
        evaluate({"teacher": None}, "flatland", num_prompt=4)


@pytest.mark.parametrize("clip", ["flatland", "(given in Python)"])
def test_flatlands_clip_scores_no_other_bases_images(run_dir, tmp_path, capsys, clip):
    options = ["--graft", run_dir / "bridge" / "graft", "--data", run_dir.parent / "data"]
    options += ["--set", f'clip.name="{clip}"']
    message = refused(capsys, "evaluate", *options, "--out", tmp_path / "out")
    assert "no CLIP is named to score images with" in message
    assert "add --scorer" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_prompts_of_a_file_need_no_data(run_dir, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("A cat\n\n  كلب على الشاطئ 🐶 \n", encoding="utf-8")
    options = ["--prompts", tmp_path / "prompts.txt", "--scorer", run_dir.parent / "clip", *OPTIONS]
    graft = run_dir / "bridge" / "graft"
    assert call("evaluate", "--graft", graft, "--out", tmp_path / "out", *options) == 0
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [prompt["prompt"] for prompt in record["prompts"]] == ["A cat", "كلب على الشاطئ 🐶"]
    assert [each["name"] for each in record["prompt_sets"]] == ["prompts_file"]
    assert [column["name"] for column in record["variants"]][:2] == ["teacher", "bridge"]
    assert "prompts from the file, N = 2" in capsys.readouterr().out


@pytest.mark.integration
def test_number_of_prompts_is_the_recipes(run_dir, tmp_path):
    (tmp_path / "prompts.txt").write_text("A cat\nA dog\n")
    (tmp_path / "recipe.toml").write_text(
        'device = "cpu"\n[evaluate]\nnum_prompts = 1\nnum_inference_steps = 1\n'
    )
    options = ["--recipe", tmp_path / "recipe.toml", "--scorer", run_dir.parent / "clip"]
    options += ["--graft", run_dir / "bridge" / "graft", "--prompts", tmp_path / "prompts.txt"]
    assert call("evaluate", *options, "--out", tmp_path / "out") == 0
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [prompt["prompt"] for prompt in record["prompts"]] == ["A cat"]


def test_variants_are_named_after_folders_and_numbered():
    folders = [Path("a/graft"), Path("b/graft"), Path("c/a"), Path("other"), Path("a-2")]
    assert list(name_grafts(folders)) == ["a", "b", "a-2", "other", "a-2-2"]


@pytest.mark.parametrize("name", ["teacher", "random_bridge", "real_images"])
def test_reserved_names_of_grafts_are_refused(tmp_path, capsys, name):
    options = ["--graft", tmp_path / name / "graft", "--scorer", "flatland", "--out", tmp_path / "out"]
    message = refused(capsys, "evaluate", *options)
    assert f"would be the variant '{name}'" in message
    assert "rename its folder" in message


def test_no_prompts_are_refused(run_dir, tmp_path, capsys):
    options = ["--out", tmp_path / "out", "--set", "evaluate.num_prompts=0"]
    assert "num_prompts must be 1 or more" in refused(capsys, "evaluate", run_dir, *options)
    for number in (0, -3):
        message = refused(capsys, "evaluate", run_dir, "--num-prompts", number)
        assert message == f"error: --num-prompts must be 1 or more; got {number}"


@pytest.mark.integration
def test_command_prints_figures_floors_and_notes(run_dir, capsys, tmp_path):
    assert call("evaluate", run_dir, *OPTIONS) == 0
    printed = capsys.readouterr().out
    for words in ("teacher", "after - before", "random_bridge", "chance", "note: The scorer is the CLIP of"):
        assert words in printed
    for words in ("images: 40", "seed: 0, steps: 2, guidance: 7.5", "scorer: clip", "bicubic to 32"):
        assert words in printed.rpartition("generated and scored: ")[2]
    assert (
        "CMMD was not computed: it needs 100 images of each set, got 4 generated and 4 real ones"
        in " ".join(printed.split())
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "file of prompts not found"),
        ("\n \n", "holds no prompt; put one on each line"),
        (b"\xff\xfe\x00", "line 1: not UTF-8 text (byte 1)"),
    ],
)
def test_prompts_file_without_prompts_is_refused(run_dir, tmp_path, capsys, text, message):
    path = tmp_path / "prompts.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(capsys, "evaluate", run_dir, "--out", tmp_path / "out", "--prompts", path)


def test_folder_without_a_run_is_refused(tmp_path, capsys):
    assert "run folder not found" in refused(capsys, "evaluate", tmp_path / "nowhere")
    assert "is an empty folder, not a run; name" in refused(capsys, "evaluate", tmp_path)


def test_run_without_a_graft_says_how_to_finish_it(run_dir, tmp_path, capsys):
    shutil.copy(run_dir / "recipe.toml", tmp_path / "recipe.toml")
    message = refused(capsys, "evaluate", tmp_path)
    assert "has no weights to generate with (no bridge/graft)" in message
    assert "--resume" in message


def test_run_with_unknown_settings_is_refused(run_dir, tmp_path, capsys):
    text = (run_dir / "recipe.toml").read_text() + "\n[evaluation]\nnumber = 3\n"
    (tmp_path / "recipe.toml").write_text(text)
    message = refused(capsys, "evaluate", tmp_path)
    assert "was written by a version with other settings" in message
    assert "evaluation" in message


def test_missing_scorer_is_said_before_generating(run_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    scorer = "openai/clip-vit-large-patch14"
    message = refused(capsys, "evaluate", run_dir, "--out", tmp_path / "out", "--scorer", scorer, *OPTIONS)
    assert f"hf download {scorer}" in message
    assert not list((tmp_path / "out").rglob("*.png"))


def test_run_and_graft_together_or_neither_are_refused(run_dir, tmp_path, capsys):
    assert "takes the folder of a run" in refused(capsys, "evaluate", run_dir, "--graft", tmp_path)
    assert "takes the folder of a run" in refused(capsys, "evaluate")


@pytest.mark.integration
def test_full_disk_leaves_the_old_evaluation(record, run_dir, tmp_path, capsys):
    out = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    before = (out / "evaluation.json").read_bytes()
    with files_of_at_most(20_000):  # figures do not fit
        message = refused(capsys, "evaluate", run_dir, "--out", out, "--force", *OPTIONS)
    assert message.startswith("error: no space left")
    assert (out / "evaluation.json").read_bytes() == before
