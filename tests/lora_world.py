"""LoRA files of random weights for the tiny base, in kohya's and diffusers' names."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

import tiny

UNET_LAYERS = ("to_q", "to_v", "proj_in", "conv1", "linear_1")
TEXT_LAYERS = ("q_proj", "fc1", "out_proj")


def layers_of(model: nn.Module, endings: tuple[str, ...]) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name.endswith(endings)}


def kohya_tensors(seed: int, *, parts=("unet", "te"), alpha: float = 1.0) -> dict[str, torch.Tensor]:
    """Rank 2 in every chosen layer, convolutions too."""
    pipeline = tiny.build_pipeline()
    torch.manual_seed(seed)
    models = {"unet": (pipeline.unet, UNET_LAYERS), "te": (pipeline.text_encoder, TEXT_LAYERS)}
    tensors = {}
    for part in parts:
        for name, module in layers_of(*models[part]).items():
            level = "" if part == "unet" or name.startswith("text_model") else "text_model_"
            key = f"lora_{part}_{level}{name.replace('.', '_')}"
            shape = module.weight.shape
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, *shape[1:]) / 4
            tensors[f"{key}.lora_up.weight"] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2)) / 4
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def write_kohya(file: Path, seed: int = 5, **options) -> Path:
    save_file(kohya_tensors(seed, **options), file)
    return file


def write_diffusers(folder: Path, seed: int = 6) -> Path:
    """A folder as diffusers' own `save_lora_weights` writes it, of rank 2 and alpha 3."""
    pipeline = tiny.build_pipeline()
    torch.manual_seed(seed)
    unet = LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_v"], init_lora_weights=False)
    text = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    pipeline.unet.add_adapter(unet)
    pipeline.text_encoder.add_adapter(text)
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder),
        unet_lora_adapter_metadata=unet.to_dict(),
        text_encoder_lora_adapter_metadata=text.to_dict(),
    )
    return folder
