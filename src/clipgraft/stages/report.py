"""Turn a run's folder into one page."""

from pathlib import Path

from clipgraft.reporting.html import write_report
from clipgraft.reporting.run import collect_metrics
from clipgraft.runtime import write_json


def report(run_dir: Path) -> Path:
    """Write `metrics.json` and `report.html` of a run.

    Raises:
        FileNotFoundError: If there is no such folder.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"run folder not found: {run_dir}")
    write_json(run_dir / "metrics.json", collect_metrics(run_dir))
    return write_report(run_dir)
