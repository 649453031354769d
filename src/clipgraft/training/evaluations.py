"""Evaluations on the way: `evaluations.jsonl`, the best weights by one metric, and when to stop early.

All of it is read from the file's rows, so a resumed run decides as the unbroken one.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from clipgraft.errors import CheckpointError
from clipgraft.writing import written_whole

BEST_NAME = "best.safetensors"


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
            raise ValueError(f"best_metric {metric!r} is not measured; known here: {known}")
        is_best = bool(metric) and (not self.rows or self._is_better(row, self.best()))
        self.rows.append(row)
        if weights is None:
            return
        if is_best:
            with _on_disk(self.folder / BEST_NAME) as path:
                save_file(weights, path)
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        with _on_disk(self.folder / "evaluations.jsonl") as path:
            path.write_text(text, encoding="utf-8")

    def best(self) -> dict[str, Any]:
        """Return the best row; of equal ones the first."""
        best = self.rows[0]
        for row in self.rows[1:]:
            best = row if self._is_better(row, best) else best
        return best

    def best_weights(self) -> dict[str, Tensor] | None:
        """Read the weights of the best row; None where none are kept."""
        return load_file(self.folder / BEST_NAME) if self.plan.best_metric else None

    def has_lost_patience(self) -> bool:
        """Whether the best row lies `patience` rows back."""
        if not self.plan.patience:
            return False
        since_best = len(self.rows) - 1 - self.rows.index(self.best())
        return self.plan.patience <= since_best

    def _is_better(self, row: dict[str, Any], than: dict[str, Any]) -> bool:
        metric = self.plan.best_metric
        # Of a loss and of a drift less is better, of a recall more.
        sign = -1 if "loss" in metric or "drift" in metric else 1
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


@contextmanager
def _on_disk(path: Path) -> Iterator[Path]:
    """`written_whole`, and on the disk before the old file is gone: a killed run leaves one of the two."""
    with written_whole(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
