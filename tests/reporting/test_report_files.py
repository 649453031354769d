"""What a report leaves beside its page."""

import json
import math

import pytest
from example_run import DATA, full_log_rows, write_evaluation, write_json, write_log

from clipgraft.reporting import html
from clipgraft.reporting.curves import run_figures
from clipgraft.reporting.model_card import run_card
from clipgraft.reporting.provenance import WATTS_OF_A_CORE, WATTS_OF_A_GPU, resources_table, watt_hours
from clipgraft.reporting.report import report, summarize
from clipgraft.reporting.run_data import read_run


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


def test_warnings_and_how_pictures_were_drawn_are_in_card_and_json(run_dir):
    write_evaluation(run_dir / "evaluate")
    write_json(run_dir / "evaluate" / "metrics.json", {"scores": {"after": {"mean": 0.8}}, "settings": {}})
    run = read_run(run_dir)
    card = run_card(run)
    assert card.count("## Prompt fidelity\n") == 1
    assert "not independent" in card
    assert "Generated and scored with: " in card
    assert "seed: 0, steps: 20, guidance: 3.0" in card
    assert ", images: " in card
    assert any("not independent" in note for note in summarize(run)["evaluation"]["notes"])


def test_figures_that_are_not_finite_are_null_in_json(run_dir):
    metrics = json.loads((run_dir / "finetune" / "metrics.json").read_text())
    metrics["after"]["text_to_image_recall@1"] = math.nan
    (run_dir / "finetune" / "metrics.json").write_text(json.dumps(metrics))
    report(run_dir)
    summary = json.loads((run_dir / "report.json").read_text())
    assert summary["finetune"]["after"]["text_to_image_recall@1"] is None


def test_training_figures_are_written_as_png_and_svg(run_dir):
    rows = full_log_rows(2, 10)
    rows[4] |= {"loss": None, "grad_norm": None}
    write_log(run_dir / "finetune" / "log.jsonl", rows)
    report(run_dir)
    names = {path.name for path in (run_dir / "figures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("grad_norm", "learning_rate", "step_time") for kind in ("png", "svg")
    }
    assert (run_dir / "loss.png").is_file()


def test_skipped_and_clipped_steps_are_counted_below_the_gradient_norm(run_dir):
    rows = [
        row | {"grad_norm": norm}
        for row, norm in zip(full_log_rows(1, 4), (3.0, 0.5, None, 1.5), strict=True)
    ]
    write_log(run_dir / "finetune" / "log.jsonl", rows)
    _, norm, _, time = run_figures(read_run(run_dir))
    assert "2 of 4 steps (50.0 %) were scaled down to a norm of 1." in norm.notes
    assert "Red marks: steps skipped because loss or gradient was not finite (1)." in norm.notes
    assert time.notes == ["Median step: 0.3 s. 33.3 % of the time was spent waiting for data."]


def test_old_log_without_norms_and_times_gives_no_further_figures(run_dir):
    assert [figure.name for figure in run_figures(read_run(run_dir))] == ["loss"]


def test_page_of_a_run_at_work_renews_itself_and_writes_nothing_else(run_dir):
    page = report(run_dir, refresh_seconds=7).read_text()
    assert '<meta http-equiv="refresh" content="7">' in page
    assert "at work" in page
    assert not (run_dir / "report.json").exists()
    assert 'http-equiv="refresh"' not in report(run_dir).read_text()


def test_energy_is_cores_and_gpu_at_a_stated_draw():
    used = {"seconds": 3600, "processor_seconds": 7200}
    assert watt_hours(used, {"device": "cpu"}) == 2 * WATTS_OF_A_CORE
    assert watt_hours(used, {"device": "cuda"}) == 2 * WATTS_OF_A_CORE + WATTS_OF_A_GPU
    assert watt_hours({}, {}) is None


def test_time_is_summed_over_stages_and_memory_is_not(run_dir):
    for stage, seconds, peak in (("finetune", 60, 10**9), ("bridge", 30, 2 * 10**9)):
        used = {"seconds": seconds, "processor_seconds": seconds, "peak_memory_bytes": peak}
        write_json(run_dir / stage / "resources.json", used)
    table = resources_table(read_run(run_dir))
    assert table.rows[-1][:4] == ("total", "1 min 30 s", "1 min 30 s", "2.00 GB")
    assert "Energy is estimated" in table.note


def test_model_card_holds_the_figures_and_no_markup_of_strangers(run_dir):
    write_evaluation(run_dir / "evaluate")
    left_out = [{"kind": "image", "reason": "a|b\n# <script>", "count": 1, "examples": ["[x](http://y)"]}]
    write_json(run_dir / "data.json", DATA | {"excluded": left_out})
    card = run_card(read_run(run_dir))
    assert "| recall@1 | 11.2 % | 31.2 % | +20.0 |" in card
    assert "## Prompt fidelity" in card
    assert "a\\|b # \\<script\\>" in card
    assert "[x]" not in card.replace("\\[x\\]", "")
    assert "clipgraft demo --out runs/demo" in card


@pytest.mark.parametrize("missing", ["finetune/metrics.json", "data.json", "environment.json", "recipe.toml"])
def test_model_card_of_an_incomplete_run_leaves_out_what_is_missing(run_dir, missing):
    (run_dir / missing).unlink()
    assert "\n# demo\n" in run_card(read_run(run_dir))
