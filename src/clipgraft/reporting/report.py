"""Write reports of finished or active runs, and comparisons, atomically."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clipgraft.console import print_line
from clipgraft.files import atomic_write, to_json
from clipgraft.reporting import comparison, sections
from clipgraft.reporting.curves import run_figures
from clipgraft.reporting.evidence import Ranking, failed_images, rank_prompts
from clipgraft.reporting.format import short_name, short_setting
from clipgraft.reporting.html import render_comparison, render_report
from clipgraft.reporting.model_card import run_card
from clipgraft.reporting.plots import epoch_means
from clipgraft.reporting.provenance import started, watt_hours
from clipgraft.reporting.run_data import RunData, read_run
from clipgraft.runs.run import METRICS_NAME, Run

REFRESH_SECONDS = 10
SUMMARY_VERSION = 2
DATA_KEYS = ("format", "fingerprint", "counts", "excluded")
EVALUATION_KEYS = {
    *("notes", "settings", "data", "variants", "metrics", "prompt_sets", "figures", "differences", "counts")
}
"""Parts of evaluation.json repeated in report.json."""


def report(run_dir: Path, *, refresh_seconds: int = 0) -> Path:
    """Write the report of a run or single stage, finished or not.

    Writes `report.html` (at most 5 MB), `report.json`, `model_card.md`, the figures, and a whole run's
    `metrics.json`. All are rendered before any is written, and written before any is replaced, so an older
    report survives a full disk. Returns the path of `report.html`.

    Args:
        refresh_seconds: For an active run: interval at which a browser reloads the page; only the page is
            written. 0 = never.

    Raises:
        MissingFileError: If there is no such folder.
        CheckpointError: If the folder is not a run.
        UserError: If the page would be larger than 5 MB.
    """
    run = read_run(run_dir)
    ranking, figures = rank_prompts(run), run_figures(run)
    page = render_report(run, ranking, figures, refresh_seconds=refresh_seconds)
    files = {"report.html": page.encode("utf-8")}
    if not refresh_seconds:
        files["report.json"] = _json(summarize(run, ranking))
        files["model_card.md"] = run_card(run).encode("utf-8")
        for figure in figures:
            files[f"{figure.name}.svg"] = figure.svg
            files[f"{figure.name}.png"] = figure.render("png")
        if not run.has_own_metrics:
            files[METRICS_NAME] = _json(run.all_metrics())
    _write_all(run_dir, files)
    return run_dir / "report.html"


def compare(run_dirs: Sequence[Path], out_dir: Path) -> Path:
    """Write a comparison of runs: `comparison.html`, `.json`, `.png` and `.svg`.

    Returns the path of the page.

    Raises:
        MissingFileError: If a folder does not exist.
        CheckpointError: If a folder is not a run.
        UserError: If the page would be larger than 5 MB.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    differing = short_setting(comparison.differing_settings(runs))
    summary = {
        "schema": "clipgraft.comparison",
        "schema_version": 1,
        "comparable": comparison.comparability(runs),
        "differing_settings": differing,
        "runs": [summarize(run) for run in runs],
    }
    files = {"comparison.html": render_comparison(runs).encode("utf-8"), "comparison.json": _json(summary)}
    if any(run.log for run in runs):
        for image_format in ("png", "svg"):
            files[f"comparison.{image_format}"] = comparison.render_losses(runs, image_format)
    _write_all(out_dir, files)
    return out_dir / "comparison.html"


def watch(run_dir: Path, *, every: int = REFRESH_SECONDS) -> Path:
    """Rewrite the page during a run, and write the report after it.

    Args:
        every: Seconds between pages, and between reloads by the browser.

    Raises:
        MissingFileError: If there is no such folder.
        CheckpointError: If the folder is not a run.
        KeyboardInterrupt: At Ctrl-C, after writing the page once more without reloading.
    """
    run, told = Run.open(run_dir), False
    try:
        while run.is_running:
            page = report(run_dir, refresh_seconds=every)
            if not told:
                print_line(f"open {page}; it reloads itself until the run ends, Ctrl-C ends the watch")
            told = True
            time.sleep(every)
    except KeyboardInterrupt:
        report(run_dir)
        raise
    if not told:
        print_line(f"nothing is at work in {run_dir}; writing its report once")
    return report(run_dir)


def summarize(run: RunData, ranking: Ranking | None = None) -> dict[str, Any]:
    """Return the content of report.json, without absolute paths."""
    ranked = (ranking or rank_prompts(run)).groups
    data: dict[str, Any] = {key: run.data[key] for key in DATA_KEYS if key in run.data}
    if run.data.get("root"):
        data["name"] = short_name(run.data["root"])
    return {
        "schema": "clipgraft.report",
        "schema_version": SUMMARY_VERSION,
        "name": run.name,
        "started": started(run),
        "summary": sections.describe_run(run),
        "problems": run.problems,
        "recipe": short_setting(run.recipe),
        "data": data,
        "training": {
            "num_steps": len(run.log),
            "epoch_mean_loss": [
                {"epoch": epoch, "step": step, "loss": loss} for epoch, step, loss in epoch_means(run.log)
            ],
            "evaluations": run.validation,
        },
        "finetune": run.finetune,
        "bridge": run.bridge,
        "refine": run.refine,
        "distill": run.distill,
        "evaluation": run.evaluation.model_dump(include=EVALUATION_KEYS & run.evaluation.model_fields_set),
        "ranked_prompts": {title: [group.prompt for group in groups] for title, groups in ranked.items()},
        "num_failed_images": failed_images(run)[1],
        "images": run.image_rows,
        "resources": {
            stage or "all": used | {"watt_hours_estimated": watt_hours(used, run.environment)}
            for stage, used in run.resources.items()
        },
        "environment": run.environment,
    }


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    with ExitStack() as written:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            written.enter_context(atomic_write(path)).write_bytes(content)


def _json(value: Mapping[str, Any]) -> bytes:
    return (to_json(value) + "\n").encode("utf-8")
