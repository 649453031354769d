"""Validation during training: `evaluations.jsonl`, the best weights by one metric, early stopping.

Decisions depend on the file's rows alone, so a resumed run agrees with the unbroken one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipgraft.errors import CheckpointError, UserError
from clipgraft.files import atomic_write, parse_json
from clipgraft.models.weights import tensors_sha256, write_tensors
from clipgraft.training.run_log import RowsChecksum, as_line, checksum_of_rows, read_rows

EVALUATIONS_NAME = "evaluations.jsonl"
BEST_NAME = "best.safetensors"
LOWER_IS_BETTER = ("loss", "drift", "median_rank")
"""Parts of such metrics' names; of all others (recall, mAP) higher is better."""

Row = dict[str, Any]
"""`step`, `epoch` and the metrics by name."""


@dataclass(frozen=True)
class ValidationPlan:
    """Measurements before the first step and after every epoch."""

    measure: Callable[[], dict[str, Any]]
    """Returns metrics by name, without changing the weights."""
    best_metric: str = ""
    """Metric of the best weights; empty = none are kept."""
    patience: int = 0
    """Validations without a better `best_metric` before training stops; 0 = no early stopping."""


class ValidationHistory:
    """The validations of a run and its best weights.

    Args:
        run_dir: Gets `evaluations.jsonl` and `best.safetensors`; None = kept in memory.
        plan: Measurements.
        step: Steps made; later rows, of a killed run, are removed.
    """

    def __init__(self, run_dir: Path | None, plan: ValidationPlan, step: int = 0):
        self.run_dir, self.plan = run_dir, plan
        self.rows: list[Row] = []
        self._best_weights: dict[str, Tensor] | None = None
        if run_dir and step:
            # The checkpoint's checksum covers the rows before it; a torn row behind is measured again.
            self.rows = _readable_rows(run_dir / EVALUATIONS_NAME, plan.best_metric, step)

    def checksum(self) -> RowsChecksum:
        """Return the number and checksum of the rows, for a checkpoint."""
        return checksum_of_rows(map(as_line, self.rows))

    def is_due(self, step: int) -> bool:
        """Whether there is no row of this step yet."""
        return not self.rows or self.rows[-1]["step"] < step

    def best(self) -> Row:
        """Return the (first) best row."""
        metric = self.plan.best_metric
        sign = -1 if any(part in metric for part in LOWER_IS_BETTER) else 1
        return max(self.rows, key=lambda row: sign * row[metric])

    def should_stop(self) -> bool:
        """Whether the best row lies `patience` rows back."""
        if not self.plan.patience or not self.rows:
            return False
        return self.plan.patience <= len(self.rows) - 1 - self.rows.index(self.best())

    def add(self, row: Row, weights: dict[str, Tensor] | None) -> None:
        """Write a row, after its weights if they are the best yet.

        Args:
            row: `step`, `epoch` and the metrics.
            weights: Trained parameters by name; None in processes without output.

        Raises:
            UserError: If the row lacks `best_metric`.
            OSError: If there is no space left; both files are unchanged.
        """
        metric = self.plan.best_metric
        known = [name for name, value in row.items() if isinstance(value, int | float)]
        known = [name for name in known if name not in ("step", "epoch")]
        if metric and metric not in known:
            raise UserError(f"best_metric {metric!r} is not measured; known here: {', '.join(known)}")
        self.rows.append(row)
        if weights is None:
            return
        is_best = bool(metric) and self.best() is row
        if self.run_dir is None:
            self._best_weights = weights if is_best else self._best_weights
            return
        if is_best:
            write_tensors(self.run_dir / BEST_NAME, weights, _description(row["step"], weights))
        with atomic_write(self.run_dir / EVALUATIONS_NAME, on_disk=True) as path:
            path.write_bytes(b"".join(map(as_line, self.rows)))

    def best_weights(self) -> dict[str, Tensor] | None:
        """Return the weights of the best row; None if none are kept.

        Raises:
            CheckpointError: If they are lost, damaged, or of another step than the best row.
        """
        if not self.plan.best_metric or self.run_dir is None:
            return self._best_weights
        path, best = self.run_dir / BEST_NAME, self.best()["step"]
        step, weights = _read_best(path)
        if step != best:
            raise CheckpointError(
                f"{path} is of step {step}, not of step {best}, the best; start again with --overwrite"
            )
        return weights

    def refuse_lost_best(self, step: int, *, goes_another_way: bool) -> None:
        """Refuse to resume if the best weights so far are lost.

        Args:
            step: Steps made.
            goes_another_way: Whether later steps may differ from those made before.

        Raises:
            CheckpointError: If they are lost, damaged, or overwritten by a later step's and the steps differ.
        """
        if not self.plan.best_metric or not self.rows or self.run_dir is None:
            return
        found, best = _read_best(self.run_dir / BEST_NAME)[0], self.best()["step"]
        is_written_again = found > self.rows[-1]["step"] and not goes_another_way
        if found != best and not is_written_again:
            raise CheckpointError(
                f"the best weights kept are those of step {found}, not of step {best}, the best up to "
                f"step {step}; resume from step {found} or later, or start again with --overwrite"
            )


def _readable_rows(path: Path, metric: str, step: int) -> list[Row]:
    """Read the intact rows up to a step."""
    rows: list[Row] = []
    for line in read_rows(path):
        try:
            row = parse_json(line.decode(errors="replace"), str(path))
        except UserError:
            break
        is_number = not metric or isinstance(row.get(metric), int | float)
        earliest = rows[-1]["step"] + 1 if rows else 0
        if not is_number or type(row.get("step")) is not int or not earliest <= row["step"] <= step:
            break
        rows.append(row)
    return rows


def _read_best(path: Path) -> tuple[int, dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            description = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); start again with --overwrite") from error
    step = description.get("step", "")
    if not re.fullmatch(r"\d{1,18}", step) or description != _description(int(step), weights):
        raise CheckpointError(f"{path} is damaged; start again with --overwrite")
    return int(step), weights


def _description(step: int, weights: dict[str, Tensor]) -> dict[str, str]:
    return {"step": str(step), "sha256": tensors_sha256(weights)}
