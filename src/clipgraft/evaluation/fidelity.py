"""Prompt fidelity: the share of what a prompt names that the probe finds in the picture."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipgraft.data.flatland import ATTRIBUTES, Scene

NUM_RESAMPLES = 2000
RESAMPLING_SEED = 0


def prompt_fidelity(
    read: Tensor, scenes: Sequence[Scene], *, named: Sequence[Collection[str]] | None = None
) -> dict[str, Any]:
    """Compare what was read from pictures with what their prompts name.

    Args:
        read: (N, 5) int64, what `read_attributes` gives of the N pictures.
        scenes: What the N prompts describe; a scene without a subject names place and time alone.
        named: Of each prompt the attributes that count; None = all that its scene has.

    Returns:
        `mean`: share of named attributes found, as the mean over prompts of each prompt's own share;
        `all_at_once`: share of prompts of which all were found; `interval`: bootstrap 95 % interval of the
        mean over prompts; `by_attribute`: share for each; `held_out` and `seen`: the mean over prompts of
        held-out combinations, and over the others (None where there are none); `num_prompts`.
    """
    labels = torch.tensor([scene.labels for scene in scenes])
    is_named = torch.tensor([[bool(getattr(scene, name)) for name in ATTRIBUTES] for scene in scenes])
    if named is not None:
        is_named &= torch.tensor([[name in counted for name in ATTRIBUTES] for counted in named])
    is_found = (read == labels) & is_named  # (N, 5)
    shares = (is_found.sum(1) / is_named.sum(1)).numpy()  # (N,)
    is_held_out = np.array([scene.is_held_out for scene in scenes])
    return {
        "mean": float(shares.mean()),
        "interval": bootstrap_interval(shares),
        "all_at_once": float((shares == 1).mean()),
        "by_attribute": {
            name: float(is_found[is_named[:, column], column].double().mean())
            for column, name in enumerate(ATTRIBUTES)
            if is_named[:, column].any()
        },
        "held_out": float(shares[is_held_out].mean()) if is_held_out.any() else None,
        "seen": float(shares[~is_held_out].mean()) if not is_held_out.all() else None,
        "num_prompts": len(scenes),
    }


def bootstrap_interval(values: np.ndarray) -> list[float]:
    """Return the 95 % percentile interval of the mean of values (N,), from 2,000 resamples of fixed seed."""
    random = np.random.default_rng(RESAMPLING_SEED)
    chosen = random.integers(0, len(values), size=(NUM_RESAMPLES, len(values)))
    return [float(bound) for bound in np.quantile(values[chosen].mean(1), (0.025, 0.975))]
