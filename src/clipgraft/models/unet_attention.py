"""Attention of a U-Net in training on a CPU, in bfloat16.

torch's fused kernel is slow there, above all backward: for the 4,096 positions of an image of 512 x 512 it
takes 2.4 times as long.
"""

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

MAX_SCORES = 2**22
"""Scores of all heads held at once, 8 MB: four times as many leave the processor's cache, and a quarter make
too few rows for its matrix products. Both take half as long again or more."""


class UNetAttention(AttnProcessor2_0):
    """diffusers' default attention, faster where a CPU computes in bfloat16."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Attend from hidden_states (B, L, W) to encoder_hidden_states (B, S, V)."""
        is_slow = hidden_states.device.type == "cpu" and hidden_states.dtype == torch.bfloat16
        if not is_slow or not _is_plain(attn) or attention_mask is not None or hidden_states.ndim != 3:
            return super().__call__(
                attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs
            )
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        inputs = attn.to_q(hidden_states), attn.to_k(states), attn.to_v(states)
        query, key, value = (_heads_apart(each, attn.heads) for each in inputs)
        attended = attend_by_rows(query, key, value).unflatten(0, (-1, attn.heads))  # (B, heads, L, width)
        result: Tensor = attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
        return result


def use_fast_attention(unet: UNet2DConditionModel) -> None:
    """Replace diffusers' default attention of a U-Net; leave any other."""
    processors = {
        name: UNetAttention() if type(each) is AttnProcessor2_0 else each
        for name, each in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)


def attend_by_rows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return softmax(query key^T / sqrt(width)) value in constant memory.

    Args:
        query: (N, L, width), heads of all images.
        key: (N, S, width).
        value: As `key`.
    """
    attended: Tensor = _ByRows.apply(query, key, value)
    return attended


class _ByRows(torch.autograd.Function):
    """Attention that computes its probabilities again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        attended = torch.empty_like(query)
        for rows in _blocks(query, key):
            attended[:, rows] = _probabilities(query[:, rows], key) @ value
        return attended

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value = ctx.saved_tensors
        [of_attended] = gradients
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(each, dtype=torch.float32) for each in (key, value))
        for rows in _blocks(query, key):
            probabilities = _probabilities(query[:, rows], key)
            of_value += (of_attended[:, rows].mT @ probabilities).mT
            of_probabilities = of_attended[:, rows] @ value.mT
            of_scores = torch._softmax_backward_data(of_probabilities, probabilities, -1, query.dtype)
            of_query[:, rows] = of_scores @ key
            of_key += (query[:, rows].mT @ of_scores).mT
        scale = query.shape[-1] ** -0.5
        return of_query * scale, (of_key * scale).to(key.dtype), of_value.to(value.dtype)


def _blocks(query: Tensor, key: Tensor) -> Iterator[slice]:
    """Yield slices of the queries with MAX_SCORES scores at most."""
    size = max(1, MAX_SCORES // (len(key) * key.shape[1]))
    for start in range(0, query.shape[1], size):
        yield slice(start, start + size)


def _probabilities(query: Tensor, key: Tensor) -> Tensor:
    return torch.softmax((query * query.shape[-1] ** -0.5) @ key.mT, -1)


def _heads_apart(states: Tensor, num_heads: int) -> Tensor:
    """Return states (B, L, W) as (B * heads, L, W / heads)."""
    return states.unflatten(-1, (num_heads, -1)).transpose(1, 2).flatten(0, 1)


def _is_plain(attn: Attention) -> bool:
    """Whether an attention is its four maps alone, as in Stable Diffusion."""
    extras = (attn.spatial_norm, attn.group_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    return (
        not any(extra is not None for extra in extras)
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )
