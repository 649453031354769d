"""A Stable Diffusion v1 base in one `.safetensors` file, with LDM's names.

Such a file has no configurations; they are Stable Diffusion v1.5's. Only diffusers' converters are used, as
its `from_single_file` asks the hub for a configuration and tolerates missing weights.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor
from torch.nn import Module
from transformers import CLIPTextConfig, CLIPTextModel

from clipgraft.errors import CheckpointError, UserError
from clipgraft.models.configs import LATENT_CHANNELS, loading
from clipgraft.models.loading import opened_weights, read_weights, refuse_misfits, set_weights

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
UNET_INPUT = f"{UNET_PREFIX}input_blocks.0.0.weight"
POSITION_IDS = f"{TEXT_PREFIX}embeddings.position_ids"
"""Integers that transformers no longer stores and that published files hold."""

# From the published folder's JSON files. `attention_head_dim` 8 is the number of heads, not their width.
UNET_CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}

VAE_CONFIG = {
    "_class_name": "AutoencoderKL",
    "sample_size": 512,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}

TEXT_CONFIG = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}

TEXT_SIZES = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "intermediate_size": "MLP width",
    "num_attention_heads": "heads",
    "hidden_act": "activation",
    "vocab_size": "tokens",
    "max_position_embeddings": "positions",
}
"""Keys of `TEXT_CONFIG` that the tools take for granted, in words."""

SCHEDULER_CONFIG = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def load_single_file(path: Path, components: Collection[str], dtype: torch.dtype | None) -> dict[str, Any]:
    """Load components (fields of `FrozenBase` except the tokenizer) from one file, by default as stored.

    Raises:
        CheckpointError: If it is of another kind, damaged, or not a complete Stable Diffusion v1 checkpoint.
    """
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file; pickles (.ckpt, .bin) can run code: take a copy in "
            "safetensors, or, if you trust it, read it with torch's weights_only=True and write its "
            "state_dict with safetensors.torch.save_file"
        )
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(VAE_CONFIG)
        unet = UNet2DConditionModel.from_config(UNET_CONFIG, in_channels=in_channels_of(path))
    loaders: dict[str, Callable[[], Any]] = {
        "vae": lambda: _load_ldm_model(path, VAE_PREFIX, vae, convert_ldm_vae_checkpoint, dtype),
        "unet": lambda: _load_ldm_model(path, UNET_PREFIX, unet, convert_ldm_unet_checkpoint, dtype),
        "scheduler": lambda: PNDMScheduler.from_config(SCHEDULER_CONFIG),
        "text_encoder": lambda: _load_text_encoder(path, dtype),
    }
    return {name: loaders[name]() for name in components if name in loaders}


def in_channels_of(path: Path) -> int:
    """Return the U-Net's channels; 9 in an inpainting checkpoint."""
    with opened_weights(path) as file:
        has_unet = UNET_INPUT in file.keys()  # noqa: SIM118  (it is no dict)
        channels = file.get_slice(UNET_INPUT).get_shape()[1:2] if has_unet else []
    return 9 if channels == [9] else LATENT_CHANNELS


def refuse_other_architectures(unet: Module, vae: Module, text_encoder: CLIPTextModel) -> None:
    """Refuse a base without the sizes of Stable Diffusion v1.

    Raises:
        UserError: Names the component and a size.
    """
    remedy = "tools that load one file expect Stable Diffusion v1; export with --format diffusers"
    for key, what in TEXT_SIZES.items():
        found, expected = getattr(text_encoder.config, key), TEXT_CONFIG[key]
        if found != expected:
            raise UserError(
                f"the base's text encoder has another architecture: {what} {found}, not {expected}; {remedy}"
            )
    with torch.device("meta"):
        expected_models = {
            "U-Net": (unet, UNet2DConditionModel.from_config(UNET_CONFIG)),
            "VAE": (vae, AutoencoderKL.from_config(VAE_CONFIG)),
        }
    for name, (model, published) in expected_models.items():
        shapes, others = ({k: tuple(w.shape) for k, w in m.state_dict().items()} for m in (model, published))
        if shapes != others:
            key = min(key for key in shapes.keys() | others.keys() if shapes.get(key) != others.get(key))
            raise UserError(
                f"the base's {name} has another architecture: {key} has shape {shapes.get(key)}, not "
                f"{others.get(key)}; {remedy}"
            )


def is_stable_diffusion(text_encoder: CLIPTextModel) -> bool:
    """Whether a text encoder has the sizes of Stable Diffusion v1's."""
    return all(getattr(text_encoder.config, key) == TEXT_CONFIG[key] for key in TEXT_SIZES)


def _read_ldm_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """Read the weights of one component, with their full names."""
    weights = read_weights([path], lambda name: name.startswith(prefix))
    if not weights:
        raise CheckpointError(
            f"{path} is not a whole Stable Diffusion v1 checkpoint: it has no {prefix}*; name one with "
            "U-Net, VAE and text encoder"
        )
    return weights


def _load_ldm_model(
    path: Path, prefix: str, model: Any, convert: Callable[..., dict], dtype: torch.dtype | None
) -> Any:
    """Load weights, renamed by diffusers' converter, into a meta model."""
    weights = _read_ldm_weights(path, prefix)
    with loading(path, f"Stable Diffusion v1 ({prefix}*)"):
        weights = convert(weights, dict(model.config))
    refuse_misfits(path, model, weights)
    return set_weights(model, weights, dtype)


def _load_text_encoder(path: Path, dtype: torch.dtype | None) -> CLIPTextModel:
    found = _read_ldm_weights(path, TEXT_PREFIX)
    weights = {name.removeprefix(TEXT_PREFIX): weight for name, weight in found.items()}
    model = CLIPTextModel(CLIPTextConfig(**TEXT_CONFIG)).to(dtype or next(iter(weights.values())).dtype)
    refuse_misfits(path, model, weights)
    model.load_state_dict(weights)
    return model.eval()
