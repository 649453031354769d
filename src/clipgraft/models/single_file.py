"""A base in one `.safetensors` file with LDM's names, as Stable Diffusion v1 checkpoints circulate.

Such a file holds weights alone; the configuration is Stable Diffusion v1.5's.
"""

import json
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from torch import Tensor
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
            f"{path} is not a .safetensors file; pickles (.ckpt, .bin) can run code: convert it first"
        )
    loaders: dict[str, Callable[[], Any]] = {
        "vae": lambda: _load_ldm_model(AutoencoderKL, path, VAE_PREFIX, sd15.VAE_CONFIG, dtype),
        "unet": lambda: _load_ldm_model(UNet2DConditionModel, path, UNET_PREFIX, sd15.UNET_CONFIG, dtype),
        "scheduler": lambda: PNDMScheduler.from_config(sd15.SCHEDULER_CONFIG),
        "text_encoder": lambda: _load_ldm_text_encoder(path, dtype),
    }
    return {name: loaders[name]() for name in components if name in loaders}


def _read_ldm_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """The weights of one component, with their full names; the others' are not read."""
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  (it is no dict)
            weights = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error
    if not weights:
        raise CheckpointError(f"{path} is not a whole Stable Diffusion v1 checkpoint: it has no {prefix}*")
    return weights


def _load_ldm_model(
    model_class: Any, path: Path, prefix: str, config: dict[str, Any], dtype: torch.dtype
) -> Any:
    weights = _read_ldm_weights(path, prefix)
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # diffusers asks the hub for a config unless it has a folder
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            model = model_class.from_single_file(
                weights, config=folder, torch_dtype=dtype, local_files_only=True
            )
        except (KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is not a Stable Diffusion v1 checkpoint: its {prefix}* are of another shape"
            ) from error
    missing = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    refuse_other_weights(path, missing=missing, unexpected=())
    return model


def _load_ldm_text_encoder(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    found = _read_ldm_weights(path, TEXT_PREFIX)
    # Files of older libraries hold the positions 0..76 too, which are no weight.
    weights = {name.removeprefix(TEXT_PREFIX): w for name, w in found.items() if "position_ids" not in name}
    model = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)).to(dtype)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing = [
        name for name, shape in expected.items() if name not in weights or weights[name].shape != shape
    ]
    refuse_other_weights(path, missing=missing, unexpected=weights.keys() - expected.keys())
    model.load_state_dict(weights)
    return model.eval()
