"""Guidance in a part of the steps alone (Kynkäänniemi et al. 2024, arXiv 2404.07724). Class C.

Where there is no guidance, only the prompts' half of a guided batch is run and stands for both halves: then
`negative + scale * (positive - negative)` is the prompts' prediction, at any scale, for any number of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from clipgraft.generation.engines.networks import Predict


def in_interval(
    predict: Predict,
    current_step: Callable[[], tuple[int, int]],
    start: float,
    stop: float,
    *,
    is_guided: Callable[[], bool],
) -> Predict:
    """Guide from the share `start` of the steps that are run to the share `stop`.

    Args:
        predict: Of a guided batch, whose first half has the negative prompt.
        current_step: Which step of how many is run.
        start: 0 = from the first step.
        stop: 1 = to the last step.
        is_guided: Whether there is a half with the negative prompt.
    """

    def guided(sample: Tensor, waves: Tensor, states: Tensor) -> Tensor:
        step, num_steps = current_step()
        if not is_guided() or round(start * num_steps) <= step < round(stop * num_steps):
            return predict(sample, waves, states)
        half = len(sample) // 2
        noise_pred = predict(sample[half:], waves, states[half:])
        return torch.cat([noise_pred, noise_pred])

    return guided
