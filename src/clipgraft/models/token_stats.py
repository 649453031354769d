"""Streaming statistics of prompt embeds by token class: error and diversity."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgraft.models.bridge import CLASS_NAMES

COLLAPSED_SHARE = 0.5
"""Embeds below this share of the teacher's diversity count as collapsed (a guess)."""


def _zeros() -> Tensor:
    return torch.zeros(len(CLASS_NAMES), dtype=torch.float64)


@dataclass
class EmbedError:
    """Error of embeds against the teacher's."""

    squared: Tensor = field(default_factory=_zeros)
    power: Tensor = field(default_factory=_zeros)
    cosine: Tensor = field(default_factory=_zeros)
    count: Tensor = field(default_factory=_zeros)

    def add(self, student: Tensor, teacher: Tensor, classes: Tensor) -> None:
        """Add a batch: embeds (B, L, D) and classes (B, L)."""
        index = classes.flatten().cpu()

        def total(values: Tensor) -> Tensor:
            return _zeros().index_add(0, index, values.cpu().double().flatten())

        self.squared += total((student - teacher).square().sum(-1))
        self.power += total(teacher.square().sum(-1))
        self.cosine += total(F.cosine_similarity(student, teacher, dim=-1))
        self.count += total(torch.ones_like(classes))

    def relative_error(self) -> dict[str, float]:
        """Return the RMS error relative to the teacher's RMS, by class."""
        return {name: value**0.5 for name, value in self._by_class(self.squared / self.power).items()}

    def mean_cosine(self) -> dict[str, float]:
        """Return the mean cosine similarity, by class."""
        return self._by_class(self.cosine / self.count)

    def _by_class(self, values: Tensor) -> dict[str, float]:
        rows = zip(CLASS_NAMES, values.tolist(), self.count.tolist(), strict=True)
        return {name: value for name, value, count in rows if count}


class Diversity:
    """Mean cosine distance between captions at the same position.

    A bridge can have a small error and yet map all captions ("rat", "cat", "man") to the same embeds: then
    this is near 0. Positions are not compared with each other, as each has its own bias.
    """

    def __init__(self, num_positions: int, size: int):
        self.directions = torch.zeros(len(CLASS_NAMES), num_positions, size, dtype=torch.float64)
        self.count = torch.zeros(len(CLASS_NAMES), num_positions, dtype=torch.float64)

    def add(self, embeds: Tensor, classes: Tensor) -> None:
        """Add embeds (B, L, D) and classes (B, L), L <= `num_positions`."""
        num_positions = self.count.shape[1]
        index = (classes.cpu() * num_positions + torch.arange(classes.shape[1])).flatten()
        directions = F.normalize(embeds.cpu().double().flatten(0, 1), dim=-1)
        self.directions.view(-1, directions.shape[1]).index_add_(0, index, directions)
        self.count += torch.bincount(index, minlength=self.count.numel()).view_as(self.count)

    def summary(self) -> dict[str, float]:
        """Return the mean distance, 0 to 2, by class with pairs."""
        n = self.count
        # |sum of unit vectors|^2 is the sum of cosines over all ordered pairs, self-pairs included.
        cosines, pairs = (self.directions.square().sum(2) - n).sum(1), (n * (n - 1)).sum(1)
        rows = zip(CLASS_NAMES, (1 - cosines / pairs).tolist(), pairs.tolist(), strict=True)
        return {name: distance for name, distance, num_pairs in rows if num_pairs}


def is_collapsed(diversity: float | None, teacher_diversity: float | None) -> bool:
    """Whether embeds have lost most of the teacher's diversity."""
    if diversity is None or teacher_diversity is None:
        return False
    return diversity < COLLAPSED_SHARE * teacher_diversity
