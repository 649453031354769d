"""Kinds of request: diffusers' pipeline for each, and its arguments."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import (
    SchedulerMixin,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image, ImageOps

from clipgraft.data.images import open_image
from clipgraft.errors import UserError
from clipgraft.generation.guides import kept_controlnets, with_ip_adapters
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.configs import LATENT_CHANNELS
from clipgraft.models.controlnet import check_controlnet
from clipgraft.models.defaults import SamplingDefaults
from clipgraft.models.ip_adapter import check_ip_adapter
from clipgraft.sampling_params import SamplingParams

Size = tuple[int, int]
"""Height and width in pixels."""


PIPELINES: dict[tuple[bool, bool, bool], Any] = {
    (False, False, False): StableDiffusionPipeline,
    (False, True, False): StableDiffusionImg2ImgPipeline,
    (False, True, True): StableDiffusionInpaintPipeline,
    (True, False, False): StableDiffusionControlNetPipeline,
    (True, True, False): StableDiffusionControlNetImg2ImgPipeline,
    (True, True, True): StableDiffusionControlNetInpaintPipeline,
}
"""By whether a request has ControlNets, an initial image and a mask."""


def resolve(
    pipeline: StableDiffusionPipeline,
    requests: Iterable[ImageRequest],
    base_scheduler: SchedulerMixin,
    defaults: SamplingDefaults,
) -> list[ImageRequest]:
    """Return requests with a base's own values in place of None.

    Raises:
        UserError: If a scheduler cannot take so many steps on this base, an inpainting base gets no mask, or
            ControlNets or IP-Adapters are combined with approximations of the U-Net's steps or offload.
        CheckpointError: If one of these is for another base.
    """
    num_levels = base_scheduler.config.num_train_timesteps
    resolved = [request.resolved(defaults, num_levels) for request in requests]
    check_channels(pipeline.unet.config.in_channels, resolved)
    _check_guides(pipeline, resolved)
    return resolved


def check_channels(in_channels: int, requests: Sequence[ImageRequest]) -> None:
    """Refuse requests without a mask for a U-Net that takes one.

    Raises:
        UserError: Says what such a base needs.
    """
    if in_channels != LATENT_CHANNELS and not all(request.params.mask_image for request in requests):
        raise UserError(
            f"this base's U-Net takes {in_channels} channels (inpainting), so it needs an image and a mask; "
            f"name them with init_image and mask_image (--init-image, --mask), or use a base that takes "
            f"{LATENT_CHANNELS}"
        )


def _check_guides(pipeline: StableDiffusionPipeline, requests: Sequence[ImageRequest]) -> None:
    all_params = [request.params for request in requests]
    controls = dict.fromkeys(control.model for params in all_params for control in params.controls)
    ip_adapters = dict.fromkeys(each.model for params in all_params for each in params.ip_adapters)
    if not controls and not ip_adapters:
        return
    what = "ControlNets" if controls else "IP-Adapters"
    if getattr(pipeline.unet, "is_approximated", False):
        raise UserError(
            f"{what} do not work with guidance_interval, feature_cache and quantize; leave one of them out"
        )
    if hasattr(pipeline.unet, "_hf_hook"):
        raise UserError(f"{what} do not work with offload; leave one of them out")
    for model in controls:
        check_controlnet(model, pipeline.unet.config)
    for model in ip_adapters:
        check_ip_adapter(model, pipeline.unet.config)


@contextmanager
def prepared_for(
    pipeline: StableDiffusionPipeline, requests: Sequence[ImageRequest], size: Size
) -> Iterator[Callable[..., Any]]:
    """Prepare diffusers' pipeline for a batch; yield its call.

    Args:
        pipeline: Its components are used.
        requests: Of one batch, and so of one kind.
        size: Of the images to generate; those of the requests are cropped to it.

    Raises:
        DataError: If an image cannot be read.
        CheckpointError: If a ControlNet or an IP-Adapter cannot be loaded.
    """
    params = requests[0].params
    own = _sibling(pipeline, params)
    is_guided = requests[0].is_guided and pipeline.unet.config.time_cond_proj_dim is None
    with with_ip_adapters(pipeline, params.ip_adapters, is_guided=is_guided) as more:
        yield partial(own, **_arguments(own, [request.params for request in requests], size), **more)


def _sibling(pipeline: StableDiffusionPipeline, params: SamplingParams) -> Any:
    """Return diffusers' pipeline for a request, of the same components."""
    kind = PIPELINES[bool(params.controls), bool(params.init_image), bool(params.mask_image)]
    if kind is StableDiffusionPipeline:
        return pipeline
    components = pipeline.components
    if params.controls:
        components["controlnet"] = kept_controlnets(params.controls, pipeline)
    # Not by from_pipe, which would cast every component, the float32 safety checker too, to one dtype.
    sibling = kind(**components, requires_safety_checker=pipeline.safety_checker is not None)
    sibling.set_progress_bar_config(disable=True)
    return sibling


def _arguments(pipeline: Any, all_params: Sequence[SamplingParams], size: Size) -> dict[str, Any]:
    """Return the arguments of one kind's requests, besides those of all."""
    params = all_params[0]
    arguments: dict[str, Any] = {}
    if not isinstance(pipeline, StableDiffusionImg2ImgPipeline):  # which takes its image's size
        arguments["height"], arguments["width"] = size
    if params.init_image:
        arguments["image"] = [_cropped(each.init_image, size) for each in all_params]
        arguments["strength"] = params.strength
    if params.mask_image:
        arguments["mask_image"] = [_cropped(each.mask_image, size) for each in all_params]
    return arguments | (_control_arguments(pipeline, all_params, size) if params.controls else {})


def _control_arguments(pipeline: Any, all_params: Sequence[SamplingParams], size: Size) -> dict[str, Any]:
    """Return each ControlNet's images of a batch, and how it acts."""
    controls = all_params[0].controls
    # As tensors (B, 3, H, W): several ControlNets take no lists of images in every pipeline.
    images = [
        pipeline.control_image_processor.preprocess(
            [_cropped(params.controls[index].image, size) for params in all_params], *size
        )
        for index in range(len(controls))
    ]
    return {
        "control_image" if all_params[0].init_image else "image": images,
        "controlnet_conditioning_scale": [control.scale for control in controls],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
    }


def _cropped(path: str, size: Size) -> Image.Image:
    height, width = size
    return ImageOps.fit(open_image(Path(path)), (width, height))
