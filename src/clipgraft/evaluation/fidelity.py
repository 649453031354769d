"""Prompt fidelity: the share of what a prompt names that the probe finds in the picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipgraft.data.flatland import ATTRIBUTES, Scene
from clipgraft.evaluation.bootstrap import bootstrap_interval


def found_attributes(read: Tensor, scenes: Sequence[Scene]) -> np.ndarray:
    """Compare what was read from pictures with what their prompts name, attribute by attribute.

    Args:
        read: (N, 5) int64, what `read_attributes` gives of the N pictures.
        scenes: What the N prompts describe; a scene without a subject names place and time alone.

    Returns:
        (N, 5) float64, in the order of ATTRIBUTES: 1 where it was found, 0 where not, NaN where none is named.
    """
    labels = torch.tensor([scene.labels for scene in scenes])
    is_named = torch.tensor([[bool(getattr(scene, name)) for name in ATTRIBUTES] for scene in scenes])
    return torch.where(is_named, (read == labels).double(), torch.nan).numpy()


def prompt_fidelity(read: Tensor, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Compare what was read from pictures with what their prompts name.

    Args:
        read: (N, 5) int64, what `read_attributes` gives of the N pictures.
        scenes: What the N prompts describe; a scene without a subject names place and time alone.

    Returns:
        `mean`: share of named attributes found, as the mean over prompts of each prompt's own share;
        `all_at_once`: share of prompts of which all were found; `interval`: bootstrap 95 % interval of the
        mean over prompts (None for one prompt); `by_attribute`: share for each; `held_out` and `seen`: the mean over prompts of
        held-out combinations, and over the others (None where there are none); `num_prompts`.
    """
    found = found_attributes(read, scenes)  # (N, 5)
    shares = np.nanmean(found, 1)  # (N,)
    is_held_out = np.array([scene.is_held_out for scene in scenes])
    return {
        "mean": float(shares.mean()),
        "interval": bootstrap_interval(shares),
        "all_at_once": float((shares == 1).mean()),
        "by_attribute": {
            name: float(np.nanmean(found[:, column]))
            for column, name in enumerate(ATTRIBUTES)
            if not np.isnan(found[:, column]).all()
        },
        "held_out": float(shares[is_held_out].mean()) if is_held_out.any() else None,
        "seen": float(shares[~is_held_out].mean()) if not is_held_out.all() else None,
        "num_prompts": len(scenes),
    }
