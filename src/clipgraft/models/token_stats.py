"""How token states differ from a teacher's: error and spread by token class, from a stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgraft.models.bridge import CLASS_NAMES

COLLAPSED_SHARE = 0.5
"""Of the teacher's spread, below which states are called collapsed (a guess)."""


def _zeros() -> Tensor:
    return torch.zeros(len(CLASS_NAMES), dtype=torch.float64)


@dataclass
class StateError:
    """Error of bridged token states against the teacher's by token class, from a stream."""

    squared: Tensor = field(default_factory=_zeros)
    power: Tensor = field(default_factory=_zeros)
    cosine: Tensor = field(default_factory=_zeros)
    count: Tensor = field(default_factory=_zeros)

    def add(self, student: Tensor, teacher: Tensor, classes: Tensor) -> None:
        """Add a batch: states (B, L, D) and classes (B, L)."""
        index = classes.flatten().cpu()

        def total(values: Tensor) -> Tensor:
            return _zeros().index_add(0, index, values.cpu().double().flatten())

        self.squared += total((student - teacher).square().sum(-1))
        self.power += total(teacher.square().sum(-1))
        self.cosine += total(F.cosine_similarity(student, teacher, dim=-1))
        self.count += total(torch.ones_like(classes))

    def summary(self) -> dict[str, dict[str, float]]:
        """Return by class `relative_error` (root of squared error over teacher's power) and mean `cosine`."""
        return {"relative_error": dict(self._by_class(self.squared / self.power, root=True))} | {
            "cosine": dict(self._by_class(self.cosine / self.count))
        }

    def _by_class(self, values: Tensor, *, root: bool = False) -> Iterator[tuple[str, float]]:
        for name, value, count in zip(CLASS_NAMES, values.tolist(), self.count.tolist(), strict=True):
            if count:
                yield name, value**0.5 if root else value


class Spread:
    """Mean cosine distance between captions' states of one class at the same position, from a stream.

    A bridge whose states say the same whatever the caption has a small error and a spread near 0: "rat",
    "cat" and "man" have become one. Between positions states differ in any case: each has a bias of its own.

    Args:
        num_positions: L.
        size: D.
    """

    def __init__(self, num_positions: int, size: int):
        self.directions = torch.zeros(len(CLASS_NAMES), num_positions, size, dtype=torch.float64)
        self.count = torch.zeros(len(CLASS_NAMES), num_positions, dtype=torch.float64)

    def add(self, states: Tensor, classes: Tensor) -> None:
        """Add a batch: states (B, L, D) and classes (B, L); L may be less than that of the spread."""
        num_positions = self.count.shape[1]
        index = (classes.cpu() * num_positions + torch.arange(classes.shape[1])).flatten()
        directions = F.normalize(states.cpu().double().flatten(0, 1), dim=-1)
        self.directions.view(-1, directions.shape[1]).index_add_(0, index, directions)
        self.count += torch.bincount(index, minlength=self.count.numel()).view_as(self.count)

    def summary(self) -> dict[str, float]:
        """Return the mean distance, 0 to 2, by class, of classes that two captions have at one position."""
        n = self.count
        # |sum of unit vectors|^2 is the sum of cosines over all ordered pairs, each with itself included.
        cosines, pairs = (self.directions.square().sum(2) - n).sum(1), (n * (n - 1)).sum(1)
        rows = zip(CLASS_NAMES, (1 - cosines / pairs).tolist(), pairs.tolist(), strict=True)
        return {name: distance for name, distance, num_pairs in rows if num_pairs}


def collapsed_classes(student: dict[str, float], teacher: dict[str, float]) -> list[str]:
    """Name the classes, of words and EOS, whose spread is below `COLLAPSED_SHARE` of the teacher's."""
    compared = [name for name in ("words", "eos") if name in student and name in teacher]
    return [name for name in compared if student[name] < COLLAPSED_SHARE * teacher[name]]
