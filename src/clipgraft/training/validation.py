"""Evaluations on the way: `evaluations.jsonl`, the best weights by one metric, and when to stop early.

All of it is read from the file's rows, so a resumed run decides as the unbroken one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipgraft.errors import CheckpointError, UserError
from clipgraft.files import parse_json
from clipgraft.models.weights import tensors_sha256, write_tensors
from clipgraft.training.step_log import RowsSum, as_line, read_rows, sum_of_rows, written_to_disk

EVALUATIONS_NAME = "evaluations.jsonl"
BEST_NAME = "best.safetensors"
LOWER_IS_BETTER = ("loss", "drift", "median_rank")
"""Parts of the names of such metrics; of all others (recall, mAP) more is better."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured before the first step and after every epoch."""

    measure: Callable[[], dict[str, Any]]
    """Gives metrics by name; must leave the weights alone."""
    best_metric: str = ""
    """Name of the metric by which the best weights are told; empty: none are kept."""
    patience: int = 0
    """Evaluations without a better one after which training stops; 0 = never."""


@dataclass
class Evaluations:
    """The rows of a run's evaluations; a row has `step`, `epoch` and the metrics.

    Args:
        folder: Gets `evaluations.jsonl` and `best.safetensors`.
        plan: What is measured.
        step: Steps made; later rows, of a run that was killed, are taken out.
    """

    folder: Path
    plan: EvaluationPlan
    step: int
    rows: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        # What a checkpoint counts on was compared with its sum; a torn row behind that is measured again.
        path = self.folder / EVALUATIONS_NAME
        self.rows = _readable_rows(path, self.plan.best_metric, self.step) if self.step else []

    def sum(self) -> RowsSum:
        """Return number and sum of the rows, which a checkpoint counts on."""
        return sum_of_rows(map(as_line, self.rows))

    def is_due(self, step: int) -> bool:
        """Whether there is no row of this step yet."""
        return not self.rows or self.rows[-1]["step"] < step

    def add(self, row: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Write a row, and before it the weights where they are the best so far.

        Args:
            row: `step`, `epoch` and the metrics.
            weights: What is trained, by name; None in a process that writes nothing.

        Raises:
            UserError: If the row lacks the metric that tells the best.
            OSError: If there is no space left; both files are as they were.
        """
        metric = self.plan.best_metric
        if metric and not isinstance(row.get(metric), int | float):
            known = ", ".join(name for name, value in row.items() if isinstance(value, int | float))
            raise UserError(f"best_metric {metric!r} is not measured; known here: {known}")
        is_best = bool(metric) and (not self.rows or self._is_better(row, self.best()))
        self.rows.append(row)
        if weights is None:
            return
        if is_best:
            write_tensors(self.folder / BEST_NAME, weights, _description(row["step"], weights))
        with written_to_disk(self.folder / EVALUATIONS_NAME) as path:
            path.write_bytes(b"".join(map(as_line, self.rows)))

    def best(self) -> dict[str, Any]:
        """Return the best row; of equal ones the first."""
        best = self.rows[0]
        for row in self.rows[1:]:
            best = row if self._is_better(row, best) else best
        return best

    def best_weights(self) -> dict[str, Tensor] | None:
        """Read the weights of the best row; None where none are kept.

        Raises:
            CheckpointError: If they are lost, damaged, or of another step than the best row's.
        """
        if not self.plan.best_metric:
            return None
        step, weights = _read_best(self.folder / BEST_NAME)
        if step != self.best()["step"]:
            raise CheckpointError(
                f"{self.folder / BEST_NAME} is of step {step}, not of step {self.best()['step']}, whose "
                "evaluation is the best; start again with --overwrite"
            )
        return weights

    def refuse_lost_best(self, *, goes_another_way: bool) -> None:
        """Make sure, before the first step, that the best weights so far will be there at the end.

        Args:
            goes_another_way: Whether the steps to come may be others than those that were made from here.

        Raises:
            CheckpointError: If they are lost or damaged, or were overwritten by those of a later step, which
                only the same steps would bring back.
        """
        if not self.plan.best_metric or not self.rows:
            return
        found, best = _read_best(self.folder / BEST_NAME)[0], self.best()["step"]
        is_written_again = found > self.rows[-1]["step"] and not goes_another_way
        if found != best and not is_written_again:
            raise CheckpointError(
                f"the best weights that are kept are of step {found}, not of step {best}, the best up to "
                f"step {self.step}; go on from step {found} or later, or start again with --overwrite"
            )

    def has_lost_patience(self) -> bool:
        """Whether the best row lies `patience` rows back."""
        if not self.plan.patience or not self.rows:
            return False
        since_best = len(self.rows) - 1 - self.rows.index(self.best())
        return self.plan.patience <= since_best

    def _is_better(self, row: dict[str, Any], than: dict[str, Any]) -> bool:
        metric = self.plan.best_metric
        sign = -1 if any(part in metric for part in LOWER_IS_BETTER) else 1
        return sign * row[metric] > sign * than[metric]


def _readable_rows(path: Path, metric: str, step: int) -> list[dict[str, Any]]:
    """Rows up to a step, as far as they are whole."""
    rows: list[dict[str, Any]] = []
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
    """Read the best weights and the step that they are of."""
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
    """What a file of best weights says of itself: of which step it is, and the sum of its values."""
    return {"step": str(step), "sha256": tensors_sha256(weights)}
