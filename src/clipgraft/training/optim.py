"""Parameter groups of the optimizer, and the learning rate as a function of the step."""

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from torch import nn

from clipgraft.errors import UserError
from clipgraft.settings import OptimConfig

DECAYED_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
"""Whose `weight` AdamW decays, CLIP's token and position tables included (as in open_clip); nothing else."""


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    learning_rate_scales: Mapping[str, float] = MappingProxyType({}),
) -> list[dict]:
    """Split a module's trainable parameters by whether AdamW decays them, and by learning rate.

    Decayed are the weights of `DECAYED_LAYERS`. What a parameter is decides, not its rank: the bridge keeps
    biases in a matrix. Pulling `logit_scale` to zero would raise the temperature in silence.

    Args:
        module: Its parameters with `requires_grad` are taken.
        weight_decay: Decay of those weights.
        layer_decay: Factor on the learning rate from each layer to the one below it.
        learning_rate_scales: Further factors, by the beginning of parameters' names.

    Returns:
        Groups for `torch.optim.AdamW`, each with its `lr_scale`; the decayed ones first.

    Raises:
        ValueError: If nothing in the module can be trained.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise UserError("nothing to train: every parameter is frozen")
    scales = layer_scales([name for name, _ in module.named_parameters()], layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    layers = {name for name, child in module.named_modules() if isinstance(child, DECAYED_LAYERS)}
    decayed = {f"{name}.weight".removeprefix(".") for name in layers}
    for name, parameter in sorted(named, key=lambda item: item[0] not in decayed):
        decay = weight_decay if name in decayed else 0.0
        factors = [scale for prefix, scale in learning_rate_scales.items() if name.startswith(prefix)]
        groups.setdefault((decay, math.prod([scales[name], *factors])), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]


def layer_scales(names: Iterable[str], layer_decay: float) -> dict[str, float]:
    """Learning rate of each parameter as a share of the peak, falling from a tower's head to its embeddings.

    Args:
        names: Of parameters; a tower's layers are named `<tower>.encoder.layers.<index>`.
        layer_decay: The top layer's share; one below it has its square, and so on.

    Source:
        Clark et al. 2020 (ELECTRA), with BEiT's numbering: embeddings 0, layers from 1, head one above.
    """
    names = list(names)
    found = {name: re.match(r"(.+)\.encoder\.layers\.(\d+)\.", name) for name in names}
    num_layers: dict[str, int] = {}
    for match in filter(None, found.values()):
        num_layers[match[1]] = max(num_layers.get(match[1], 0), int(match[2]) + 1)

    def depth_below_head(name: str) -> int:
        match = found[name]
        if match:
            return num_layers[match[1]] - int(match[2])
        is_input = ".embeddings." in name or ".pre_layrnorm." in name  # transformers' own spelling
        tower = next((tower for tower in num_layers if name.startswith(f"{tower}.")), None)
        return num_layers[tower] + 1 if is_input and tower else 0

    return {name: layer_decay ** depth_below_head(name) for name in names}


def learning_rate_at(optim: OptimConfig, step: int, num_steps: int) -> float:
    """Learning rate of a step (0-based) of a run of `num_steps`."""
    return optim.learning_rate * learning_rate_factor(step, optim.lr_schedule, optim.warmup_steps, num_steps)


def learning_rate_factor(step: int, schedule: str, warmup_steps: int, num_steps: int) -> float:
    """Share of the peak learning rate at a step, so that a resumed run needs no schedule state.

    Args:
        step: Optimizer steps already made, 0-based.
        schedule: "constant", "linear" or "cosine"; the last two reach 0 at `num_steps`.
        warmup_steps: Steps of linear rise, at most half of the run's; the first has 1 / warmup_steps.
        num_steps: Optimizer steps of the whole run.
    """
    warmup_steps = min(warmup_steps, num_steps // 2)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    assert schedule == "constant", schedule
    return 1.0
