"""A run's folder as plain data."""

import json
import shutil

import pytest
from example_run import RECALL, STATES, picture_row, write_evaluation, write_json, write_pictures

from clipgraft.reporting.report import report
from clipgraft.reporting.run_data import read_log, read_run


def test_metrics_of_all_stages_are_brought_together(run_dir):
    rows = [picture_row("a.png", "a"), picture_row("b.png", "b", status="failed_nan")]
    write_pictures(run_dir / "generate", rows)
    metrics = read_run(run_dir).all_metrics()
    assert list(metrics) == ["finetune", "bridge", "generate"]
    assert metrics["finetune"]["before"] == RECALL
    assert metrics["bridge"]["linear"] == STATES
    assert metrics["generate"] == {"num_images": 2, "num_failed": 1}


def test_stage_that_did_not_end_is_left_out_of_the_metrics(run_dir):
    (run_dir / "bridge" / "metrics.json").unlink()
    shutil.rmtree(run_dir / "generate")
    assert list(read_run(run_dir).all_metrics()) == ["finetune"]


@pytest.mark.parametrize("stage", ["finetune", "bridge"])
def test_evaluated_stage_keeps_its_own_metrics(run_dir, stage):
    folder = run_dir / stage
    before = (folder / "metrics.json").read_bytes()
    write_evaluation(folder / "evaluate")
    write_json(folder / "evaluate" / "metrics.json", {"scores": {}, "settings": {}})
    page = report(folder).read_text()
    assert (folder / "metrics.json").read_bytes() == before
    run = read_run(folder)
    assert run.is_single_stage
    assert getattr(run, stage) == json.loads(before)
    assert run.evaluation.prompts
    assert f"<h2>{'Bridge' if stage == 'bridge' else 'Retrieval'}</h2>" in page
    assert "Did it help?" in page


def test_stages_own_metrics_survive_a_nested_stage(run_dir):
    tuned = run_dir / "finetune"
    shutil.copytree(run_dir / "bridge", tuned / "bridge")
    before = (tuned / "metrics.json").read_bytes()
    report(tuned)
    assert (tuned / "metrics.json").read_bytes() == before


def test_metrics_of_a_refinement_are_not_fine_tunings(tmp_path):
    metrics = {"before": {"500": 0.4}, "after": {"500": 0.3}, "num_steps": 3, "num_train_images": 8}
    write_json(tmp_path / "metrics.json", metrics)
    run = read_run(tmp_path)
    assert (run.refine, run.finetune) == (metrics, {})


def test_collected_metrics_are_not_taken_for_a_stages(run_dir):
    before = read_run(run_dir).all_metrics()
    write_json(run_dir / "metrics.json", before)
    assert read_run(run_dir).all_metrics() == before


def test_metrics_name_their_stage_whatever_keys_they_have(tmp_path):
    metrics = {"stage": "bridge", "num_epochs": 3}
    write_json(tmp_path / "metrics.json", metrics)
    assert read_run(tmp_path).metrics == {"bridge": metrics}


def test_absent_files_are_no_problem_and_damaged_ones_are(run_dir):
    (run_dir / "data.json").unlink()
    assert read_run(run_dir).problems == []
    (run_dir / "environment.json").write_bytes(b"\xff\xfe")
    assert read_run(run_dir).problems[0].startswith("environment.json cannot be read")


def test_log_lines_that_cannot_be_read_are_counted(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 1, "epoch": 0, "loss": 2.5}\n[]\n{"step": 2}\n{"step": 3, "epo', encoding="utf-8"
    )
    problems = []
    assert read_log(log, problems) == [{"step": 1, "epoch": 0, "loss": 2.5}]
    assert problems == ["log.jsonl: 3 of 4 lines cannot be read."]
