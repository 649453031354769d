"""Attention in float32 where a CPU computes in bfloat16.

torch's fused CPU kernel has no fast path for bfloat16: over CLIP's 50 patches or 77 tokens, forward and
backward take up to three times as long as in float32 and round more (benchmarks/bench_training.py).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

ATTENTION = "clipgraft_sdpa"
"""Its `attn_implementation` in transformers."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return softmax(query key^T / sqrt(width)) value, in the query's dtype.

    query (B, heads, L, width), key and value (B, heads, S, width); the mask is true for visible keys and
    broadcasts to (B, heads, L, S).
    """
    with torch.autocast(query.device.type, enabled=False):
        attended = F.scaled_dot_product_attention(
            _widened(query), _widened(key), _widened(value), attn_mask=mask
        )
    return attended.to(query.dtype)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' interface: heads first in, positions first out."""
    with torch.autocast(query.device.type, enabled=False):
        attended, _ = sdpa_attention_forward(
            module, _widened(query), _widened(key), _widened(value), attention_mask, **kwargs
        )
    return attended.to(query.dtype), None


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16 else tensor


AttentionInterface.register(ATTENTION, _forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
