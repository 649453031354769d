"""Closed-form linear maps between hidden states, from a stream of any length."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgraft.errors import UserError
from clipgraft.models.bridge import NUM_CLASS_MAPS, map_index

PRIOR_ROWS, PRIOR_ROWS_OF_BIAS = 30.0, 1.0
"""Weight of a prior in rows (guesses; in a trial on flatland the first halved the error of EOS with 100
captions and did not raise it with 1,000). Positions reached by few captions stay near the prior's bias."""


class RidgeRegression:
    """Weighted ridge regression by float64 normal equations, in constant memory.

    Minimises `sum_i w_i |W x_i + b_k(i) - y_i|^2 + ridge * s |W - W0|^2`, with s the mean weighted power of
    x's entries, so that `ridge` has no unit; W0 is zero or a prior. x has width D_in, y D_out; there are K
    biases b, one for each row.
    """

    def __init__(self, input_size: int, output_size: int, num_biases: int = 1):
        size = input_size + num_biases
        self.input_size, self.num_biases = input_size, num_biases
        self.gram = torch.zeros(size, size, dtype=torch.float64)
        self.cross = torch.zeros(size, output_size, dtype=torch.float64)

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor, biases: Tensor | None = None) -> None:
        """Add rows (inputs (N, D_in), targets (N, D_out), weights (N,) >= 0, bias indices (N,))."""
        # To the CPU first: Apple's GPUs have no float64.
        index = torch.zeros(len(inputs), dtype=torch.int64) if biases is None else biases.cpu()
        chosen = F.one_hot(index, self.num_biases).double()
        x = torch.cat([inputs.cpu().double(), chosen], 1)  # (N, D_in + K)
        weighted = x * weights.cpu().double()[:, None]
        self.gram += weighted.T @ x
        self.cross += weighted.T @ targets.cpu().double()

    def with_one_bias(self) -> "RidgeRegression":
        """Return the regression of the same rows with a single bias."""
        size = self.input_size
        spread = torch.zeros(size + self.num_biases, size + 1, dtype=torch.float64)
        spread[:size, :size] = torch.eye(size)
        spread[size:, size] = 1.0
        one = RidgeRegression(size, self.cross.shape[1])
        one.gram, one.cross = spread.T @ self.gram @ spread, spread.T @ self.cross
        return one

    def solve(self, ridge: float, prior: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Return weight (D_out, D_in) and biases (K, D_out), float64.

        Args:
            ridge: Penalty, relative to the power of the inputs.
            prior: Weight and biases (1 or K, D_out) to shrink to; None = zero weight and free biases.

        Raises:
            UserError: If no row has weight and there is no prior.
        """
        size, count = self.input_size, float(self.gram.diagonal()[self.input_size :].sum())
        start, penalty = torch.zeros_like(self.cross), torch.zeros(len(self.gram), dtype=torch.float64)
        if prior is not None:
            start = torch.cat([prior[0].T, prior[1].expand(self.num_biases, -1)])
        if count == 0:
            if prior is None:
                raise UserError("no caption to fit the bridge on; name a source with captions")
            return start[:size].T, start[size:]
        power = float(self.gram.diagonal()[:size].mean())
        penalty[:size] = ridge * power
        if prior is not None:
            penalty[:size] += PRIOR_ROWS * power / count
            penalty[size:] = PRIOR_ROWS_OF_BIAS
        # lstsq, as states with a dead direction make the system singular at ridge 0.
        change = torch.linalg.lstsq(
            self.gram + penalty.diag(), self.cross - self.gram @ start, driver="gelsd"
        ).solution
        solution = start + change
        return solution[:size].T, solution[size:]


class ClassRidgeRegression:
    """Ridge regression with a map per token class, biases per position.

    The prior of each class is the common map, which determines directions without data in a class with few
    rows, such as EOS. Widths are D_in and D_out, captions have L positions.
    """

    def __init__(self, input_size: int, output_size: int, num_positions: int):
        sizes = input_size, output_size, num_positions
        self.parts = [RidgeRegression(*sizes) for _ in range(NUM_CLASS_MAPS)]
        self.target_moment = torch.zeros(output_size, output_size, dtype=torch.float64)
        """Weighted sum of `y y^T`."""

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor, classes: Tensor) -> None:
        """Add captions (inputs (B, L, D_in), targets (B, L, D_out), weights >= 0 and classes (B, L))."""
        positions = torch.arange(classes.shape[1], device=classes.device).expand_as(classes)
        for index, part in enumerate(self.parts):
            chosen = (map_index(classes) == index) & (weights > 0)
            part.add(inputs[chosen], targets[chosen], weights[chosen], positions[chosen])
        counted = weights > 0
        y = targets[counted].cpu().double()
        self.target_moment += y.T @ (y * weights[counted].cpu().double()[:, None])

    def solve(self, ridge: float, *, by_class: bool) -> tuple[Tensor, Tensor]:
        """Return weights (num_maps, D_out, D_in) and biases (num_maps, num_positions, D_out), float64."""
        common = _total(self.parts).with_one_bias().solve(ridge)
        solutions = [part.solve(ridge, common) for part in self.parts] if by_class else [common]
        weights, biases = zip(*solutions, strict=True)
        return torch.stack(weights), torch.stack(biases)


def _total(parts: Sequence[RidgeRegression]) -> RidgeRegression:
    """Return the regression over all rows of several ones."""
    total = RidgeRegression(parts[0].input_size, parts[0].cross.shape[1], parts[0].num_biases)
    for part in parts:
        total.gram += part.gram
        total.cross += part.cross
    return total
