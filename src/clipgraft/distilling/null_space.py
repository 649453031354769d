"""Updates of a text encoder that keep one prompt's states.

A weight matrix W meets the prompt only as W x, for the inputs x that the prompt's positions give it. An
update D with D x = 0 for each of them changes none of these products and so, layer by layer, none of the
prompt's states. 77 positions leave 691 of Stable Diffusion's 768 dimensions free, 2,995 of its MLP's 3,072.

Source:
    Saha et al. 2021, "Gradient Projection Memory for Continual Learning".
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipgraft.models.clip import text_hidden_states

SMALLEST_SHARE = 1e-6
"""Smallest singular value of the inputs that counts, as a share of the largest: float32's rounding."""
TOKEN_TABLE = "embeddings.token_embedding.weight"
LORA_INPUT, LORA_OUTPUT = ".lora_A.default.weight", ".lora_B.default.weight"
"""Ends of the names of peft's low-rank factors: update = output x input."""


class Constraint(NamedTuple):
    """A weight and the directions in which it must not change."""

    weight: nn.Parameter
    start: Tensor | None
    """Of `weight`'s shape (out, in); None = zero, for the input side of a low-rank update."""
    basis: Tensor
    """Orthonormal, (in, rank)."""


class NullSpace:
    """The updates of an encoder's weights that keep a prompt's states.

    Biases, norms, positions and the prompt's own tokens are frozen, as are layers no wider than the prompt is
    long, where it may take every direction.

    Args:
        encoder: Trained where its parameters have gradients; its weights may have low-rank updates.
        start: The encoder before training, on the same device.
        input_ids: The prompt, (1, L) int64.
    """

    def __init__(self, encoder: CLIPTextModel, start: CLIPTextModel, input_ids: Tensor):
        weights = dict(start.named_parameters())
        found = {name: row_basis(rows) for name, rows in linear_inputs(start, input_ids).items()}
        bases = {name: basis for name, basis in found.items() if basis.shape[1] < basis.shape[0]}
        self.constraints: list[Constraint] = []
        self.token_ids = input_ids.unique()
        self.table: nn.Parameter | None = None
        self.start_table = weights[TOKEN_TABLE]
        for name, parameter in encoder.named_parameters():
            layer = name.removesuffix(LORA_INPUT).removesuffix(LORA_OUTPUT).removesuffix(".weight")
            if not parameter.requires_grad:
                continue
            if name == TOKEN_TABLE:
                self.table = parameter
            elif layer not in bases:
                parameter.requires_grad_(False)
            elif not name.endswith(LORA_OUTPUT):
                self.constraints.append(Constraint(parameter, weights.get(name), bases[layer]))

    @torch.no_grad()
    def project(self) -> None:
        """Undo, in place, what would change the prompt's states."""
        for weight, start, basis in self.constraints:
            update = weight if start is None else weight - start
            weight.sub_((update @ basis) @ basis.T)
        if self.table is not None:
            self.table[self.token_ids] = self.start_table[self.token_ids]


@torch.no_grad()
def linear_inputs(encoder: CLIPTextModel, input_ids: Tensor) -> dict[str, Tensor]:
    """Return linear layers' inputs (L, in) for one prompt (1, L), by name."""
    names: dict[nn.Module, str] = {
        module: name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)
    }
    found: dict[str, Tensor] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        found[names[module]] = inputs[0][0]

    handles = [module.register_forward_hook(keep) for module in names]
    try:
        text_hidden_states(encoder, input_ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


def row_basis(rows: Tensor) -> Tensor:
    """Return an orthonormal basis (in, rank) of the space of some rows (L, in)."""
    # Float64 on the CPU, as Apple's GPUs have none.
    _, values, directions = torch.linalg.svd(rows.cpu().double(), full_matrices=False)
    return directions[values > SMALLEST_SHARE * values[0]].T.to(rows)
