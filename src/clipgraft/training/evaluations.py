"""Evaluations on the way: `evaluations.jsonl`, the best weights by one metric, and when to stop early.

All of it is read from the file's rows, so a resumed run decides as the unbroken one.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipgraft.errors import CheckpointError, UserError
from clipgraft.models.checkpoint import tensors_sha256
from clipgraft.training.log import written_to_disk

BEST_NAME = "best.safetensors"
LOWER_IS_BETTER = ("loss", "drift", "median_rank")
"""Parts of the names of such metrics; of all others (recall, mAP) more is better."""


@dataclass(frozen=True)
class EvaluationPlan:
    """What is measured before the first step and after every epoch."""

    measure: Callable[[], dict[str, Any]]
    """Gives metrics by name; must leave weights and random state alone."""
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
        path = self.folder / "evaluations.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() and self.step else []
        self.rows = [row for row in map(json.loads, lines) if row["step"] <= self.step]

    def is_due(self, step: int) -> bool:
        """Whether there is no row of this step yet."""
        return not self.rows or self.rows[-1]["step"] < step

    def add(self, row: dict[str, Any], weights: dict[str, Tensor] | None) -> None:
        """Write a row, and before it the weights where they are the best so far.

        Args:
            row: `step`, `epoch` and the metrics.
            weights: What is trained, by name; None in a process that writes nothing.

        Raises:
            ValueError: If the row lacks the metric that tells the best.
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
            with written_to_disk(self.folder / BEST_NAME) as path:
                save_file(weights, path, metadata=_description(row["step"], weights))
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        with written_to_disk(self.folder / "evaluations.jsonl") as path:
            path.write_text(text, encoding="utf-8")

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
        path, step = self.folder / BEST_NAME, self.best()["step"]
        try:
            with safe_open(path, "pt") as file:
                description = file.metadata()
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); start again with --overwrite") from error
        if description != _description(step, weights):
            raise CheckpointError(
                f"{path} is damaged, or not of step {step}, whose evaluation is the best; start again with "
                "--overwrite"
            )
        return weights

    def has_lost_patience(self) -> bool:
        """Whether the best row lies `patience` rows back."""
        if not self.plan.patience:
            return False
        since_best = len(self.rows) - 1 - self.rows.index(self.best())
        return self.plan.patience <= since_best

    def _is_better(self, row: dict[str, Any], than: dict[str, Any]) -> bool:
        metric = self.plan.best_metric
        sign = -1 if any(part in metric for part in LOWER_IS_BETTER) else 1
        return sign * row[metric] > sign * than[metric]


def refuse_lost_best(folder: Path, plan: EvaluationPlan, step: int) -> None:
    """Refuse to go another way from a step whose best weights so far were overwritten by later ones.

    Raises:
        CheckpointError: If they were: those that lie there would pass for weights of this way.
    """
    every = Evaluations(folder, plan, sys.maxsize)
    if plan.best_metric and every.rows and every.best()["step"] > step:
        raise CheckpointError(
            f"the best weights that are kept are of step {every.best()['step']}, not of one up to {step}; "
            "go on from there or later, or start again with --overwrite"
        )


def _description(step: int, weights: dict[str, Tensor]) -> dict[str, str]:
    """What a file of best weights says of itself: of which step it is, and the sum of its values."""
    return {"step": str(step), "sha256": tensors_sha256(weights)}
