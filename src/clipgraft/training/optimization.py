"""What the loop steps with: parameter groups, learning rate as a function of the step, moving averages."""

import math
from collections.abc import Iterable

import torch
from torch import nn


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Split a module's trainable parameters into those that AdamW decays and those that it must not.

    Vectors and scalars (biases, norms, CLIP's `logit_scale`) are not decayed: pulling `logit_scale` to zero
    would raise the temperature in silence.

    Args:
        module: Its parameters with `requires_grad` are taken.
        weight_decay: Decay of the matrices.

    Returns:
        Two groups for `torch.optim.AdamW`; an empty one is left out.

    Raises:
        ValueError: If nothing in the module can be trained.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen")
    return groups


def learning_rate_factor(step: int, schedule: str, warmup_steps: int, num_steps: int) -> float:
    """Share of the peak learning rate at a step, so that a resumed run needs no schedule state.

    Args:
        step: Optimizer steps already made, 0-based.
        schedule: "constant", "linear" or "cosine"; the last two reach 0 at `num_steps`.
        warmup_steps: Steps of linear rise; the first step has 1 / warmup_steps.
        num_steps: Optimizer steps of the whole run.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    assert schedule == "constant", schedule
    return 1.0


class MovingAverage:
    """Exponential moving average of parameters: `average += (1 - decay) * (value - average)` after each step.

    The decay rises from 0 as (1 + n) / (10 + n), so that the random weights of the start leave no trace
    (as in diffusers' `EMAModel`).
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters' present values."""
        done = self.num_updates
        decay = min(self.decay, (1 + done) / (10 + done)) if done else 0.0
        self.num_updates += 1
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Put the averages in the parameters' place."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.copy_(average)
