"""The difference of two text encoders as a LoRA in kohya's names.

A LoRA changes linear layers alone: changes of embeddings, biases and layer norms are left out.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

PREFIX = "lora_te_text_model_"
"""Of a text encoder's layers, whose names in transformers before 5 begin with `text_model.`."""
TINY = 1e-30
"""In place of a size of 0: new biases may all be 0."""


class LinearDifference:
    """Singular vectors of the difference of each linear layer's weights.

    Args:
        before: The original text encoder.
        after: The changed one, of the same shape.
    """

    def __init__(self, before: CLIPTextModel, after: CLIPTextModel):
        self._before = before
        changed = linear_layers(after)
        self._parts = {
            name: torch.linalg.svd(
                (changed[name].weight - layer.weight).detach().float(), full_matrices=False
            )
            for name, layer in linear_layers(before).items()
        }

    @property
    def full_rank(self) -> int:
        """Rank at which no layer's difference is cut."""
        return max(len(values) for _, values, _ in self._parts.values())

    def lora(self, rank: int) -> dict[str, Tensor]:
        """Return the LoRA of a rank nearest to the difference.

        Returns:
            By kohya's names: `lora_down.weight` (R, in), `lora_up.weight` (out, R) and `alpha` = R, float32.
        """
        tensors = {}
        for name, (left, values, right) in self._parts.items():
            num = min(rank, len(values))
            root = values[:num].sqrt()
            tensors[f"{name}.lora_down.weight"] = (root[:, None] * right[:num]).contiguous()
            tensors[f"{name}.lora_up.weight"] = (left[:, :num] * root).contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(float(num))
        return tensors

    def applied(self, lora: Mapping[str, Tensor]) -> CLIPTextModel:
        """Return the original text encoder with a LoRA merged into it."""
        merged = copy.deepcopy(self._before)
        with torch.no_grad():
            for name, layer in linear_layers(merged).items():
                down, up = (lora[f"{name}.lora_{part}.weight"].float() for part in ("down", "up"))
                layer.weight += float(lora[f"{name}.alpha"]) / len(down) * (up @ down)
        return merged


def linear_layers(text_encoder: CLIPTextModel) -> dict[str, nn.Linear]:
    """Return a text encoder's linear layers by kohya's names."""
    return {
        PREFIX + name.removeprefix("text_model.").replace(".", "_"): module
        for name, module in text_encoder.named_modules()
        if isinstance(module, nn.Linear)
    }


def changed_outside(before: CLIPTextModel, after: CLIPTextModel) -> dict[str, float]:
    """Return the relative change of weights that no LoRA holds.

    Returns:
        |after - before| / |before| by kind: embeddings, layer norms, biases.
    """
    changed = dict(after.named_parameters())
    change: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for name, weight in before.named_parameters():
        if kind := _kind(name):
            change[kind] += float((changed[name] - weight).detach().square().sum())
            size[kind] += float(weight.detach().square().sum())
    return {kind: (change[kind] / max(size[kind], TINY)) ** 0.5 for kind in size}


def _kind(name: str) -> str:
    if "embedding" in name:
        return "embeddings"
    if "norm" in name:
        return "layer norms"
    return "biases" if name.endswith("bias") else ""
