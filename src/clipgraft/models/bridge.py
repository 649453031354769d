"""The bridge from CLIP's hidden states to a base's prompt embeds.

Positions correspond, as both towers share tokenizer, length and causal mask.
B batch, L tokens, D_in CLIP's width, D_out the base's.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipgraft.errors import UserError
from clipgraft.models.attention import attend

BOS, WORD, EOS, PADDING = range(4)
CLASS_NAMES = ("bos", "words", "eos", "padding")
NUM_CLASS_MAPS = 3
"""Words, EOS, padding; BOS is constant."""

PADDING_WEIGHT = 8
"""Weight of all padding of a caption, in words (a guess). At full weight some 60 of 77 positions would drown
the words; without padding, information is lost: on flatland, with the teacher's words and the empty prompt's
padding, place and time of day were right in four of five images."""
HEAD_SIZE = 32
"""Of the attention blocks; half of CLIP's, for more heads (a guess)."""


class Bridge(nn.Module):
    """A linear map per token class plus an MLP: `y = W_c x + b_c + MLP(LayerNorm(z))`.

    c is the token class; W and b are fitted in closed form, and the MLP's last layer starts at zero. b may
    depend on the position, which determines most of an embed of padding. z is x, or the output of causal
    attention blocks, in which padding is seen only by itself, so that any part of it may be left out.

    Args:
        hidden_size: Width of the MLP; 0 = the linear map alone.
        num_maps: 1, or `NUM_CLASS_MAPS` for one linear map per token class.
        num_positions: Positions with their own b and position embedding; 1 = all share one.
        num_attention_blocks: Causal attention blocks before the MLP.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int = 0,
        *,
        num_maps: int = 1,
        num_positions: int = 1,
        num_attention_blocks: int = 0,
    ):
        super().__init__()
        assert num_maps in (1, NUM_CLASS_MAPS), num_maps
        assert hidden_size or not num_attention_blocks, "attention blocks come before an MLP"
        self.config: dict[str, Any] = {
            "input_size": input_size,
            "output_size": output_size,
            "hidden_size": hidden_size,
            "num_maps": num_maps,
            "num_positions": num_positions,
            "num_attention_blocks": num_attention_blocks,
        }
        self.linear = nn.Linear(input_size, num_maps * output_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_maps, num_positions, output_size))
        self.position_embedding: nn.Parameter | None = None
        if num_attention_blocks:
            self.position_embedding = nn.Parameter(torch.zeros(num_positions, input_size))
        self.attention = nn.ModuleList(AttentionBlock(input_size) for _ in range(num_attention_blocks))
        self.residual: nn.Sequential | None = None
        if hidden_size:
            last = nn.Linear(hidden_size, output_size)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.residual = nn.Sequential(
                nn.LayerNorm(input_size), nn.Linear(input_size, hidden_size), nn.GELU(), last
            )

    def forward(self, hidden_states: Tensor, classes: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map hidden states (B, L, D_in) to prompt embeds (B, L, D_out).

        classes (B, L) are from `token_classes`; positions (B, L) int64 default to 0, 1, 2, ...
        """
        if positions is None:
            positions = torch.arange(classes.shape[1], device=classes.device).expand_as(classes)
        bridged = self._linear(hidden_states, classes, positions)
        if self.residual is None:
            return bridged
        if self.position_embedding is not None:
            hidden_states = hidden_states + F.embedding(self._place(positions), self.position_embedding)
            seen = visible_positions(classes, positions)
            for block in self.attention:
                hidden_states = block(hidden_states, seen)
        return bridged + self.residual(hidden_states)

    @torch.no_grad()
    def set_linear(self, weights: Tensor, biases: Tensor) -> None:
        """Set the linear maps: weights (num_maps, D_out, D_in), biases (num_maps, num_positions, D_out)."""
        self.linear.weight.copy_(weights.flatten(0, 1))
        self.bias.copy_(biases)

    def set_identity(self) -> None:
        """Become the identity, for the base's own text tower.

        Raises:
            UserError: If the widths differ.
        """
        size, output_size = self.config["input_size"], self.config["output_size"]
        if size != output_size:
            raise UserError(f"no identity between widths {size} and {output_size}")
        num_maps = self.config["num_maps"]
        self.set_linear(torch.eye(size).expand(num_maps, -1, -1), torch.zeros_like(self.bias))

    def _linear(self, hidden_states: Tensor, classes: Tensor, positions: Tensor) -> Tensor:
        num_maps, _, size = self.bias.shape
        index = map_index(classes) if num_maps > 1 else torch.zeros_like(classes)
        # Computing all maps and choosing costs less than sorting positions by class.
        by_map = self.linear(hidden_states).unflatten(-1, (num_maps, size))  # (B, L, num_maps, D_out)
        mapped = by_map.gather(2, index[..., None, None].expand(-1, -1, 1, size)).squeeze(2)
        # Not by indexing, whose gradient is summed in a random order: runs would not be reproducible.
        row = index * self.config["num_positions"] + self._place(positions)
        return mapped + F.embedding(row, self.bias.flatten(0, 1))

    def _place(self, positions: Tensor) -> Tensor:
        """Return the index of each position's bias and embedding."""
        return positions if self.config["num_positions"] > 1 else torch.zeros_like(positions)


def map_index(classes: Tensor) -> Tensor:
    """Return class map indices: words and BOS 0, EOS 1, padding 2."""
    return (classes - WORD).clamp(min=0)


def token_classes(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Classify the positions (B, L) int64 of ids: BOS, WORD, EOS (the first), PADDING."""
    is_eos = input_ids == eos_token_id
    num_eos = is_eos.cumsum(1)
    classes = torch.full_like(input_ids, WORD)
    classes[num_eos == 1] = EOS
    classes[num_eos > 1] = PADDING
    classes[:, 0] = BOS
    return classes


def position_weights(classes: Tensor) -> Tensor:
    """Return weights (B, L) float32: BOS 0, words and EOS 1, padding less.

    All padding of a caption together weighs `PADDING_WEIGHT`, each position at most 1.
    """
    is_padding = classes == PADDING
    each = (PADDING_WEIGHT / is_padding.sum(1, keepdim=True)).clamp(max=1.0)
    return torch.where(is_padding, each, (classes != BOS).float())


def visible_positions(classes: Tensor, positions: Tensor) -> Tensor:
    """Return the attention mask (B, 1, L, L) of classes and positions (B, L).

    Each position sees itself and all earlier non-padding.
    """
    is_before = positions[:, None, :] < positions[:, :, None]
    itself = torch.eye(classes.shape[1], dtype=torch.bool, device=classes.device)
    return (is_before & (classes != PADDING)[:, None, :] | itself)[:, None]


class AttentionBlock(nn.Module):
    """Pre-norm transformer block of width `size`, with GELU and a 4x MLP."""

    def __init__(self, size: int):
        super().__init__()
        self.num_heads = max(1, size // HEAD_SIZE)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query_key_value, self.output = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mlp = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))

    def forward(self, hidden_states: Tensor, visible: Tensor) -> Tensor:
        """Transform hidden states (B, L, D) with the attention mask `visible` (B, 1, L, L)."""
        heads = self.query_key_value(self.attention_norm(hidden_states)).unflatten(
            -1, (3, self.num_heads, -1)
        )
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, L, D / heads)
        mixed = attend(query, key, value, visible)
        hidden_states = hidden_states + self.output(mixed.transpose(1, 2).flatten(2))
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))
