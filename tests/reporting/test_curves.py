"""Figures of a training."""

from example_run import full_log_rows, write_log

from clipgraft.reporting.curves import run_figures
from clipgraft.reporting.report import report
from clipgraft.reporting.run_data import read_run


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


def test_skipped_and_clipped_steps_are_counted(run_dir):
    rows = [
        row | {"grad_norm": norm}
        for row, norm in zip(full_log_rows(1, 4), (3.0, 0.5, None, 1.5), strict=True)
    ]
    write_log(run_dir / "finetune" / "log.jsonl", rows)
    _, norm, _, time = run_figures(read_run(run_dir))
    assert "2 of 4 steps (50.0 %) were scaled down to a norm of 1." in norm.notes
    assert "Red marks: steps skipped because loss or gradient was not finite (1)." in norm.notes
    assert time.notes == ["Median step: 0.3 s. 33.3 % of the time was spent waiting for data."]


def test_old_log_without_norms_has_the_loss_figure_only(run_dir):
    assert [figure.name for figure in run_figures(read_run(run_dir))] == ["loss"]
