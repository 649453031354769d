"""The bridge: CLIP's token states to the states that a base's U-Net was trained on, position by position.

Both towers share tokenizer, length and causal mask, so position i of one answers position i of the other.
B batch, L tokens, D_in CLIP's width, D_out the base's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOS, WORD, EOS, PADDING = range(4)
CLASS_NAMES = ("bos", "words", "eos", "padding")

FIRST_PADDING_WEIGHT, PADDING_DECAY, LEAST_PADDING_WEIGHT = 0.3, 0.9, 0.05
"""Some 60 of 77 positions are near-equal padding; at full weight they would drown the words (guesses)."""


class Bridge(nn.Module):
    """`y = W x + b + MLP(LayerNorm(x))`; W and b come in closed form, the MLP's last layer starts at zero.

    Args:
        input_size: D_in.
        output_size: D_out.
        hidden_size: Width of the MLP; 0 = the linear map alone.
    """

    def __init__(self, input_size: int, output_size: int, hidden_size: int = 0):
        super().__init__()
        self.linear = nn.Linear(input_size, output_size)
        self.residual: nn.Sequential | None = None
        if hidden_size:
            last = nn.Linear(hidden_size, output_size)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.residual = nn.Sequential(
                nn.LayerNorm(input_size), nn.Linear(input_size, hidden_size), nn.GELU(), last
            )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Map (B, L, D_in) to (B, L, D_out)."""
        bridged = self.linear(hidden_states)
        return bridged if self.residual is None else bridged + self.residual(hidden_states)

    @torch.no_grad()
    def set_linear(self, weight: Tensor, bias: Tensor) -> None:
        """Take a linear map, weight (D_out, D_in) and bias (D_out,)."""
        self.linear.weight.copy_(weight)
        self.linear.bias.copy_(bias)

    def set_identity(self) -> None:
        """Pass states through unchanged: for the base's own text tower.

        Raises:
            ValueError: If the widths differ.
        """
        size, output_size = self.linear.in_features, self.linear.out_features
        if size != output_size:
            raise ValueError(f"no identity between widths {size} and {output_size}")
        self.set_linear(torch.eye(size), torch.zeros(size))


def token_classes(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Class of each position: BOS, WORD, EOS (the first one) or PADDING.

    Args:
        input_ids: (B, L) int64, each row starting with BOS.
        eos_token_id: Ends and pads every row.

    Returns:
        (B, L) int64.
    """
    is_eos = input_ids == eos_token_id
    num_eos = is_eos.cumsum(1)
    classes = torch.full_like(input_ids, WORD)
    classes[num_eos == 1] = EOS
    classes[num_eos > 1] = PADDING
    classes[:, 0] = BOS
    return classes


def position_weights(classes: Tensor) -> Tensor:
    """Importance of each position: 0 for BOS (a constant), 1 for words and EOS, falling over the padding.

    Args:
        classes: (B, L) from `token_classes`.

    Returns:
        (B, L) float32.
    """
    is_padding = classes == PADDING
    place = is_padding.cumsum(1) - 1
    falling = (FIRST_PADDING_WEIGHT * PADDING_DECAY**place).clamp(min=LEAST_PADDING_WEIGHT)
    return torch.where(is_padding, falling, (classes != BOS).float())


class RidgeRegression:
    """Weighted ridge regression from a stream: normal equations in float64, memory independent of its length.

    Minimises `sum_i w_i |W x_i + b - y_i|^2 + ridge * s |W|^2`, with s the weighted power of x's entries,
    their mean, so that `ridge` has no unit.

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

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return weight (D_out, D_in) and bias (D_out,), float64.

        Raises:
            ValueError: If nothing of any weight was added.
        """
        if self.gram[-1, -1] == 0:
            raise ValueError("no caption to fit the bridge on; name a source with captions")
        size = len(self.gram) - 1
        penalty = torch.full(
            (size + 1,), ridge * float(self.gram.diagonal()[:-1].mean()), dtype=torch.float64
        )
        penalty[-1] = 0.0  # b is free
        # lstsq, because states with a dead direction make the system singular at ridge 0.
        solution = torch.linalg.lstsq(self.gram + penalty.diag(), self.cross, driver="gelsd").solution
        return solution[:-1].T, solution[-1]


@dataclass
class StateError:
    """Error of bridged token states against the teacher's by token class, from a stream."""

    squared: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    power: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    cosine: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    count: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))

    def add(self, student: Tensor, teacher: Tensor, classes: Tensor) -> None:
        """Add a batch: states (B, L, D) and classes (B, L)."""
        index = classes.flatten().cpu()

        def total(values: Tensor) -> Tensor:
            return torch.zeros(4, dtype=torch.float64).index_add(0, index, values.double().flatten().cpu())

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
