"""Turn a run's folder into one page, several into one that compares them, or watch a run at work."""

import time
from collections.abc import Sequence
from pathlib import Path

from clipgraft.console import print_line
from clipgraft.files import write_json
from clipgraft.reporting.outputs import write_comparison, write_report
from clipgraft.reporting.run_data import collect_metrics, has_own_metrics, read_run
from clipgraft.runs.run import Run

REFRESH_SECONDS = 10


def report(run_dir: Path) -> Path:
    """Write `report.html`, `report.json`, `model_card.md` and the figures, and a whole run's `metrics.json`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is no run's.
    """
    run = read_run(run_dir)
    page = write_report(run_dir)
    if not run.is_single_stage and not has_own_metrics(run_dir):
        write_json(run_dir / "metrics.json", collect_metrics(run_dir))
    return page


def compare(run_dirs: Sequence[Path], out_dir: Path) -> Path:
    """Write `comparison.html`, `comparison.json` and its figure for two runs or more.

    Raises:
        FileNotFoundError: If one of the folders is not there.
        ValueError: If one of them is no run's.
    """
    return write_comparison(run_dirs, out_dir)


def watch(run_dir: Path, *, every: int = REFRESH_SECONDS) -> Path:
    """Write the page again and again while a run is at work, and once more when it has ended.

    Args:
        run_dir: Folder of a run.
        every: Seconds between pages; the browser loads them as often.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder is no run's.

    Side effects:
        Where Ctrl-C ends the watch, the page is written once more, as one that no longer renews itself.
    """
    told = False
    try:
        while Run(run_dir).is_running:
            page = write_report(run_dir, refresh_seconds=every)
            if not told:
                print_line(f"open {page}; it renews itself until the run ends, Ctrl-C ends the watch")
            told = True
            time.sleep(every)
    except KeyboardInterrupt:
        write_report(run_dir)
        raise
    if not told:
        print_line(f"nothing is at work in {run_dir}; writing its report once")
    return report(run_dir)
