"""`clipgraft bridge` and `clipgraft refine` from the command line."""

import json

import pytest

import tiny
from helpers import call, refused


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    (folder / "captions.txt").write_text("\n".join(f"a dog and {index} cats" for index in range(120)))
    (folder / "few.txt").write_text("a dog\na cat\n")
    return {
        "clip": tiny.write_clip(folder / "clip"),
        "base": tiny.write_base(folder / "base"),
        "data": tiny.write_flickr8k(folder / "data"),
        "captions": folder / "captions.txt",
        "few": folder / "few.txt",
    }


@pytest.mark.slow
def test_a_bridge_of_a_text_file_is_refined_on_pictures(world, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models = ["--base", world["base"], "--set", "bridge.num_epochs=0"]
    captions = ["--captions", world["captions"], "--clip", world["clip"]]
    assert call("bridge", *captions, *models, "--out", tmp_path / "br") == 0
    graft = tmp_path / "br" / "graft"
    errors = json.loads((tmp_path / "br" / "metrics.json").read_text())["linear"]["relative_error"]
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("state error on 12 held-out captions: words " + f"{errors['words']:.3f}, eos")
    assert second == f"graft: {graft}"
    options = ["--graft", graft, "--data", world["data"], *models, "--set", "refine.batch_size=8"]
    assert call("refine", *options, "--out", tmp_path / "rf") == 0
    metrics = json.loads((tmp_path / "rf" / "metrics.json").read_text())
    assert metrics["num_steps"] == 2
    refined = tmp_path / "rf" / "graft"
    before, after = (sum(metrics[when].values()) / len(metrics[when]) for when in ("before", "after"))
    first, second = capsys.readouterr().out.splitlines()
    assert f"against the teacher's: {before:.3f} -> {after:.3f} (0 is the teacher's own" in first
    assert second == f"graft: {refined}"
    assert call("generate", "A dog", "--graft", refined, "--out", tmp_path / "out", "--steps", 1) == 0


def test_few_captions_are_refused_in_one_line_and_go_on_by_flag(world, tmp_path, capsys):
    options = ["--captions", world["few"], "--clip", world["clip"], "--base", world["base"]]
    options += ["--set", "bridge.num_epochs=0"]
    message = refused(capsys, "bridge", *options, "--out", tmp_path / "a")
    assert "only 2 different captions to fit the bridge on" in message
    assert "--allow-few-captions" in message
    assert call("bridge", *options, "--allow-few-captions", "--out", tmp_path / "b") == 0


def test_captions_and_data_together_are_refused(world, tmp_path, capsys):
    options = ["--captions", world["captions"], "--data", world["data"], "--out", tmp_path / "a"]
    assert "--captions replaces --data" in refused(capsys, "bridge", *options)


def test_refining_what_is_no_graft_is_refused_in_one_line(world, tmp_path, capsys):
    options = ["--data", world["data"], "--base", world["base"], "--out", tmp_path / "out"]
    assert "graft folder not found" in refused(capsys, "refine", "--graft", tmp_path / "none", *options)
