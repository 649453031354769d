"""Trackers of a run's figures: TensorBoard, W&B, MLflow and trackio, through accelerate."""

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

from clipgraft.console import say
from clipgraft.errors import UserError, one_line
from clipgraft.files import parse_json, read_json, write_json
from clipgraft.section import TRACKERS, TrackerNames

TRACKERS_NAME = "trackers.json"
PROJECT = "clipgraft"
"""Project at W&B (else $WANDB_PROJECT) and trackio, experiment at MLflow (else $MLFLOW_EXPERIMENT_NAME)."""
WITH_EXTRA = {"tensorboard": "'clipgraft[tracking]'"}
"""What pip installs; the others are packages of their own name."""
Row = Mapping[str, Any]
"""`step` and figures by name."""


def installed_trackers(names: TrackerNames) -> tuple[str, ...]:
    """Return the trackers to report to, "all" replaced by those installed.

    Raises:
        UserError: If one is not installed; names the command that installs it.
    """
    found = tuple(name for name in TRACKERS if find_spec(name))
    if "all" in names:
        if not found:
            raise UserError(f"report_to = 'all', but no tracker is installed; {_advice('tensorboard')}")
        return found
    for name in names:
        if name not in found:
            raise UserError(f"report_to = {name!r}, but {name} is not installed; {_advice(name)}")
    return tuple(dict.fromkeys(names))


def _advice(name: str) -> str:
    return f"pip install {WITH_EXTRA.get(name, name)}"


class Trackers:
    """Trackers of one training, each given every row once.

    `trackers.json` names the runs at trackers that have all rows. A resumed training goes on in them: a row
    made again after a kill is not sent again. A tracker named for the first time is sent the earlier rows.

    Args:
        run_dir: Gets `trackers.json` and `tensorboard/`.
        names: See `installed_trackers`.
        files: Files of rows, as JSON lines in rising steps, by the prefix of their figures.
        settings: Logged as hyperparameters.
        resume: Whether rows in the files belong to this training.

    Raises:
        UserError: If a tracker is not installed.
    """

    def __init__(
        self,
        run_dir: Path,
        names: TrackerNames,
        files: Mapping[str, Path],
        settings: Mapping[str, Any],
        *,
        resume: bool = False,
    ):
        self._run_dir, self._settings = run_dir, _plain(settings)
        self._names = installed_trackers(names)
        resume = resume and bool(names)
        self._rows = {prefix: _intact_rows(path) if resume else [] for prefix, path in files.items()}
        self._last = {prefix: rows[-1]["step"] if rows else -1 for prefix, rows in self._rows.items()}
        self._run_ids = _read_run_ids(run_dir / TRACKERS_NAME) if resume else {}
        self._started: dict[str, Any] = {}

    def start(self) -> None:
        """Start all trackers and send what they lack.

        Raises:
            UserError: If one cannot be started, because of a missing account or server for example.
        """
        known, self._run_ids = self._run_ids, {}
        for name in self._names:
            try:
                tracker = _new(name, self._run_dir, known.get(name, ""), self._settings)
                tracker.start()
                self._started[name] = tracker  # which `close` finishes, if what follows fails too
                if name == "wandb":
                    tracker.tracker.define_metric("*", step_metric="step")
                if name not in known:
                    tracker.store_init_configuration(self._settings)
            except Exception as error:  # each library raises its own
                raise UserError(
                    f"report_to = {name!r}: {name} could not be started ({one_line(error)}); set it up, or "
                    "leave it out"
                ) from error
            self._run_ids[name] = known.get(name) or _run_id(name, tracker)
        for prefix, row in _by_step(self._rows):
            self._send([name for name in self._started if name not in known], prefix, row)
        self._rows = {}
        self._write_run_ids()

    def report(self, prefix: str, row: Row) -> None:
        """Send a row's finite numbers as `prefix/<key>` at its `step`, once.

        A tracker that fails is left out from then on: it must not end a training.
        """
        if row["step"] > self._last[prefix]:
            self._send(list(self._started), prefix, row)

    def close(self) -> None:
        """Finish the runs at all trackers."""
        while self._started:
            name, tracker = self._started.popitem()
            try:
                tracker.finish()
            except Exception as error:  # as in `report`
                say(f"{name} could not finish its run: {one_line(error)}")

    def _send(self, names: Sequence[str], prefix: str, row: Row) -> None:
        numbers = {
            f"{prefix}/{key}": value
            for key, value in row.items()
            if isinstance(value, int | float) and isfinite(value) and key not in ("step", "epoch")
        }
        for name in names:
            try:
                _log(name, self._started[name], numbers, row["step"])
            except Exception as error:
                say(
                    f"{name} failed at step {row['step']} ({one_line(error)}); training goes on without it. "
                    "--resume sends all steps to a new run there"
                )
                del self._started[name], self._run_ids[name]
                self._write_run_ids()

    def _write_run_ids(self) -> None:
        path = self._run_dir / TRACKERS_NAME
        if self._run_ids or path.exists():
            write_json(path, self._run_ids)


def _new(name: str, run_dir: Path, run_id: str, settings: Mapping[str, Any]) -> Any:
    """Return an accelerate tracker, of an earlier run if there is one."""
    from accelerate import tracking

    title = "/".join(run_dir.absolute().parts[-2:])
    match name:
        case "tensorboard":
            return tracking.TensorBoardTracker(name, run_dir)
        case "mlflow":
            return tracking.MLflowTracker(PROJECT, run_id=run_id or None, run_name=title)
        case "wandb":
            project, run_id = os.environ.get("WANDB_PROJECT", PROJECT), run_id or secrets.token_hex(4)
            return tracking.WandBTracker(project, id=run_id, name=title, resume="allow")
        case _:
            # trackio knows a run by its name alone, and stores no settings that come after its start.
            run_id = run_id or f"{title} {secrets.token_hex(4)}"
            return tracking.TrackioTracker(PROJECT, name=run_id, resume="allow", config=dict(settings))


def _run_id(name: str, tracker: Any) -> str:
    """Return what a run is found by at its tracker."""
    match name:
        case "mlflow":
            return tracker.tracker.info.run_id
        case "wandb":
            return tracker.tracker.id
        case "trackio":
            return tracker.tracker.name
    return name


def _log(name: str, tracker: Any, numbers: dict[str, float], step: int) -> None:
    if name == "wandb":  # its own step only rises, and an evaluation comes after a training step
        tracker.log({**numbers, "step": step})
    else:
        tracker.log(numbers, step=step)


def _plain(settings: Mapping[str, Any]) -> dict[str, int | float | str]:
    """Turn values other than numbers and texts into texts."""
    return {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in settings.items()
    }


def _intact_rows(path: Path) -> list[Row]:
    """Read the rows before the first damaged one; [] without a file."""
    rows: list[Row] = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            row = parse_json(line.decode(errors="replace"), str(path))
        except UserError:
            break
        if type(row.get("step")) is not int:
            break
        rows.append(row)
    return rows


def _by_step(files: Mapping[str, Sequence[Row]]) -> Iterable[tuple[str, Row]]:
    """Sort the rows of several files by step, keeping the files' order."""
    rows = [(prefix, row) for prefix, rows in files.items() for row in rows]
    return sorted(rows, key=lambda entry: entry[1]["step"])


def _read_run_ids(path: Path) -> dict[str, str]:
    """Read a training's runs at trackers; {} if unknown or damaged."""
    try:
        found = read_json(path)
    except UserError:
        return {}
    return {name: run_id for name, run_id in found.items() if isinstance(run_id, str) and run_id}
