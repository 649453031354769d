"""A base in one `.safetensors` file with LDM's names, as Stable Diffusion v1 checkpoints circulate.

Such a file holds weights alone; the configuration is Stable Diffusion v1.5's. Of diffusers, the converters
alone are used: its `from_single_file` asks the hub for a configuration and lets weights be missing.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from clipgraft.errors import CheckpointError
from clipgraft.models import sd15
from clipgraft.models.configs import loading
from clipgraft.models.loading import read_weights, refuse_misfits, set_weights

UNET_PREFIX, VAE_PREFIX = "model.diffusion_model.", "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."


def load_single_file(path: Path, components: Collection[str], dtype: torch.dtype) -> dict[str, Any]:
    """Load components of a base from one file.

    Args:
        path: A `.safetensors` file with LDM's names.
        components: Names of `FrozenBase`'s fields; a tokenizer is never in such a file.
        dtype: Of the weights.

    Returns:
        The components by name, without the tokenizer.

    Raises:
        CheckpointError: If it is of another kind, damaged, or not a whole Stable Diffusion v1 checkpoint.
    """
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file; pickles (.ckpt, .bin) can run code: take a copy in "
            "safetensors, or, if you trust it, read it with torch's weights_only=True and write its "
            "state_dict with safetensors.torch.save_file"
        )
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(sd15.VAE_CONFIG)
        unet = UNet2DConditionModel.from_config(sd15.UNET_CONFIG)
    loaders: dict[str, Callable[[], Any]] = {
        "vae": lambda: _load_ldm_model(path, VAE_PREFIX, vae, convert_ldm_vae_checkpoint, dtype),
        "unet": lambda: _load_ldm_model(path, UNET_PREFIX, unet, convert_ldm_unet_checkpoint, dtype),
        "scheduler": lambda: PNDMScheduler.from_config(sd15.SCHEDULER_CONFIG),
        "text_encoder": lambda: _load_text_encoder(path, dtype),
    }
    return {name: loaders[name]() for name in components if name in loaders}


def _read_ldm_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """The weights of one component, with their full names; the others' are not read."""
    weights = read_weights([path], lambda name: name.startswith(prefix))
    if not weights:
        raise CheckpointError(
            f"{path} is not a whole Stable Diffusion v1 checkpoint: it has no {prefix}*; name one with "
            "U-Net, VAE and text encoder"
        )
    return weights


def _load_ldm_model(
    path: Path, prefix: str, model: Any, convert: Callable[..., dict], dtype: torch.dtype
) -> Any:
    """Give a model without memory its weights, renamed by diffusers' own converter."""
    weights = _read_ldm_weights(path, prefix)
    with loading(path, f"Stable Diffusion v1 ({prefix}*)"):
        weights = convert(weights, dict(model.config))
    refuse_misfits(path, model, weights)
    return set_weights(model, weights, dtype)


def _load_text_encoder(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    found = _read_ldm_weights(path, TEXT_PREFIX)
    weights = {name.removeprefix(TEXT_PREFIX): weight for name, weight in found.items()}
    model = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)).to(dtype)
    refuse_misfits(path, model, weights)
    model.load_state_dict(weights)
    return model.eval()
