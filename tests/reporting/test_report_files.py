"""Files that a report writes."""

import json
import math

import pytest
from example_run import full_log_rows, write_evaluation, write_log

from clipgraft.config import build_recipe, to_toml
from clipgraft.reporting import html
from clipgraft.reporting.report import report


def test_report_json_says_what_the_page_says_for_machines(run_dir):
    write_evaluation(run_dir / "evaluate")
    report(run_dir)

    def refuse(name):
        raise AssertionError(name)

    text = (run_dir / "report.json").read_text()
    summary = json.loads(text, parse_constant=refuse)
    assert summary["schema"] == "clipgraft.report"
    assert summary["finetune"]["after"]["num_images"] == 1000
    assert summary["training"]["num_steps"] == 60
    assert [epoch["step"] for epoch in summary["training"]["epoch_mean_loss"]] == [20, 40, 60]
    assert summary["evaluation"]["differences"][-1]["num_better"] == 70
    assert summary["num_failed_images"] == 1
    assert str(run_dir.parent) not in text
    assert "/home/someone" not in text


def test_report_json_reveals_no_folder_of_several_sources(run_dir):
    parts = [{"source": f"/home/someone/{name}"} for name in ("photos", "drawings")]
    recipe = build_recipe({"data": {"sources": parts}})
    (run_dir / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    report(run_dir)
    text = (run_dir / "report.json").read_text()
    sources = json.loads(text)["recipe"]["data"]["sources"]
    assert [each["source"] for each in sources] == ["photos", "drawings"]
    assert "/home/someone" not in text


@pytest.mark.integration
def test_report_that_cannot_be_written_whole_replaces_nothing(run_dir):
    report(run_dir)
    before = {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()}
    write_log(run_dir / "finetune" / "log.jsonl", full_log_rows(2, 10))
    (run_dir / "figures").write_text("")  # a file where a folder has to be, behind page and JSON
    with pytest.raises(OSError, match="figures"):
        report(run_dir)
    (run_dir / "figures").unlink()
    assert {path.name: path.read_bytes() for path in run_dir.iterdir() if path.is_file()} == before


def test_page_over_five_megabytes_is_refused_with_what_to_do(run_dir, monkeypatch):
    monkeypatch.setattr(html, "MAX_REPORT_BYTES", 10_000)
    with pytest.raises(
        ValueError, match=r"page of 'demo' would be .* bytes, and at most 10,000 .* compare fewer"
    ):
        report(run_dir)


def test_figures_that_are_not_finite_are_null_in_json(run_dir):
    metrics = json.loads((run_dir / "finetune" / "metrics.json").read_text())
    metrics["after"]["text_to_image_recall@1"] = math.nan
    (run_dir / "finetune" / "metrics.json").write_text(json.dumps(metrics))
    report(run_dir)
    summary = json.loads((run_dir / "report.json").read_text())
    assert summary["finetune"]["after"]["text_to_image_recall@1"] is None


@pytest.mark.integration
def test_page_of_a_run_at_work_reloads_itself(run_dir):
    page = report(run_dir, refresh_seconds=7).read_text()
    assert '<meta http-equiv="refresh" content="7">' in page
    assert "at work" in page
    assert not (run_dir / "report.json").exists()
    assert 'http-equiv="refresh"' not in report(run_dir).read_text()
