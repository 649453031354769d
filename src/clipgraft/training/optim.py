"""Trained parameters and their learning rates: freezing, LoRA, parameter groups, schedule."""

import math
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from torch import nn
from transformers import CLIPModel, CLIPTextModel

from clipgraft.errors import UserError, needs
from clipgraft.models.graft import GraftedTextEncoder
from clipgraft.settings import OptimConfig

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention's maps (Hu et al. 2021, section 4.2)."""
DECAYED_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)
"""Layers with a decayed `weight`, CLIP's token and position tables included (as in open_clip)."""


def freeze_layers(clip: CLIPModel, *, vision: int = 0, text: int = 0) -> None:
    """Freeze each tower's embeddings and first layers (-1 = tower and projection).

    Raises:
        UserError: If a tower has fewer layers, or nothing is left to train but the logit scale.
    """
    towers = {
        "frozen_vision_layers": (vision, clip.vision_model, clip.visual_projection),
        "frozen_text_layers": (text, clip.text_model, clip.text_projection),
    }
    for name, (count, tower, projection) in towers.items():
        layers = tower.encoder.layers
        if count > len(layers):
            raise UserError(f"{name} must be between -1 and the tower's {len(layers)} layers; got {count}")
        if count == -1:
            tower.requires_grad_(False)
            projection.requires_grad_(False)
        elif count:
            tower.embeddings.requires_grad_(False)
            if hasattr(tower, "pre_layrnorm"):  # transformers' own spelling
                tower.pre_layrnorm.requires_grad_(False)
            layers[:count].requires_grad_(False)
    if not any(p.requires_grad for name, p in clip.named_parameters() if name != "logit_scale"):
        raise UserError(
            f"frozen_vision_layers={vision} and frozen_text_layers={text} leave nothing to train but the "
            "logit scale; lower one of them"
        )


def add_lora(clip: CLIPModel, rank: int) -> None:
    """Freeze a CLIP except `logit_scale` and add LoRA to its attention maps.

    Raises:
        UserError: If peft is not installed.
    """
    clip.requires_grad_(False)
    _inject_lora(clip, rank)
    clip.logit_scale.requires_grad_(True)


def train_bridge_and_last_layers(encoder: GraftedTextEncoder, num_layers: int, lora_rank: int) -> None:
    """Freeze a graft except its bridge and last text layers.

    Args:
        encoder: The graft's text encoder.
        num_layers: Number of last text layers trained.
        lora_rank: Rank of updates trained instead of those layers' weights; 0 = the weights.

    Raises:
        UserError: If the tower has fewer layers, or peft is needed and not installed.
    """
    encoder.requires_grad_(False)
    encoder.bridge.requires_grad_(True)
    if num_layers:
        train_last_layers(encoder.text_model, num_layers, lora_rank)


def train_last_layers(tower: CLIPTextModel, num_layers: int, lora_rank: int) -> None:
    """Freeze a text tower except its last layers and final norm.

    Args:
        tower: The text tower.
        num_layers: Number of last layers trained.
        lora_rank: Rank of updates trained instead of their weights; 0 = the weights.

    Raises:
        UserError: If the tower has fewer layers, or peft is needed and not installed.
    """
    layers = tower.encoder.layers
    check_last_layers(num_layers, len(layers))
    tower.requires_grad_(False)
    if lora_rank:
        _inject_lora(tower, lora_rank, layers=list(range(len(layers)))[-num_layers:])
        return
    layers[-num_layers:].requires_grad_(True)
    tower.final_layer_norm.requires_grad_(True)


def check_last_layers(num_layers: int, depth: int) -> None:
    """Refuse to train more last layers than a tower has."""
    if num_layers > depth:
        raise UserError(f"text_layers must be between 0 and the tower's {depth}; got {num_layers}")


def _inject_lora(module: CLIPModel | CLIPTextModel, rank: int, layers: list[int] | None = None) -> None:
    with needs("lora", "peft (for low-rank updates)"):
        from peft import LoraConfig, inject_adapter_in_model
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # equal to the rank: an unscaled update
        lora_dropout=0.0,
        target_modules=list(LORA_TARGETS),
        layers_to_transform=layers,
        layers_pattern="layers" if layers else None,
    )
    inject_adapter_in_model(config, module)


def merge_lora(model: nn.Module) -> None:
    """Add the low-rank updates to the weights, and restore plain layers."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    learning_rate_scales: Mapping[str, float] = MappingProxyType({}),
) -> list[dict]:
    """Split a module's trainable parameters by weight decay and learning rate.

    Args:
        module: The module.
        weight_decay: Decay of the weights of `DECAYED_LAYERS`.
        layer_decay: Factor on the learning rate from each layer to the one below.
        learning_rate_scales: Further factors, by prefix of parameters' names.

    Returns:
        Groups for `torch.optim.AdamW`, each with its `lr_scale`; the decayed ones first.

    Raises:
        UserError: If no parameter is trainable.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise UserError("nothing to train: every parameter is frozen")
    scales = layer_scales([name for name, _ in module.named_parameters()], layer_decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    # Not by rank: the bridge keeps biases in a matrix, and decaying logit_scale would raise the temperature.
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
    """Return each parameter's learning rate factor, smaller towards a tower's embeddings.

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
    """Return the learning rate of a step (0-based) of a run."""
    return optim.learning_rate * learning_rate_factor(step, optim.lr_schedule, optim.warmup_steps, num_steps)


def learning_rate_factor(step: int, schedule: str, warmup_steps: int, num_steps: int) -> float:
    """Return the share of the peak learning rate at a step (0-based).

    Args:
        step: Optimizer steps already made.
        schedule: "constant", or "linear" or "cosine", which reach 0 at `num_steps`.
        warmup_steps: Steps of linear rise from 1 / warmup_steps; limited to half of the run.
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
