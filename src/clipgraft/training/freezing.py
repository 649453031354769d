"""What of CLIP or a graft is trained: layers frozen from below, or low-rank updates in their place."""

from torch import nn
from transformers import CLIPModel, CLIPTextModel

from clipgraft.errors import UserError
from clipgraft.models.graft import GraftedTextEncoder

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention's maps (Hu et al. 2021, section 4.2)."""


def freeze_layers(clip: CLIPModel, *, vision: int = 0, text: int = 0) -> None:
    """Freeze the bottom of each tower.

    Args:
        clip: The model.
        vision: Layers of the vision tower, with its embeddings; 0 = nothing, -1 = tower and projection.
        text: The same for the text tower.

    Raises:
        ValueError: If a tower has fewer layers, or nothing is left to train but the logit scale.
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
    """Freeze a CLIP, and put trainable low-rank updates, zero at first, beside its attention's maps.

    `logit_scale` stays trainable. `merge_lora` adds the updates to the weights.

    Raises:
        ValueError: If peft is not installed.
    """
    clip.requires_grad_(False)
    _inject_lora(clip, rank)
    clip.logit_scale.requires_grad_(True)


def train_bridge_and_last_layers(encoder: GraftedTextEncoder, num_layers: int, lora_rank: int) -> None:
    """Freeze a graft but for its bridge, and by choice the last layers of its text tower.

    Args:
        encoder: The graft's.
        num_layers: Of the text tower, from its end, that are trained; 0 = none.
        lora_rank: Of low-rank updates that are trained in the place of those layers' weights; 0 = none.

    Raises:
        ValueError: If the tower has fewer layers, or peft is needed and not installed.
    """
    layers = encoder.text_model.encoder.layers
    check_last_layers(num_layers, len(layers))
    encoder.requires_grad_(False)
    encoder.bridge.requires_grad_(True)
    if num_layers == 0:
        return
    if lora_rank:
        _inject_lora(encoder.text_model, lora_rank, layers=list(range(len(layers)))[-num_layers:])
        return
    layers[-num_layers:].requires_grad_(True)
    encoder.text_model.final_layer_norm.requires_grad_(True)


def check_last_layers(num_layers: int, depth: int) -> None:
    """Refuse to train more of the last layers than a tower has.

    Raises:
        UserError: Says how many there are.
    """
    if num_layers > depth:
        raise UserError(f"text_layers must be between 0 and the tower's {depth}; got {num_layers}")


def _inject_lora(module: CLIPModel | CLIPTextModel, rank: int, layers: list[int] | None = None) -> None:
    """Put trainable low-rank updates beside the attention's maps, of all layers or of some."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("lora_rank needs peft; install clipgraft[lora]") from error
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # equal to the rank: the update counts as it is
        lora_dropout=0.0,
        target_modules=list(LORA_TARGETS),
        layers_to_transform=layers,
        layers_pattern="layers" if layers else None,
    )
    inject_adapter_in_model(config, module)


def merge_lora(model: nn.Module) -> None:
    """Add the low-rank updates to the weights, and leave plain layers in their place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
