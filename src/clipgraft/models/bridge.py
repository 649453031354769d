"""The bridge: CLIP's token states to the states that a base's U-Net was trained on, position by position.

Both towers share tokenizer, length and causal mask, so position i of one answers position i of the other.
B batch, L tokens, D_in CLIP's width, D_out the base's.
"""

from typing import Any

import torch
from torch import Tensor, nn

BOS, WORD, EOS, PADDING = range(4)
CLASS_NAMES = ("bos", "words", "eos", "padding")
NUM_CLASS_MAPS = 3
"""Words, EOS, padding; BOS is a constant and needs none."""

FIRST_PADDING_WEIGHT, PADDING_DECAY, LEAST_PADDING_WEIGHT = 0.3, 0.9, 0.05
"""Some 60 of 77 positions are near-equal padding; at full weight they would drown the words (guesses)."""
HEAD_SIZE = 64
"""Of the attention blocks, as in CLIP."""


class Bridge(nn.Module):
    """`y = W_c x + b_c + MLP(LayerNorm(z))`; W and b in closed form, the MLP's last layer zero at first.

    c is the token's class, and b may differ from position to position: what towers say of padding is above
    all where it stands. z is x, or what causal attention blocks make of it.

    Args:
        input_size: D_in.
        output_size: D_out.
        hidden_size: Width of the MLP; 0 = the linear map alone.
        num_maps: 1 = one linear map for all positions, `NUM_CLASS_MAPS` = one for each token class.
        num_positions: Positions that have a b of their own; 1 = all have the same.
        num_attention_blocks: Before the MLP; a position then sees those before it, as in both towers.
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
        self.attention = nn.ModuleList(_attention_block(input_size) for _ in range(num_attention_blocks))
        self.residual: nn.Sequential | None = None
        if hidden_size:
            last = nn.Linear(hidden_size, output_size)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.residual = nn.Sequential(
                nn.LayerNorm(input_size), nn.Linear(input_size, hidden_size), nn.GELU(), last
            )

    def forward(self, hidden_states: Tensor, classes: Tensor) -> Tensor:
        """Map (B, L, D_in) to (B, L, D_out).

        Args:
            hidden_states: Of CLIP's text tower.
            classes: (B, L) from `token_classes`.
        """
        bridged = self._linear(hidden_states, classes)
        if self.residual is None:
            return bridged
        mask = nn.Transformer.generate_square_subsequent_mask(
            hidden_states.shape[1], device=hidden_states.device, dtype=hidden_states.dtype
        )
        for block in self.attention:
            hidden_states = block(hidden_states, src_mask=mask, is_causal=True)
        return bridged + self.residual(hidden_states)

    @torch.no_grad()
    def set_linear(self, weights: Tensor, biases: Tensor) -> None:
        """Take linear maps: weights (num_maps, D_out, D_in) and biases (num_maps, num_positions, D_out)."""
        self.linear.weight.copy_(weights.flatten(0, 1))
        self.bias.copy_(biases)

    def set_identity(self) -> None:
        """Pass states through unchanged: for the base's own text tower.

        Raises:
            ValueError: If the widths differ.
        """
        size, output_size = self.config["input_size"], self.config["output_size"]
        if size != output_size:
            raise ValueError(f"no identity between widths {size} and {output_size}")
        num_maps = self.config["num_maps"]
        self.set_linear(torch.eye(size).expand(num_maps, -1, -1), torch.zeros_like(self.bias))

    def _linear(self, hidden_states: Tensor, classes: Tensor) -> Tensor:
        """Of each position the map of its class; computing all and choosing costs less than sorting."""
        by_map = self.linear(hidden_states).unflatten(-1, (self.config["num_maps"], -1))
        by_map = by_map + self.bias[:, : hidden_states.shape[1]].transpose(0, 1)  # (B, L, num_maps, D_out)
        if self.config["num_maps"] == 1:
            return by_map.squeeze(2)
        index = map_index(classes)[..., None, None].expand(-1, -1, 1, by_map.shape[-1])
        return by_map.gather(2, index).squeeze(2)


def map_index(classes: Tensor) -> Tensor:
    """Number of each position's map where every class has its own: words 0, EOS 1, padding 2; BOS takes 0."""
    return (classes - WORD).clamp(min=0)


def token_classes(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """Class of each position: BOS, WORD, EOS (the first one) or PADDING.

    Args:
        input_ids: (B, L) int64, each row starting with BOS.
        eos_token_id: Ends and pads every row.

    Returns:
        (B, L) int64.
    """
    is_eos = input_ids == eos_token_id
    num_eos = is_eos.cumsum(1)
    classes = torch.full_like(input_ids, WORD)
    classes[num_eos == 1] = EOS
    classes[num_eos > 1] = PADDING
    classes[:, 0] = BOS
    return classes


def position_weights(classes: Tensor) -> Tensor:
    """Importance of each position: 0 for BOS (a constant), 1 for words and EOS, falling over the padding.

    Args:
        classes: (B, L) from `token_classes`.

    Returns:
        (B, L) float32.
    """
    is_padding = classes == PADDING
    place = is_padding.cumsum(1) - 1
    falling = (FIRST_PADDING_WEIGHT * PADDING_DECAY**place).clamp(min=LEAST_PADDING_WEIGHT)
    return torch.where(is_padding, falling, (classes != BOS).float())


def _attention_block(size: int) -> nn.TransformerEncoderLayer:
    """A block as in CLIP's towers: norms first, GELU, four times the width between."""
    return nn.TransformerEncoderLayer(
        size,
        max(1, size // HEAD_SIZE),
        dim_feedforward=4 * size,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
