"""Linear maps between token states in closed form, from a stream of any length."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgraft.models.bridge import NUM_CLASS_MAPS, map_index


class RidgeRegression:
    """Weighted ridge regression: normal equations in float64, memory independent of the number of rows.

    Minimises `sum_i w_i |W x_i + b - y_i|^2 + ridge * s |W - W0|^2`, with s the weighted power of x's
    entries, their mean, so that `ridge` has no unit; W0 is zero or a map given.

    Args:
        input_size: D_in.
        output_size: D_out.
    """

    def __init__(self, input_size: int, output_size: int):
        self.gram = torch.zeros(input_size + 1, input_size + 1, dtype=torch.float64)
        self.cross = torch.zeros(input_size + 1, output_size, dtype=torch.float64)

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> None:
        """Add rows.

        Args:
            inputs: (N, D_in).
            targets: (N, D_out).
            weights: (N,), not negative.
        """
        x = F.pad(inputs.double().cpu(), (0, 1), value=1.0)  # (N, D_in + 1), the last column gives b
        weighted = x * weights.double().cpu()[:, None]
        self.gram += weighted.T @ x
        self.cross += weighted.T @ targets.double().cpu()

    def solve(self, ridge: float, prior: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return weight (D_out, D_in) and bias (D_out,), float64.

        Args:
            ridge: Penalty, relative to the power of the inputs.
            prior: Map to which the solution is drawn where rows say little; None = to zero.

        Raises:
            ValueError: If nothing of any weight was added, and there is no prior.
        """
        if self.gram[-1, -1] == 0:
            if prior is None:
                raise ValueError("no caption to fit the bridge on; name a source with captions")
            return prior
        size = len(self.gram) - 1
        penalty = torch.full(
            (size + 1,), ridge * float(self.gram.diagonal()[:-1].mean()), dtype=torch.float64
        )
        penalty[-1] = 0.0  # b is free
        start = torch.zeros_like(self.cross)
        if prior is not None:
            start = torch.cat([prior[0].T, prior[1][None]])
        # lstsq, because states with a dead direction make the system singular at ridge 0.
        change = torch.linalg.lstsq(
            self.gram + penalty.diag(), self.cross - self.gram @ start, driver="gelsd"
        ).solution
        solution = start + change
        return solution[:-1].T, solution[-1]


class ClassRidgeRegression:
    """Ridge regression with a map for each token class, each drawn to the one that is best for all together.

    A class with few rows, as EOS has, keeps to the common map in the directions that its rows do not show.

    Args:
        input_size: D_in.
        output_size: D_out.
    """

    def __init__(self, input_size: int, output_size: int):
        self.parts = [RidgeRegression(input_size, output_size) for _ in range(NUM_CLASS_MAPS)]
        self.target_moment = torch.zeros(output_size, output_size, dtype=torch.float64)
        """Weighted sum of `y y^T`."""

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor, classes: Tensor) -> None:
        """Add positions.

        Args:
            inputs: (B, L, D_in).
            targets: (B, L, D_out).
            weights: (B, L), not negative.
            classes: (B, L) from `token_classes`.
        """
        for index, part in enumerate(self.parts):
            chosen = (map_index(classes) == index) & (weights > 0)
            part.add(inputs[chosen], targets[chosen], weights[chosen])
        counted = weights > 0
        y = targets[counted].double().cpu()
        self.target_moment += y.T @ (y * weights[counted].double().cpu()[:, None])

    def solve(self, ridge: float, *, by_class: bool) -> tuple[Tensor, Tensor]:
        """Return weights (num_maps, D_out, D_in) and biases (num_maps, D_out), float64.

        Raises:
            ValueError: If nothing of any weight was added.
        """
        common = _total(self.parts).solve(ridge)
        solutions = [part.solve(ridge, common) for part in self.parts] if by_class else [common]
        weights, biases = zip(*solutions, strict=True)
        return torch.stack(weights), torch.stack(biases)


def _total(parts: Sequence[RidgeRegression]) -> RidgeRegression:
    """The regression over all rows of several: sums of sums."""
    total = RidgeRegression(len(parts[0].gram) - 1, parts[0].cross.shape[1])
    for part in parts:
        total.gram += part.gram
        total.cross += part.cross
    return total
