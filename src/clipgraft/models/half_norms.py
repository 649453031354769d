"""Normalization of half-precision activations without a detour over float32."""

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def keep_norms_in_half(module: nn.Module) -> None:
    """Let all norms of a module give the dtype that they get.

    Autocast makes their input float32, and with it the activation after it: twice the memory traffic, of
    which a small U-Net's step on a GPU mostly consists. The kernels add up in float32 in either case.
    Weights stay float32.
    """
    for part in module.modules():
        if isinstance(part, nn.GroupNorm):
            part.forward = MethodType(_group_norm, part)  # type: ignore[method-assign]
        elif isinstance(part, nn.LayerNorm):
            part.forward = MethodType(_layer_norm, part)  # type: ignore[method-assign]


def _group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, norm.num_groups, *_affine(norm, x), norm.eps)


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, norm.normalized_shape, *_affine(norm, x), norm.eps)


def _affine(norm: nn.GroupNorm | nn.LayerNorm, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    weight, bias = (None if part is None else part.to(x.dtype) for part in (norm.weight, norm.bias))
    return weight, bias
