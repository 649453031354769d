"""ControlNets: loaded strictly, and compared with the base they are for."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from clipgraft.errors import CheckpointError
from clipgraft.models.configs import ControlNetConfig, loading, read_config
from clipgraft.models.hub import resolve_model
from clipgraft.models.loading import (
    DIFFUSERS_STEM,
    load_strictly,
    opened_weights,
    read_weights,
    refuse_misfits,
    set_weights,
    weight_paths,
)
from clipgraft.models.single_file import UNET_CONFIG
from clipgraft.models.weights import FULL, HALF, Needed, Weights

CONFIG_NAME = "config.json"
NEEDED = Needed((CONFIG_NAME,), (Weights(DIFFUSERS_STEM),))
HINT_BLOCK = "input_hint_block"
"""Part of the names of the weights that read the control image, in LDM's names."""
SHAPED = ("cross_attention_dim", "block_out_channels", "layers_per_block")
"""Parts of a configuration that give text states and residuals their shapes."""


def controlnet_files(name: str) -> list[Path]:
    """Find a ControlNet's configuration and weights, or download them.

    Args:
        name: Folder in diffusers' layout, hub id, or one `.safetensors` file with LDM's names.

    Returns:
        The configuration and files of weights; or the one file.

    Raises:
        MissingFileError: If there is no such path and the name is not a hub id.
        CheckpointError: If it holds no weights, or the hub is unreachable.
    """
    folder = resolve_model(name, part="controlnet", needed=NEEDED)
    if folder.suffix.lower() == ".safetensors" and folder.is_file():
        return [folder]
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(
            f"{folder} is no ControlNet: it has no config.json; name a folder with one, or a hub id"
        )
    return [folder / CONFIG_NAME, *weight_paths(folder, DIFFUSERS_STEM, (FULL, HALF))]


def check_controlnet(name: str, unet_config: Mapping[str, Any]) -> None:
    """Compare a ControlNet's configuration with that of a base's U-Net.

    Raises:
        CheckpointError: If it is for a base of another shape, or no ControlNet.
    """
    path = controlnet_files(name)[0]
    if path.name != CONFIG_NAME:
        _refuse_other_files(path)
    checked = ControlNetConfig.model_validate(_read_config(path))
    place = path.parent if path.name == CONFIG_NAME else path
    for key in SHAPED:
        own, needed = getattr(checked, key), unet_config[key]
        if own != (list(needed) if isinstance(needed, tuple) else needed):
            raise CheckpointError(
                f"ControlNet {place} is for another base: its {key} is {own}, this base's {needed}; "
                "name one that was made for this base"
            )


def load_controlnet(name: str, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    """Load a ControlNet, which takes inputs of any precision.

    Raises:
        CheckpointError: If its weights are damaged or do not fit its configuration.
    """
    path = controlnet_files(name)[0]
    is_folder = path.name == CONFIG_NAME
    model = load_strictly(ControlNetModel, path.parent, ControlNetConfig) if is_folder else _load_file(path)
    model = model.to(device, dtype)
    model.requires_grad_(False)
    model.register_forward_pre_hook(_cast, with_kwargs=True)
    return model


def _read_config(path: Path) -> dict[str, Any]:
    """Return a configuration; of one file that of Stable Diffusion v1.5."""
    if path.name != CONFIG_NAME:
        own = signature(ControlNetModel).parameters
        return {name: value for name, value in UNET_CONFIG.items() if name in own}
    config = read_config(path, ControlNetConfig)
    if config.get("_class_name") != "ControlNetModel":
        raise CheckpointError(
            f"{path} is of a {config.get('_class_name')}; only a ControlNetModel can be used, name one"
        )
    return config


def _refuse_other_files(path: Path) -> None:
    """Raise CheckpointError for one file without a ControlNet's weights."""
    with opened_weights(path) as file:
        names = list(file.keys())
    if not any(HINT_BLOCK in name for name in names):
        in_folder = any(name.startswith("controlnet_cond_embedding.") for name in names)
        fix = "name its folder, with config.json" if in_folder else "name another file"
        raise CheckpointError(
            f"{path} is no ControlNet with LDM's names: it has no {HINT_BLOCK}, but "
            f"{', '.join(names[:2]) or 'no weight'}; {fix}"
        )


def _load_file(path: Path) -> Any:
    """Load a ControlNet with LDM's names, renamed by diffusers' converter."""
    with torch.device("meta"):
        model = ControlNetModel.from_config(_read_config(path))
    weights = read_weights([path])
    with loading(path, "a ControlNet for Stable Diffusion v1"):
        weights = convert_controlnet_checkpoint(weights, dict(model.config))
    weights = {key: weight for key, weight in weights.items() if weight is not None}
    refuse_misfits(path, model, weights)
    return set_weights(model, weights, None)


def _cast(model: ControlNetModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Cast inputs to a ControlNet's precision, except the timestep."""

    def cast(value: Any) -> Any:
        is_image_or_states = isinstance(value, torch.Tensor) and value.ndim > 2
        return value.to(model.dtype) if is_image_or_states else value

    return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}
