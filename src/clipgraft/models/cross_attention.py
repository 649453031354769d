"""What a U-Net reads of token states: the key and value maps of its cross-attention, without the U-Net.

Text enters a U-Net through these alone: of Stable Diffusion v1.5's 860 M weights, 19 M. W the states' width.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from clipgraft.errors import CheckpointError

SUFFIXES = (".attn2.to_k.weight", ".attn2.to_v.weight")
"""The same in diffusers' names and in LDM's."""


def read_key_value_maps(path: Path) -> list[Tensor]:
    """Read the cross-attention's key and value maps of a base, and nothing else of it.

    Args:
        path: A diffusers folder, or a single `.safetensors` file.

    Returns:
        float32 (width of the layer, W) each; two for each cross-attention.

    Raises:
        CheckpointError: If the file holds no such maps.
    """
    file = path if path.is_file() else next(iter(sorted((path / "unet").glob("*.safetensors"))), None)
    if file is None:
        raise CheckpointError(f"{path} is not a base: it has no unet/*.safetensors")
    with safe_open(file, framework="pt") as weights:
        names = sorted(name for name in weights.keys() if name.endswith(SUFFIXES))  # noqa: SIM118
        maps = [weights.get_tensor(name).float() for name in names]
    if not maps:
        raise CheckpointError(f"{file} has no cross-attention: no weight named *{SUFFIXES[0]}")
    return maps


def key_value_sum(maps: Sequence[Tensor]) -> str:
    """Name of a U-Net by its key and value maps: sha256 (hex), equal for float32, fp16 and single files.

    Args:
        maps: From `read_key_value_maps`.
    """
    # In half precision, in which a fp16 variant equals the float32 one; in order of content, as names differ.
    sums = sorted(hashlib.sha256(weights.half().numpy().tobytes()).hexdigest() for weights in maps)
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def key_value_root(maps: Sequence[Tensor], moment: Tensor) -> Tensor:
    """Return R with `|R e|^2` the error of keys and values that an error e of a token state makes.

    Each map counts by its error relative to its own power over the teacher's states, so that a layer of large
    weights does not drown the others; their mean is one quadratic form, thus one map W x W in place of
    all (for Stable Diffusion v1.5: 32 times less to compute).

    Args:
        maps: From `read_key_value_maps`.
        moment: Mean of `t t^T` over the teacher's states t, (W, W); its scale does not matter.

    Returns:
        float32 (W, W), with mean `|R t|^2` over the teacher's states proportional to 1.
    """
    moment = moment.double()
    form = torch.zeros_like(moment)
    for weights in maps:
        gram = weights.double().T @ weights.double()
        form += gram / (gram * moment).sum() / len(maps)
    values, vectors = torch.linalg.eigh(form)
    return (values.clamp(min=0).sqrt()[:, None] * vectors.T).float()
