"""Which base a graft fits: a sum over the weights by which text enters its U-Net, whatever their precision.

A checksum changes with the dtype and with the file; here signed sums are compared within a tolerance. Half
precision moves those of a U-Net of Stable Diffusion's shape by 0.0002 of their length, bfloat16 by 0.002,
other random weights by more than all of it.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipgraft.errors import CheckpointError
from clipgraft.models.loading import DIFFUSERS_STEM, read_weights, weight_paths
from clipgraft.models.weight_files import FULL, HALF

Signs = Callable[[int, int], np.ndarray]

NUM_SUMS = 64
LARGEST_DIFFERENCE = 0.01
"""Of two sums, relative to their length, within which they count as one base's (guess, between the above)."""
LEVELS = (r"(down|input)_blocks\.", r"(mid|middle)_block\.", r"(up|output)_blocks\.")
CROSS_ATTENTION = ("attn2.to_k.weight", "attn2.to_v.weight")


def identity_sums(weights: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Return what a graft records of a base's weights; arguments and errors as of `cross_attention_sums`."""
    return {SUMS: cross_attention_sums(weights)}


def difference_from(recorded: Mapping[str, str | None], weights: Mapping[str, Tensor]) -> float | None:
    """Return how far weights are from those that a graft has recorded, 0 = equal.

    Args:
        recorded: From `identity_sums`, or by the rule of earlier versions, whose signs almost alternated.
        weights: As of `cross_attention_sums`.

    Returns:
        Distance of the sums, relative to the length of the recorded ones; None where none are recorded.
    """
    for name, signs in RULES.items():
        if expected := recorded.get(name):
            return sums_differ(expected, cross_attention_sums(weights, signs))
    return None


def mixed_signs(seed: int, size: int) -> np.ndarray:
    """Return signs (`size`,) of which no two are related: all bits of SplitMix64 (Steele et al. 2014).

    Args:
        seed: Number of the tensor that they are for, below 2^24.
        size: A multiple of 64, below 2^46.
    """
    state = np.uint64(seed << 40) + np.arange(1, size // 64 + 1, dtype=np.uint64)
    state *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    state ^= state >> np.uint64(31)
    bits = np.unpackbits(state.astype("<u8").view(np.uint8), bitorder="little")
    return 2.0 * bits - 1


def knuth_signs(_seed: int, size: int) -> np.ndarray:
    """Return signs (`size`,) of the first version, the same for all tensors: a bit of a product."""
    return 2.0 * (np.arange(size, dtype=np.int64) * 2654435761 >> 15 & 1) - 1


SUMS = "cross_attention_2"
RULES: dict[str, Signs] = {SUMS: mixed_signs, "cross_attention": knuth_signs}
"""Name in a graft's record -> signs of its sums, newest first."""


def cross_attention_sums(weights: Mapping[str, Tensor], signs: Signs = mixed_signs) -> str:
    """Sum the key and value projections of a U-Net's cross-attention, with signs, into 64 numbers.

    The squared distance of two such sums is, in the mean, that of the weights themselves (a count sketch). A
    weight's sign depends on its place in its tensor, and on which tensor of the U-Net that is.

    Args:
        weights: By name, of diffusers or LDM; others among them are let be. Order and prefix of names have no
            influence.
        signs: Of a tensor's number and its size.

    Returns:
        64 float32 numbers, hexadecimal.

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
    """Where a tensor lies in a U-Net: LDM numbers blocks otherwise than diffusers, in the same order."""
    level = next((level for level, found in enumerate(LEVELS) if re.search(found, name)), 0)
    return level, [int(number) for number in re.findall(r"\.(\d+)(?=\.)", name)], name[-len("k.weight") :]


def sums_differ(ours: str, theirs: str) -> float:
    """Distance of two sums of `cross_attention_sums`, relative to the length of the first."""
    a, b = (torch.frombuffer(bytearray.fromhex(text), dtype=torch.float32) for text in (ours, theirs))
    return float((a - b).norm() / a.norm())


def read_cross_attention(path: Path) -> dict[str, Tensor]:
    """Read the key and value projections alone (38 MB of Stable Diffusion v1.5 in half precision).

    Args:
        path: A base: a folder in diffusers layout, or one `.safetensors` file.

    Raises:
        CheckpointError: If there are none, or a file is damaged; names it.
    """
    paths = [path] if path.is_file() else weight_paths(path / "unet", DIFFUSERS_STEM, (HALF, FULL))
    return read_weights(paths, lambda name: name.endswith(CROSS_ATTENTION))
