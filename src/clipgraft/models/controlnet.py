"""ControlNets: loaded strictly, and compared with the base they are for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from clipgraft.errors import CheckpointError
from clipgraft.models.configs import ControlNetConfig, read_config
from clipgraft.models.hub import resolve_model
from clipgraft.models.loading import DIFFUSERS_STEM, load_strictly, weight_paths
from clipgraft.models.weights import FULL, HALF, Needed, Weights

NEEDED = Needed(("config.json",), (Weights(DIFFUSERS_STEM),))
SHAPED = ("cross_attention_dim", "block_out_channels", "layers_per_block")
"""Parts of a configuration that give text states and residuals their shapes."""


def controlnet_files(name: str) -> list[Path]:
    """Find a ControlNet's configuration and weights, or download them.

    Args:
        name: Folder in diffusers' layout, or a hub id.

    Raises:
        MissingFileError: If there is no such folder and the name is not a hub id.
        CheckpointError: If it holds no weights, or the hub is unreachable.
    """
    folder = resolve_model(name, part="controlnet", needed=NEEDED)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is no ControlNet: it has no config.json; name a folder with one, or a hub id"
        )
    return [folder / "config.json", *weight_paths(folder, DIFFUSERS_STEM, (FULL, HALF))]


def check_controlnet(name: str, unet_config: Mapping[str, Any]) -> None:
    """Compare a ControlNet's configuration with that of a base's U-Net.

    Raises:
        CheckpointError: If it is for a base of another shape, or no ControlNet.
    """
    path = controlnet_files(name)[0]
    config = read_config(path, ControlNetConfig)
    if config.get("_class_name") != "ControlNetModel":
        raise CheckpointError(
            f"{path} is of a {config.get('_class_name')}; only a ControlNetModel can be used, name one"
        )
    checked = ControlNetConfig.model_validate(config)
    for key in SHAPED:
        own, needed = getattr(checked, key), unet_config[key]
        if own != (list(needed) if isinstance(needed, tuple) else needed):
            raise CheckpointError(
                f"ControlNet {path.parent} is for another base: its {key} is {own}, this base's "
                f"{needed}; name one that was made for this base"
            )


def load_controlnet(name: str, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    """Load a ControlNet, which takes inputs of any precision.

    Raises:
        CheckpointError: If its weights are damaged or do not fit its configuration.
    """
    folder = controlnet_files(name)[0].parent
    model = load_strictly(ControlNetModel, folder, ControlNetConfig).to(device, dtype)
    model.requires_grad_(False)
    model.register_forward_pre_hook(_cast, with_kwargs=True)
    return model


def _cast(model: ControlNetModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Cast inputs to a ControlNet's precision, except the timestep."""

    def cast(value: Any) -> Any:
        is_image_or_states = isinstance(value, torch.Tensor) and value.ndim > 2
        return value.to(model.dtype) if is_image_or_states else value

    return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}
