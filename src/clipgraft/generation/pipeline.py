"""Drawing pictures with diffusers' own pipeline, the grafted encoder in the place of its text encoder."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from transformers import CLIPTextModel

from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.base import FrozenBase
from clipgraft.models.encoder import GraftedTextEncoder

MAX_SLUG_LENGTH = 50
"""Characters of a prompt in a file name: file systems end at 255 bytes, a character has up to four."""


class Job(NamedTuple):
    """One picture to draw."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Picture:
    """One drawn picture and what it was drawn from."""

    prompt: str
    seed: int
    status: str
    """"ok", "failed_nan" (values that are no numbers) or "failed_black" (nothing but black)."""
    image: Image.Image


def build_pipeline(
    base: FrozenBase, text_encoder: GraftedTextEncoder | CLIPTextModel, *, scheduler: str = "dpm++"
) -> StableDiffusionPipeline:
    """Put a text encoder, a graft or the base's own, and a frozen base together.

    Args:
        base: VAE, U-Net, tokenizer and scheduler.
        text_encoder: Gives `last_hidden_state` as wide as the U-Net's cross-attention.
        scheduler: A name of `schedulers.SCHEDULERS`.

    Raises:
        ValueError: If the text encoder's width is not the U-Net's, or there is no such scheduler.
    """
    assert base.unet is not None
    assert base.scheduler is not None
    width, needed = text_encoder.config.hidden_size, base.unet.config.cross_attention_dim
    if width != needed:
        raise ValueError(
            f"the graft gives states of width {width}, but this base's U-Net takes {needed}; "
            "use the base that the graft was made for"
        )
    pipeline = StableDiffusionPipeline(
        vae=base.vae,
        unet=base.unet,
        text_encoder=text_encoder,
        tokenizer=base.tokenizer,
        scheduler=build_scheduler(scheduler, base.scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    jobs: Sequence[Job],
    *,
    negative_prompt: str = "",
    num_inference_steps: int = 25,
    guidance_scale: float = 7.5,
    height: int = 0,
    width: int = 0,
    batch_size: int = 4,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Picture]:
    """Draw pictures; each has a generator of its own, so its neighbours in a batch do not change it.

    Args:
        pipeline: From `build_pipeline`.
        jobs: Prompt and seed of each picture.
        negative_prompt: What to lead away from.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of the prompt against the negative prompt; 1 = no guidance.
        height: Pixels, a multiple of the VAE's scale; 0 = the base's own size.
        width: The same.
        batch_size: Pictures drawn at once.
        on_step: Called with the denoising steps done and in all, counted for each picture.

    Yields:
        A picture for each job, in order.

    Raises:
        ValueError: If there is no job, or a size does not fit.
    """
    if not jobs:
        raise ValueError("no prompt to draw; give at least one text")
    height, width = _picture_size(pipeline, height, width)
    for start in range(0, len(jobs), batch_size):
        batch = jobs[start : start + batch_size]

        def report(_pipe: object, step: int, _time: object, tensors: dict, done: int = start) -> dict:
            if on_step:
                size = min(batch_size, len(jobs) - done)
                on_step(done * num_inference_steps + (step + 1) * size, len(jobs) * num_inference_steps)
            return tensors

        pixels = pipeline(
            prompt=[job.prompt for job in batch],
            negative_prompt=[negative_prompt] * len(batch),
            generator=[torch.Generator("cpu").manual_seed(job.seed) for job in batch],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            output_type="np",
            callback_on_step_end=report,
        ).images  # (B, H, W, 3) in [0, 1]
        for job, values in zip(batch, pixels, strict=True):
            yield _to_picture(job, values)


def _picture_size(pipeline: StableDiffusionPipeline, height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels, the base's own where 0; refuse what the VAE cannot halve evenly."""
    own_size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    height, width = height or own_size, width or own_size
    for name, size in (("height", height), ("width", width)):
        if size % pipeline.vae_scale_factor:
            raise ValueError(f"{name} must be a multiple of {pipeline.vae_scale_factor} pixels; got {size}")
    return height, width


def _to_picture(job: Job, values: np.ndarray) -> Picture:
    """A picture of no numbers, or of black alone, is never a success."""
    status = "ok"
    if not np.isfinite(values).all():
        status = "failed_nan"
    elif values.max() < 1 / 255:
        status = "failed_black"
    image = Image.fromarray((np.nan_to_num(values).clip(0, 1) * 255).round().astype(np.uint8))
    return Picture(job.prompt, job.seed, status, image)


def picture_file_name(prompt: str, seed: int) -> str:
    """File name that tells a picture's prompt and seed: "a-dog-on-the-beach_seed0.png"."""
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:MAX_SLUG_LENGTH].rstrip("-") or "empty-prompt"
    return f"{slug}_seed{seed}.png"
