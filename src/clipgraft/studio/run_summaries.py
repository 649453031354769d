"""Runs that are training or have ended, as the page shows them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from clipgraft.config import Recipe
from clipgraft.errors import UserError
from clipgraft.files import inside
from clipgraft.reporting.plots import epoch_means, thin_out
from clipgraft.reporting.run_data import STAGES, Run, is_number, read_run
from clipgraft.runs.folder import is_at_work
from clipgraft.studio.catalog import read_runs

REPORT_NAME = "report.html"
MAX_FILE_BYTES = 100_000_000
"""Of a run's log: half a million steps."""


def list_runs(runs_dir: Path) -> list[dict[str, Any]]:
    """Runs, the one that was last written to first; at the end those that cannot be read, with the reason."""
    runs, unreadable = read_runs(runs_dir, _summary)
    rows = sorted(runs.values(), key=lambda row: row["changed"], reverse=True)
    return rows + [_unreadable(name, reason) for name, reason in unreadable.items()]


def describe_run(runs_dir: Path, name: str) -> dict[str, Any]:
    """A run with its loss.

    Returns:
        What `list_runs` tells of it, with `steps` and `losses` of its batches (None for a loss that is no
        number; of many steps the lowest and the highest of every few), `epochs` (number from 1, last step,
        mean loss), evaluations and what could not be read.

    Raises:
        KeyError: If there is no such run.
    """
    runs, unreadable = read_runs(runs_dir, _description, only=name)
    if name in unreadable:
        return _unreadable(name, unreadable[name]) | {
            "steps": [],
            "losses": [],
            "epochs": [],
            "evaluations": [],
        }
    return runs[name]


def report_path(runs_dir: Path, name: str) -> Path:
    """Where a run's report lies.

    Raises:
        KeyError: If there is no such run, or it has no report yet.
        UserError: If the run cannot be read, or its report is a link out of it.
    """
    runs, unreadable = read_runs(runs_dir, lambda folder, _: folder, only=name)
    if name in unreadable:
        raise UserError(f"run {name} cannot be read: {unreadable[name]}")
    path = inside(runs[name] / REPORT_NAME, runs[name])
    if not path.is_file():
        raise KeyError(name)
    return path


def _summary(folder: Path, _recipe: Recipe) -> dict[str, Any]:
    stages = [stage for stage in STAGES if (folder / stage).is_dir()]
    return {
        "name": folder.name,
        "state": _state(folder, stages),
        "stages": stages,
        "has_report": _has_report(folder),
        "changed": folder.stat().st_mtime,
    }


def _description(folder: Path, recipe: Recipe) -> dict[str, Any]:
    run = read_run(folder, max_bytes=MAX_FILE_BYTES)
    evaluations = [{key: value for key, value in row.items() if is_number(value)} for row in run.evaluations]
    summary, problems = _summary(folder, recipe), run.problems
    return {**summary, **_curve(run), "evaluations": evaluations, "problems": problems}


def _unreadable(name: str, reason: str) -> dict[str, Any]:
    plain = {"stages": [], "has_report": False, "changed": 0.0}
    return {"name": name, "state": "unreadable", **plain, "problems": [f"It cannot be read: {reason}"]}


def _has_report(folder: Path) -> bool:
    """Whether a run has a report; a link out of the run does not count."""
    try:
        return inside(folder / REPORT_NAME, folder).is_file()
    except UserError:
        return False


def _state(folder: Path, stages: list[str]) -> str:
    if any(is_at_work(place) for place in (folder, *(folder / stage for stage in stages))):
        return "running"
    is_done = (folder / REPORT_NAME).is_file() if stages else (folder / "metrics.json").is_file()
    return "finished" if is_done else "stopped"


def _curve(run: Run) -> dict[str, Any]:
    steps = np.array([row["step"] for row in run.log], dtype=float)
    losses = np.array([row["loss"] if is_number(row["loss"]) else np.nan for row in run.log], dtype=float)
    shown_steps, shown_losses, _ = thin_out(steps, losses) if run.log else (steps, losses, 1)
    return {
        "steps": [int(step) for step in shown_steps],
        "losses": [None if math.isnan(loss) else loss for loss in shown_losses.tolist()],
        "epochs": [[epoch + 1, step, mean] for epoch, step, mean in epoch_means(run.log) if is_number(mean)],
    }
