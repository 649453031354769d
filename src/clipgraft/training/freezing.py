"""What of CLIP is trained: layers frozen from below, or low-rank updates in place of the weights."""

from transformers import CLIPModel

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The attention's maps (Hu et al. 2021, section 4.2)."""


def freeze_layers(clip: CLIPModel, *, vision: int = 0, text: int = 0) -> None:
    """Freeze the bottom of each tower.

    Args:
        clip: The model.
        vision: Layers of the vision tower, with its embeddings; 0 = nothing, -1 = tower and projection.
        text: The same for the text tower.

    Raises:
        ValueError: If a tower has fewer layers.
    """
    towers = {
        "frozen_vision_layers": (vision, clip.vision_model, clip.visual_projection),
        "frozen_text_layers": (text, clip.text_model, clip.text_projection),
    }
    for name, (count, tower, projection) in towers.items():
        layers = tower.encoder.layers
        if count > len(layers):
            raise ValueError(f"{name} must be between -1 and the tower's {len(layers)} layers; got {count}")
        if count == -1:
            tower.requires_grad_(False)
            projection.requires_grad_(False)
        elif count:
            tower.embeddings.requires_grad_(False)
            if hasattr(tower, "pre_layrnorm"):  # transformers' own spelling
                tower.pre_layrnorm.requires_grad_(False)
            layers[:count].requires_grad_(False)


def add_lora(clip: CLIPModel, rank: int) -> None:
    """Freeze a CLIP, and put trainable low-rank updates, zero at first, beside its attention's maps.

    `logit_scale` stays trainable. `merge_lora` adds the updates to the weights.

    Raises:
        ValueError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora_rank needs peft; install clipgraft[lora]") from error
    # With alpha equal to the rank the update counts as it is.
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(LORA_TARGETS))
    clip.requires_grad_(False)
    inject_adapter_in_model(config, clip)
    clip.logit_scale.requires_grad_(True)


def merge_lora(clip: CLIPModel) -> None:
    """Add the low-rank updates to the weights, and leave plain layers in their place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(clip.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            clip.set_submodule(name, module.get_base_layer())
