"""Runs that are training or have ended, as the page shows them."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from clipgraft.reporting.plots import epoch_means, thin_out
from clipgraft.reporting.run import STAGES, Run, is_number, read_run
from clipgraft.run_folder import is_at_work
from clipgraft.stages.studio import run_folders

REPORT_NAME = "report.html"


def list_runs(runs_dir: Path) -> list[dict[str, Any]]:
    """Runs, the one that was last written to first."""
    folders = sorted(run_folders(runs_dir), key=lambda folder: folder.stat().st_mtime, reverse=True)
    return [_summary(folder) for folder in folders]


def describe_run(runs_dir: Path, name: str) -> dict[str, Any]:
    """A run with its loss.

    Returns:
        What `list_runs` tells of it, with `steps` and `losses` of its batches (None for a loss that is no
        number; of many steps the lowest and the highest of every few), `epochs` (number from 1, last step,
        mean loss), evaluations and what could not be read.

    Raises:
        KeyError: If there is no such run.
    """
    folder = _folder(runs_dir, name)
    run = read_run(folder)
    evaluations = [{key: value for key, value in row.items() if is_number(value)} for row in run.evaluations]
    return {**_summary(folder), **_curve(run), "evaluations": evaluations, "problems": run.problems}


def report_path(runs_dir: Path, name: str) -> Path:
    """Where a run's report lies.

    Raises:
        KeyError: If there is no such run, or it has no report yet.
    """
    path = _folder(runs_dir, name) / REPORT_NAME
    if not path.is_file():
        raise KeyError(name)
    return path


def _folder(runs_dir: Path, name: str) -> Path:
    """By the name alone, among those that are there: what a client sends is never made into a path."""
    return {folder.name: folder for folder in run_folders(runs_dir)}[name]


def _summary(folder: Path) -> dict[str, Any]:
    stages = [stage for stage in STAGES if (folder / stage).is_dir()]
    return {
        "name": folder.name,
        "state": _state(folder, stages),
        "stages": stages,
        "has_report": (folder / REPORT_NAME).is_file(),
        "changed": folder.stat().st_mtime,
    }


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
        "epochs": [[epoch + 1, step, mean] for epoch, step, mean in epoch_means(run.log)],
    }
