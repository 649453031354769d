"""ControlNets and IP-Adapters in memory, kept from request to request."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    MultiControlNetModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from clipgraft.data.images import open_image
from clipgraft.errors import UserError
from clipgraft.generation.engines.networks import EngineUNet
from clipgraft.generation.request_files import file_state
from clipgraft.models.configs import loading
from clipgraft.models.controlnet import controlnet_files, load_controlnet
from clipgraft.models.ip_adapter import ImageEncoder, ip_adapter_files, load_image_encoder, read_ip_adapter
from clipgraft.sampling_params import Control, Guide

MAX_CONTROLNETS = 4
"""In memory; Stable Diffusion 1's have 1.4 GB each in float32."""
MAX_IP_ADAPTERS = 4
"""In memory; Stable Diffusion 1's have 90 MB each in float32."""


def unet_in_torch(unet: UNet2DConditionModel | EngineUNet) -> UNet2DConditionModel:
    """Return a pipeline's U-Net, or what runs in torch for an engine's."""
    return unet.in_torch.unet if isinstance(unet, EngineUNet) else unet


class KeptGuides:
    """Models of the guides of a base's images, each loaded once."""

    def __init__(self) -> None:
        self.controlnet = lru_cache(MAX_CONTROLNETS)(_controlnet)
        self.weights = lru_cache(MAX_IP_ADAPTERS)(_weights)
        self.encoder = lru_cache(1)(_encoder)


_KEPT: WeakKeyDictionary[AutoencoderKL, KeptGuides] = WeakKeyDictionary()
"""By VAE, the one module that all pipelines of a base share; so they leave memory with the base."""


def kept_controlnets(controls: Sequence[Control], pipeline: StableDiffusionPipeline) -> MultiControlNetModel:
    """Return ControlNets on the device and in the dtype of the U-Net.

    Raises:
        CheckpointError: If one cannot be loaded.
    """
    unet, kept = unet_in_torch(pipeline.unet), _kept(pipeline)
    return MultiControlNetModel(
        [
            kept.controlnet(control.model, _states(controlnet_files(control.model)), unet.device, unet.dtype)
            for control in controls
        ]
    )


def _kept(pipeline: StableDiffusionPipeline) -> KeptGuides:
    return _KEPT.setdefault(pipeline.vae, KeptGuides())


@contextmanager
def with_ip_adapters(
    pipeline: StableDiffusionPipeline, ip_adapters: Sequence[Guide], *, is_guided: bool
) -> Iterator[dict[str, Any]]:
    """Add IP-Adapters to a pipeline's U-Net while the block runs.

    Yields:
        What a call of the pipeline takes for them.

    Raises:
        CheckpointError: If one cannot be loaded or is for another base.
        UserError: If they have several image encoders.
    """
    if not ip_adapters:
        yield {}
        return
    unet, kept = unet_in_torch(pipeline.unet), _kept(pipeline)
    states = [_states(ip_adapter_files(each.model)) for each in ip_adapters]
    if len({state[1:] for state in states}) > 1:
        raise UserError("IP-Adapters of one image need one image encoder; put their files into one folder")
    encoder = kept.encoder(ip_adapters[0].model, states[0][1:], unet.device, unet.dtype)
    # Of the same components, but with an image encoder and the U-Net itself.
    own = StableDiffusionPipeline(
        **pipeline.components
        | {"unet": unet, "image_encoder": encoder.model, "feature_extractor": encoder.processor}
        | {"safety_checker": None},
        requires_safety_checker=False,
    )
    weights = [kept.weights(each.model, state) for each, state in zip(ip_adapters, states, strict=True)]
    try:
        with loading(Path(ip_adapters[0].model), "an IP-Adapter of this base"):
            # Strictly: with less memory diffusers would leave missing weights out in silence.
            own.load_ip_adapter(
                weights,
                subfolder="",
                weight_name=[""] * len(weights),
                image_encoder_folder=None,
                low_cpu_mem_usage=False,
            )
        own.set_ip_adapter_scale([each.scale for each in ip_adapters])
        images = [open_image(Path(each.image)) for each in ip_adapters]
        with torch.no_grad():
            embeds = own.prepare_ip_adapter_image_embeds(images, None, unet.device, 1, is_guided)
        yield {"ip_adapter_image_embeds": embeds}
    finally:
        own.unload_ip_adapter()


def _states(paths: Sequence[Path]) -> tuple[tuple[Path, int, int], ...]:
    """Return the states of files, so that changed ones are loaded again."""
    return tuple((path, *file_state(path)) for path in paths)


def _controlnet(name: str, _states: tuple, device: torch.device, dtype: torch.dtype) -> ControlNetModel:
    return load_controlnet(name, device, dtype)


def _weights(name: str, _states: tuple) -> dict[str, dict[str, Tensor]]:
    return read_ip_adapter(name)


def _encoder(name: str, _states: tuple, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    return load_image_encoder(name, device, dtype)
