"""Cross-attention's key and value maps: a base's identity and error metric.

Text enters a U-Net only here: 19 M of Stable Diffusion v1.5's 860 M weights. A graft identifies its base by
64 signed sums over them, compared within a tolerance, as a checksum changes with dtype and file. For a U-Net
of Stable Diffusion's shape float16 moves the sums by 0.0002 of their norm, bfloat16 by 0.002, other random
weights by more than 1. W is the embeds' width.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipgraft.errors import CheckpointError
from clipgraft.models.loading import DIFFUSERS_STEM, read_weights, weight_paths
from clipgraft.models.weights import FULL, HALF

Signs = Callable[[int, int], np.ndarray]

NUM_SUMS = 64
LARGEST_DIFFERENCE = 0.01
"""Largest relative distance between sums of the same base (a guess, between the above)."""
LEVELS = (r"(down|input)_blocks\.", r"(mid|middle)_block\.", r"(up|output)_blocks\.")
CROSS_ATTENTION = ("attn2.to_k.weight", "attn2.to_v.weight")


def read_cross_attention(path: Path) -> dict[str, Tensor]:
    """Read only the key and value maps of a folder or file.

    Raises:
        CheckpointError: If there are none, or a file is damaged; names it.
    """
    paths = [path] if path.is_file() else weight_paths(path / "unet", DIFFUSERS_STEM, (HALF, FULL))
    return read_weights(paths, lambda name: name.endswith(CROSS_ATTENTION))


def kv_metric_sqrt(maps: Iterable[Tensor], moment: Tensor) -> Tensor:
    """Return the square root R (W, W) float32 of the key and value metric.

    `|R e|^2` is the error in keys and values from an embed error e. Each map's error counts relative to its
    power over the teacher's embeds, so that no layer with large weights dominates. Their mean is a quadratic
    form: one map W x W replaces all (for Stable Diffusion v1.5, 1/32 of the computation).

    Args:
        maps: Key and value maps, (width of the layer, W) each.
        moment: Mean of `t t^T` over the teacher's embeds t, (W, W), up to a factor.
    """
    moment = moment.double()
    maps = list(maps)
    form = torch.zeros_like(moment)
    for weights in maps:
        gram = weights.double().T @ weights.double()
        form += gram / (gram * moment).sum() / len(maps)
    values, vectors = torch.linalg.eigh(form)
    return (values.clamp(min=0).sqrt()[:, None] * vectors.T).float()


def identity_sums(weights: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Return a graft's record of a base's weights; see `cross_attention_sums`."""
    return {SUMS: cross_attention_sums(weights)}


def difference_from(recorded: Mapping[str, str | None], weights: Mapping[str, Tensor]) -> float | None:
    """Return the relative distance of weights from recorded sums, if any."""
    for name, signs in RULES.items():
        if expected := recorded.get(name):
            return sums_differ(expected, cross_attention_sums(weights, signs))
    return None


def mixed_signs(seed: int, size: int) -> np.ndarray:
    """Return SplitMix64's bits (Steele et al. 2014) as signs (`size`, a multiple of 64)."""
    state = np.uint64(seed << 40) + np.arange(1, size // 64 + 1, dtype=np.uint64)
    state *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    bits = np.unpackbits(state.astype("<u8").view(np.uint8), bitorder="little")
    return 2.0 * bits - 1


def knuth_signs(_seed: int, size: int) -> np.ndarray:
    """Return the first version's signs (`size`,), equal for all tensors."""
    return 2.0 * (np.arange(size, dtype=np.int64) * 2654435761 >> 15 & 1) - 1


SUMS = "cross_attention_2"
RULES: dict[str, Signs] = {SUMS: mixed_signs, "cross_attention": knuth_signs}
"""Name in a graft's record -> signs of the sums, newest first."""


def cross_attention_sums(weights: Mapping[str, Tensor], signs: Signs = mixed_signs) -> str:
    """Sketch the key and value maps as 64 signed sums (float32, hexadecimal).

    A count sketch: the expected squared distance of two is that of the weights. A weight's sign depends on
    its tensor and its place there. Names are diffusers' or LDM's; other layers are ignored.

    Raises:
        CheckpointError: If there is no cross-attention.
    """
    total = np.zeros(NUM_SUMS)
    chosen = sorted((name for name in weights if name.endswith(CROSS_ATTENTION)), key=_place)
    if not chosen:
        raise CheckpointError("this U-Net has no cross-attention, so no text enters it; name another base")
    for number, name in enumerate(chosen):
        values = weights[name].detach().cpu().double().numpy().ravel()
        padded = np.pad(values, (0, -len(values) % NUM_SUMS))
        total += (padded * signs(number, len(padded))).reshape(-1, NUM_SUMS).sum(0)
    return total.astype("<f4").tobytes().hex()


def _place(name: str) -> tuple[int, list[int], str]:
    """Sort key of a tensor, equivalent for diffusers' and LDM's names."""
    level = next((level for level, found in enumerate(LEVELS) if re.search(found, name)), 0)
    return level, [int(number) for number in re.findall(r"\.(\d+)(?=\.)", name)], name[-len("k.weight") :]


def sums_differ(ours: str, theirs: str) -> float:
    """Return the distance of two sketches, relative to the first's norm."""
    a, b = (torch.frombuffer(bytearray.fromhex(text), dtype=torch.float32) for text in (ours, theirs))
    return float((a - b).norm() / a.norm())
