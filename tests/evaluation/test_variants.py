"""Images of variants: made once, again where something that decides them changed, by several processes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from evaluated import (
    OPTIONS,
    SETTINGS,
    drawn_rows,
    evaluate_run,
    without_time,
)
from PIL import Image

from clipgraft.evaluation.prompt_sets import EvaluationPrompt
from clipgraft.evaluation.results import PLAIN
from clipgraft.evaluation.scores import load_pixels
from clipgraft.evaluation.variants import real_images
from clipgraft.flatland import draw_scene, fidelity_prompts
from two_processes import run_in_two_processes


@pytest.mark.integration
def test_second_call_generates_nothing(record, run_dir):
    before = drawn_rows(run_dir / "evaluate")
    again = evaluate_run(run_dir, SETTINGS | {"evaluate.force": True})
    assert drawn_rows(run_dir / "evaluate") == before == 8 * 5
    assert without_time(again) == without_time(record)


@pytest.mark.integration
def test_damaged_and_missing_images_are_made_again(record, run_dir, tmp_path):
    folder = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    first, second, third = (folder / row["file"] for row in record["images"][:3])
    expected = load_pixels([first, second, third])
    first.unlink()
    second.write_bytes(b"no picture")
    log = folder / "images-0.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2] + lines[3:])[:-20])  # the third is not recorded, the last one half
    again = evaluate_run(run_dir, SETTINGS | {"evaluate.force": True}, out=folder)
    # Three in a batch in the place of eight round otherwise.
    torch.testing.assert_close(load_pixels([first, second, third]), expected, atol=1.01 / 255, rtol=0)
    assert drawn_rows(folder) == 8 * 5 - 1 + 4  # the row that was cut is still there, as no JSON
    for ours, theirs in zip(record["figures"], again["figures"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], rel=1e-2, abs=1e-3), ours


@pytest.mark.integration
def test_images_of_other_weights_are_made_anew(record, run_dir, tmp_path):
    out = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    copy = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    shutil.rmtree(copy / "bridge")
    shutil.copytree(run_dir / "bridge_before", copy / "bridge")
    again = evaluate_run(copy, SETTINGS | {"evaluate.force": True}, out=out)
    # "after" is now "before", whose pictures are there; its random bridge has another text tower.
    assert drawn_rows(out) - drawn_rows(run_dir / "evaluate") == 8
    sums = {column["name"]: column["sha256"] for column in again["variants"]}
    assert sums["before"] == sums["after"]
    null = [row for row in again["differences"] if (row["baseline"], row["variant"]) == ("before", "after")]
    means = [row for row in null if row["metric"].startswith(("clip_score", "same_seed", "state_error"))]
    assert means
    for row in means:  # equal to the bit, and yet no interval of width zero
        assert (row["value"], row["interval"]) == (0, None)
        assert row["note"] == "no interval: every prompt has the same score"
    found = next(row for row in null if row["metric"] == "clip_r_precision")
    assert found["interval"][0] < found["value"] == 0 < found["interval"][1]


@pytest.mark.integration
def test_images_of_other_settings_are_made_anew(record, run_dir, tmp_path):
    out = shutil.copytree(run_dir / "evaluate", tmp_path / "out")
    evaluate_run(run_dir, SETTINGS | {"evaluate.num_prompts": 1, "evaluate.guidance_scale": 2.0}, out=out)
    assert drawn_rows(out) - drawn_rows(run_dir / "evaluate") == 2 * 4  # the floor has no guidance


@pytest.mark.slow
def test_two_processes_share_the_work(record, run_dir, tmp_path):
    words = ["evaluate", run_dir, "--out", tmp_path / "out", "--force", *OPTIONS]
    run_in_two_processes("-m", "clipgraft", *words)
    logs = [tmp_path / "out" / f"images-{rank}.jsonl" for rank in range(2)]
    assert [sum(bool(line) for line in log.read_text().splitlines()) for log in logs] == [20, 20]
    together = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for ours, theirs in zip(record["figures"], together["figures"], strict=True):
        assert ours["value"] == pytest.approx(theirs["value"], abs=1e-4), ours


def test_a_drawn_scene_is_never_anothers(tmp_path):
    prompts = [EvaluationPrompt(each.text, 0, (PLAIN,), scene=each.scene) for each in fidelity_prompts()[:3]]
    processes = PartialState(cpu=True)
    first = real_images(prompts[:2], tmp_path, processes)
    second = real_images(prompts[1:], tmp_path, processes)  # as with another --num-prompts
    assert second[0] == first[1]
    fresh = replace(prompts[2].scene, look=f"{prompts[2].scene.look}/fresh")
    assert (np.asarray(Image.open(second[1][0])) == np.asarray(draw_scene(fresh))).all()
