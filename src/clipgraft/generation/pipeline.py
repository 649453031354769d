"""Drawing pictures with diffusers' own pipeline, the grafted encoder in the place of its text encoder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from diffusers import (
    SchedulerMixin,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPTextModel

from clipgraft.data.images import open_image
from clipgraft.errors import UserError
from clipgraft.generation.decoding import decode
from clipgraft.generation.engines.networks import EngineUNet
from clipgraft.generation.params import Job, batches
from clipgraft.generation.prompt_embeds import PromptStates
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.base import FrozenBase
from clipgraft.models.defaults import STABLE_DIFFUSION, DrawingDefaults
from clipgraft.models.graft import GraftedTextEncoder


@dataclass(frozen=True)
class Picture:
    """One drawn picture and what it was drawn from."""

    job: Job
    status: str
    """"ok", "failed_nan" (values that are no numbers), "failed_black" (nothing but black), or "blocked" (by
    the base's safety checker)."""
    image: Image.Image
    batch: tuple[int, int] = (1, 0)
    """Pictures that were drawn at once, and this one's place among them: another number rounds otherwise."""
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What the base cannot read of the prompts."""
    metadata: dict[str, Any] | None = field(default=None, kw_only=True)
    """All that is needed to draw it again."""

    @property
    def prompt(self) -> str:
        """The job's."""
        return self.job.prompt

    @property
    def seed(self) -> int:
        """The job's."""
        return self.job.seed


def build_pipeline(
    base: FrozenBase, text_encoder: GraftedTextEncoder | CLIPTextModel
) -> StableDiffusionPipeline:
    """Put a text encoder, a graft or the base's own, and a frozen base together.

    The scheduler is DPM-Solver++ 2M with Karras sigmas, made from the base's own noise schedule: its 25 steps
    reach what PNDM, Stable Diffusion's own, needs 50 for.

    Args:
        base: VAE, U-Net, tokenizer and scheduler.
        text_encoder: See `FrozenBase.pipeline`.

    Raises:
        UserError: If the text encoder's width is not the U-Net's.
    """
    assert base.scheduler is not None
    pipeline = base.pipeline(text_encoder)
    pipeline.scheduler = build_scheduler("dpm++", base.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    jobs: Sequence[Job],
    *,
    base_scheduler: SchedulerMixin | None = None,
    defaults: DrawingDefaults = STABLE_DIFFUSION,
    states: PromptStates | None = None,
    batch_size: int = 4,
    on_step: Callable[[int, int], None] | None = None,
    on_preview: Callable[[Sequence[Job], list[Image.Image], int], None] | None = None,
    preview_every: int = 0,
    on_less_memory: Callable[[int], None] | None = None,
) -> Iterator[Picture]:
    """Draw pictures; each has a generator of its own, so its neighbours in a batch do not change it.

    Where memory does not suffice for a batch, batches are halved from there on.

    Args:
        pipeline: From `build_pipeline`.
        jobs: What to draw; neighbours with the same settings share batches.
        base_scheduler: The base's own; each job's scheduler is made from it. None = the pipeline's for all.
        defaults: Settings that hold where a job names none.
        states: Keeps prompts' states from call to call; None = for this call alone.
        batch_size: Pictures drawn at once, at most.
        on_step: Called with the denoising steps done and in all, counted for each picture.
        on_preview: Called with a batch's jobs, its pictures as they are, and the steps done.
        preview_every: Steps between previews; 0 = none.
        on_less_memory: Called with the new batch size when a batch did not fit into memory.

    Yields:
        A picture for each job, in order.

    Raises:
        ValueError: If there is no job, a scheduler cannot take a job's steps, or memory does not suffice for
            one picture.
        DataError: If a job's first picture cannot be read.
    """
    if not jobs:
        raise UserError("no prompt to draw; give at least one text")
    states = states or PromptStates(pipeline)
    num_levels = (base_scheduler or pipeline.scheduler).config.num_train_timesteps
    jobs = [job.resolved(defaults, num_levels) for job in jobs]
    done, total = 0, sum(job.num_steps for job in jobs)

    def report(batch: Sequence[Job], step: int, latents: Tensor) -> None:
        if on_step:
            on_step(done + step * len(batch), total)
        if on_preview and preview_every and step % preview_every == 0 and step < batch[0].num_steps:
            on_preview(batch, [Image.fromarray(values) for values in decode(pipeline, latents)[0]], step)

    remaining = list(jobs)
    while remaining:
        batch = next(batches(remaining, batch_size))
        if base_scheduler is not None:
            pipeline.scheduler = build_scheduler(batch[0].scheduler, base_scheduler)
        try:
            pictures = _draw_batch(pipeline, batch, states, report)
        except (RuntimeError, MemoryError) as error:
            batch_size = _smaller_batch(pipeline, batch, error)
            if on_less_memory:
                on_less_memory(batch_size)
            continue
        del remaining[: len(batch)]
        done += sum(job.num_steps for job in batch)
        yield from pictures


def picture_size(pipeline: StableDiffusionPipeline, job: Job) -> tuple[int, int]:
    """Height and width of a job's picture in pixels, the base's own where it names none."""
    own_size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return job.height or own_size, job.width or own_size


def _draw_batch(
    pipeline: StableDiffusionPipeline,
    jobs: Sequence[Job],
    states: PromptStates,
    report: Callable[[Sequence[Job], int, Tensor], None],
) -> list[Picture]:
    first = jobs[0]
    assert first.num_inference_steps is not None
    assert first.guidance_scale is not None
    height, width = picture_size(pipeline, first)

    def on_step_end(_pipeline: object, step: int, _time: object, tensors: dict[str, Tensor]) -> dict:
        report(jobs, min(step + 1, first.num_steps), tensors["latents"])  # PNDM runs one step twice
        return tensors

    if isinstance(pipeline.unet, EngineUNet):
        skipped = first.num_inference_steps - first.num_steps
        pipeline.unet.begin(is_guided=first.is_guided, first_step=skipped)
    settings: dict[str, Any] = {"height": height, "width": width}
    if first.init_image is not None:
        pipeline = _image_to_image(pipeline)
        images = [ImageOps.fit(open_image(job.init_image), (width, height)) for job in jobs]  # type: ignore[arg-type]
        settings = {"image": images, "strength": first.strength}
    latents = pipeline(
        prompt_embeds=states([job.prompt for job in jobs]),
        negative_prompt_embeds=states([job.negative_prompt for job in jobs]),
        generator=[torch.Generator("cpu").manual_seed(job.seed) for job in jobs],
        num_inference_steps=first.num_inference_steps,
        guidance_scale=float(first.guidance_scale),
        output_type="latent",
        callback_on_step_end=on_step_end,
        **settings,
    ).images  # (B, 4, H / 8, W / 8)
    pixels, statuses = decode(pipeline, latents)
    pipeline.maybe_free_model_hooks()
    return [
        Picture(job, status, Image.fromarray(values), (len(jobs), index))
        for index, (job, status, values) in enumerate(zip(jobs, statuses, pixels, strict=True))
    ]


def _image_to_image(pipeline: StableDiffusionPipeline) -> StableDiffusionImg2ImgPipeline:
    """The sibling that starts from a picture, of the same components."""
    # Not by from_pipe, which would cast every component, the float32 safety checker too, to one dtype.
    sibling = StableDiffusionImg2ImgPipeline(
        **pipeline.components, requires_safety_checker=pipeline.safety_checker is not None
    )
    sibling.set_progress_bar_config(disable=True)
    return sibling


def _smaller_batch(pipeline: StableDiffusionPipeline, batch: Sequence[Job], error: Exception) -> int:
    """Half a batch that memory did not suffice for; any other error goes on."""
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not should_reduce_batch_size(error):
        raise error
    if len(batch) == 1:
        height, width = picture_size(pipeline, batch[0])
        raise UserError(
            f"memory does not suffice for one picture of {width}x{height} pixels; draw a smaller one, or on "
            "CUDA add --offload sequential"
        ) from error
    return len(batch) // 2
