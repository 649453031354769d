"""Which base a graft fits: a sum over the weights by which text enters its U-Net, whatever their precision.

A checksum changes with the dtype and with the file; here signed sums are compared within a tolerance. Half
precision moves those of a U-Net of Stable Diffusion's shape by 0.0002 of their length, bfloat16 by 0.002,
other random weights by more than all of it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgraft.errors import CheckpointError
from clipgraft.models.loading import DIFFUSERS_STEM, read_weights, weight_paths
from clipgraft.models.weight_files import FULL, HALF

NUM_SUMS = 64
LARGEST_DIFFERENCE = 0.01
"""Of two sums, relative to their length, within which they count as one base's (guess, between the above)."""
CROSS_ATTENTION = ("attn2.to_k.weight", "attn2.to_v.weight")


def cross_attention_sums(weights: Mapping[str, Tensor]) -> str:
    """Sum the key and value projections of a U-Net's cross-attention, with signs, into 64 numbers.

    The squared distance of two such sums is, in the mean, that of the weights themselves (a count sketch).

    Args:
        weights: By name; others among them are let be. Order and prefix of names have no influence.

    Returns:
        64 float32 numbers, hexadecimal.

    Raises:
        CheckpointError: If there is no cross-attention.
    """
    total = torch.zeros(NUM_SUMS, dtype=torch.float64)
    chosen = [weight for name, weight in weights.items() if name.endswith(CROSS_ATTENTION)]
    if not chosen:
        raise CheckpointError("this U-Net has no cross-attention, so no text enters it; name another base")
    for weight in chosen:
        values = weight.detach().cpu().double().flatten()
        # Signs that depend on the place alone: bits of a multiplicative hash (Knuth's constant).
        signs = ((torch.arange(len(values)) * 2654435761 >> 15) & 1) * 2 - 1
        padded = F.pad(values * signs, (0, -len(values) % NUM_SUMS))
        total += padded.view(-1, NUM_SUMS).sum(0)
    return total.float().numpy().astype("<f4").tobytes().hex()


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
