"""Prompt fidelity: the share of what a prompt names that the probe finds in the picture.

The probe reads pictures of flatland's 128 pixels; others are cut to them. Each picture is a sample; one is
enough.
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from clipgraft.flatland import ATTRIBUTES, Scene


def fidelity_scores(
    read: Tensor, scenes: Sequence[Scene], *, named: Sequence[Collection[str]] | None = None
) -> dict[str, np.ndarray]:
    """Compare what was read from pictures with what their prompts name.

    Args:
        read: (N, 5) int64, what `read_attributes` gives of the N pictures; -1 where there is no picture.
        scenes: What the N prompts describe; a scene without a subject names place and time alone.
        named: Of each prompt the attributes that count; None = all that its scene has.

    Returns:
        Metric -> (N,) float64: `prompt_fidelity`, the share of named attributes found; of the same
        `..._all_at_once`, 1 where all were; `..._<attribute>`, 1 where it was found, NaN where none is named.
        All are NaN where there is no picture. The probe errs too: see what it reads in `real_pictures`.
    """
    labels = torch.tensor([scene.labels for scene in scenes])
    is_named = torch.tensor([[bool(getattr(scene, name)) for name in ATTRIBUTES] for scene in scenes])
    if named is not None:
        is_named &= torch.tensor([[name in counted for name in ATTRIBUTES] for counted in named])
    is_asked = is_named & (read >= 0)  # (N, 5)
    found = torch.where(is_asked, (read == labels).double(), torch.nan)
    shares = found.nansum(1) / is_asked.sum(1)  # 0 / 0 is NaN
    all_at_once = torch.where(is_asked.any(1), (shares == 1).double(), torch.nan)
    scores = {"prompt_fidelity": shares, "prompt_fidelity_all_at_once": all_at_once}
    scores |= {f"prompt_fidelity_{name}": found[:, place] for place, name in enumerate(ATTRIBUTES)}
    return {name: values.numpy() for name, values in scores.items()}
