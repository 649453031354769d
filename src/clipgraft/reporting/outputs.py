"""What a report writes: page, JSON, model card and figures, each whole or not at all."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clipgraft.files import atomic_write, to_json
from clipgraft.reporting import comparison
from clipgraft.reporting.curves import training_curves
from clipgraft.reporting.html import render_comparison, render_report
from clipgraft.reporting.model_card import render_model_card
from clipgraft.reporting.plots import LIGHT, render_loss
from clipgraft.reporting.run_data import read_run
from clipgraft.reporting.setting_tables import short_setting
from clipgraft.reporting.summary import summarize


def write_report(run_dir: Path, *, refresh_seconds: int = 0) -> Path:
    """Write the report of a run.

    Args:
        run_dir: Folder of a run, finished or not, or of a single stage.
        refresh_seconds: Of a run that is at work: seconds after which a browser loads the page anew. The page
            alone is written then.

    Returns:
        Path of `report.html`, at most 5 MB.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is no run's, or the page would be larger than 5 MB.

    Side effects:
        Writes `report.json` and `model_card.md` beside the report; `loss.png` and `loss.svg` where steps were
        logged, and the other figures of the page into `figures/`. All is made before anything is written,
        and all is written before anything is replaced: where the disk is full, an older report stays as it
        was.
    """
    run = read_run(run_dir)
    files = {"report.html": render_report(run, refresh_seconds=refresh_seconds).encode("utf-8")}
    if not refresh_seconds:
        files["report.json"] = _to_json(summarize(run))
        files["model_card.md"] = render_model_card(run).encode("utf-8")
        for curve in training_curves(run):
            for image_format in ("png", "svg"):
                files[f"figures/{curve.name}.{image_format}"] = curve.render(image_format, LIGHT)
        if run.log:
            files |= {f"loss.{kind}": render_loss(run.log, kind) for kind in ("png", "svg")}
    _write_all(run_dir, files)
    return run_dir / "report.html"


def write_comparison(run_dirs: Sequence[Path], out_dir: Path) -> Path:
    """Write one page that compares runs.

    Args:
        run_dirs: Folders of two runs or more.
        out_dir: Gets `comparison.html`, `comparison.json`, `comparison.png` and `comparison.svg`.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: If one of them is not there.
        ValueError: If one is no run's folder, or the page would be larger than 5 MB.
    """
    runs = [read_run(run_dir) for run_dir in run_dirs]
    files = {
        "comparison.html": render_comparison(runs).encode("utf-8"),
        "comparison.json": _to_json(
            {
                "schema": "clipgraft.comparison",
                "schema_version": 1,
                "comparable": comparison.comparability(runs),
                "differing_settings": {
                    key: [short_setting(value) for value in values]
                    for key, values in comparison.differing_settings(runs).items()
                },
                "runs": [summarize(run) for run in runs],
            }
        ),
    }
    if any(run.log for run in runs):
        for image_format in ("png", "svg"):
            files[f"comparison.{image_format}"] = comparison.render_losses(runs, image_format, LIGHT)
    _write_all(out_dir, files)
    return out_dir / "comparison.html"


def _write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Write files beside their places, and put all in place when the last one is on the disk."""
    with ExitStack() as written:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            written.enter_context(atomic_write(path)).write_bytes(content)


def _to_json(value: dict[str, Any]) -> bytes:
    return (to_json(value) + "\n").encode()
