"""Kinds of request: diffusers' pipeline for each, and its arguments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image, ImageOps

from clipgraft.data.images import open_image
from clipgraft.generation.requests import ImageRequest
from clipgraft.sampling_params import SamplingParams

Size = tuple[int, int]
"""Height and width in pixels."""


def pipeline_for(pipeline: StableDiffusionPipeline, params: SamplingParams) -> Any:
    """Return diffusers' pipeline for a request, of the same components."""
    if not params.init_image:
        return pipeline
    kind = StableDiffusionInpaintPipeline if params.mask_image else StableDiffusionImg2ImgPipeline
    # Not by from_pipe, which would cast every component, the float32 safety checker too, to one dtype.
    sibling = kind(**pipeline.components, requires_safety_checker=pipeline.safety_checker is not None)
    sibling.set_progress_bar_config(disable=True)
    return sibling


def arguments_for(requests: Sequence[ImageRequest], size: Size) -> dict[str, Any]:
    """Return the arguments of one kind's requests, besides those of all kinds.

    Args:
        requests: Of one batch.
        size: Of the images to generate; those of the requests are cropped to it.

    Raises:
        DataError: If an image cannot be read.
    """
    params = requests[0].params
    height, width = size
    if not params.init_image:
        return {"height": height, "width": width}
    arguments = {"image": _images(requests, "init_image", size), "strength": params.strength}
    if params.mask_image:
        arguments |= {"mask_image": _images(requests, "mask_image", size), "height": height, "width": width}
    return arguments


def _images(requests: Sequence[ImageRequest], name: str, size: Size) -> list[Image.Image]:
    height, width = size
    paths = [Path(getattr(request.params, name)) for request in requests]
    return [ImageOps.fit(open_image(path), (width, height)) for path in paths]
