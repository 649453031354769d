"""ControlNets in memory, kept from request to request."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from diffusers import ControlNetModel, MultiControlNetModel, UNet2DConditionModel

from clipgraft.generation.engines.networks import EngineUNet
from clipgraft.generation.request_files import file_state
from clipgraft.models.controlnet import controlnet_files, load_controlnet
from clipgraft.sampling_params import Control

MAX_KEPT = 4
"""ControlNets in memory; Stable Diffusion 1's have 1.4 GB each in float32."""


def kept_controlnets(
    controls: Sequence[Control], unet: UNet2DConditionModel | EngineUNet
) -> MultiControlNetModel:
    """Return ControlNets on the device and in the precision of a U-Net.

    Raises:
        CheckpointError: If one cannot be loaded.
    """
    in_torch = unet.in_torch.unet if isinstance(unet, EngineUNet) else unet
    return MultiControlNetModel(
        [_kept(control.model, in_torch.device, in_torch.dtype) for control in controls]
    )


def _kept(name: str, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    return _load(name, tuple(map(file_state, controlnet_files(name))), device, dtype)


@lru_cache(MAX_KEPT)
def _load(name: str, _states: tuple, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    """Load a ControlNet; of changed files again."""
    return load_controlnet(name, device, dtype)
