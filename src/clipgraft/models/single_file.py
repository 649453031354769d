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
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from clipgraft.errors import CheckpointError
from clipgraft.models import sd15
from clipgraft.models.checkpoint import refuse_other_weights

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
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  (it is no dict)
            weights = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}; fetch it again") from error
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
    try:
        weights = convert(_read_ldm_weights(path, prefix), dict(model.config))
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path} is not a Stable Diffusion v1 checkpoint: {prefix}* lacks {error}; name one that is"
        ) from error
    _refuse_misfits(path, model, weights)
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    return model.eval()


def _load_text_encoder(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    found = _read_ldm_weights(path, TEXT_PREFIX)
    # Files of older libraries hold the positions 0..76 too, which are no weight.
    weights = {name.removeprefix(TEXT_PREFIX): w for name, w in found.items() if "position_ids" not in name}
    model = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)).to(dtype)
    _refuse_misfits(path, model, weights)
    model.load_state_dict(weights)
    return model.eval()


def _refuse_misfits(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    refuse_other_weights(path, missing=expected.keys() - found, unexpected=found.keys() - expected)
    for name, shape in found.items():
        if shape != expected[name]:
            raise CheckpointError(
                f"{path} is not a Stable Diffusion v1 checkpoint: {name} has shape {shape}, "
                f"not {expected[name]}; name one that is"
            )
