"""Image sampling: prompts to embeds, latents and pixels, through diffusers' pipeline.

B images in a batch, L tokens, W width of the embeds, H x W pixels of an image.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils.memory import should_reduce_batch_size
from diffusers import (
    AutoencoderKL,
    SchedulerMixin,
    StableDiffusionPipeline,
)
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from clipgraft.console import say, track
from clipgraft.data.transforms import tokenize
from clipgraft.errors import UserError, number_of
from clipgraft.generation.adapters import Adapters
from clipgraft.generation.engines.networks import EngineDecoder, EngineUNet
from clipgraft.generation.kinds import prepared_for, resolve
from clipgraft.generation.prompt_embeds import PromptEmbedCache
from clipgraft.generation.requests import ImageRequest, batches
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.models.base import FrozenBase
from clipgraft.models.defaults import STABLE_DIFFUSION, SamplingDefaults
from clipgraft.models.graft import GraftedTextEncoder
from clipgraft.sampling_params import SamplingParams
from clipgraft.scheduler_recipes import SCHEDULERS

EmbedPair = tuple[Tensor, Tensor]
"""A request's prompt_embeds and negative_prompt_embeds, (1, L, W) each."""
CALIBRATION_IMAGES, CALIBRATION_STEPS = 2, 8
"""On flatland ranges of one image in 4 steps already kept the prompt fidelity of bfloat16."""


@dataclass(frozen=True)
class GeneratedImage:
    """One generated image and its request."""

    request: ImageRequest
    """Resolved: with the base's own values in place of None."""
    status: str
    """"ok", or a key of `contact_sheet.FAILURES`: "failed_nan", "failed_black", "blocked"."""
    image: Image.Image
    batch: tuple[int, int] = (1, 0)
    """Size of its batch and its index within; another size rounds differently."""
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What the base cannot read of the prompts."""
    metadata: dict[str, Any] | None = field(default=None, kw_only=True)
    """All that is needed to reproduce it."""

    @property
    def prompt(self) -> str:
        """Of the request."""
        return self.request.prompt

    @property
    def seed(self) -> int:
        """Of the request."""
        return self.request.seed


def prompt_input_ids(prompts: Sequence[str], tokenizer: CLIPTokenizer) -> Tensor:
    """Return input ids (B, L) int64, padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenize(prompts, tokenizer, context_length=length, pad_to_context_length=True)


def build_pipeline(
    base: FrozenBase, text_encoder: GraftedTextEncoder | CLIPTextModel
) -> StableDiffusionPipeline:
    """Combine a frozen base with a graft's or its own encoder.

    Raises:
        UserError: If the text encoder's width is not that of the U-Net's cross-attention.
    """
    pipeline = base.pipeline(text_encoder)
    # 25 steps of DPM-Solver++ reach what PNDM, Stable Diffusion's own, needs 50 for.
    pipeline.scheduler = build_scheduler("dpm++", base.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline,
    requests: Sequence[ImageRequest],
    *,
    base_scheduler: SchedulerMixin | None = None,
    defaults: SamplingDefaults = STABLE_DIFFUSION,
    adapters: Adapters | None = None,
    batch_size: int = 4,
    on_step: Callable[[int, int], None] | None = None,
    on_preview: Callable[[Sequence[ImageRequest], list[Image.Image], int], None] | None = None,
    preview_every: int = 0,
    on_less_memory: Callable[[int], None] | None = None,
) -> Iterator[GeneratedImage]:
    """Generate images, each independent of its neighbours in a batch.

    Args:
        pipeline: From `build_pipeline`.
        requests: Neighbours with the same parameters share batches.
        base_scheduler: The base's own; each request's scheduler is made from it. None = the pipeline's.
        defaults: Hold where a request has None.
        adapters: Caches and LoRAs to keep from call to call; None = new ones, without LoRAs.
        batch_size: Images generated at once, at most; halved when memory does not suffice.
        on_step: Called with the denoising steps done and in all, counted per image.
        on_preview: Called each `preview_every` steps with a batch's requests, its images so far and steps.
        on_less_memory: Called with the smaller batch size when memory did not suffice.

    Yields:
        An image for each request, in order.

    Raises:
        UserError: If there is no request, too little memory for one image, or a file that cannot be used.
    """
    if not requests:
        raise UserError("no prompt; give at least one text")
    adapters = adapters or Adapters(PromptEmbedCache(pipeline), None)
    remaining = resolve(pipeline, requests, base_scheduler or pipeline.scheduler, defaults)
    done, total = 0, sum(request.num_steps for request in remaining)

    def report(batch: Sequence[ImageRequest], step: int, latents: Tensor) -> None:
        if on_step:
            on_step(done + step * len(batch), total)
        if on_preview and preview_every and step % preview_every == 0 and step < batch[0].num_steps:
            on_preview(batch, [Image.fromarray(values) for values in decode(pipeline, latents)[0]], step)

    while remaining:
        own, batch, embeds = _next_batch(remaining, batch_size, adapters)
        if base_scheduler is not None:
            pipeline.scheduler = build_scheduler(batch[0].params.scheduler, base_scheduler)
        own.scheduler = pipeline.scheduler
        try:
            calibrate(own, batch, embeds)
            images = _sample_batch(own, batch, embeds, report)
        except (RuntimeError, MemoryError) as error:
            batch_size = _smaller_batch(pipeline, batch, error)
            if on_less_memory:
                on_less_memory(batch_size)
            continue
        del remaining[: len(batch)]
        done += sum(request.num_steps for request in batch)
        yield from images


def _next_batch(
    requests: Sequence[ImageRequest], batch_size: int, adapters: Adapters
) -> tuple[StableDiffusionPipeline, Sequence[ImageRequest], list[EmbedPair]]:
    """Return the next batch's pipeline, requests of equal lengths, and embeds."""
    batch = next(batches(requests, batch_size))
    prompt_embeds = adapters.with_loras(batch[0].params.loras)
    pairs = (prompt_embeds.pair(each.prompt, each.params.negative_prompt, each.params) for each in batch)
    _, same = next(groupby(pairs, key=lambda pair: pair[0].shape[1]))
    embeds = list(same)
    return prompt_embeds.pipeline, batch[: len(embeds)], embeds


def _sample_batch(
    pipeline: StableDiffusionPipeline,
    requests: Sequence[ImageRequest],
    embeds: Sequence[EmbedPair],
    report: Callable[[Sequence[ImageRequest], int, Tensor], None],
) -> list[GeneratedImage]:
    first = requests[0]
    order = pipeline.scheduler.order

    def on_step_end(_pipeline: object, index: int, _time: object, tensors: dict[str, Tensor]) -> dict:
        step, rest = divmod(index + 1, order)  # some run the U-Net twice per step, but once in the last
        if not rest or step == first.num_steps - 1:
            report(
                requests, min(step + rest, first.num_steps), tensors["latents"]
            )  # PNDM runs one step twice
        return tensors

    latents = _denoise(pipeline, requests, embeds, on_step_end)
    pixels, statuses = decode(pipeline, latents)
    pipeline.maybe_free_model_hooks()
    return [
        GeneratedImage(request, status, Image.fromarray(values), (len(requests), index))
        for index, (request, status, values) in enumerate(zip(requests, statuses, pixels, strict=True))
    ]


def _denoise(
    pipeline: StableDiffusionPipeline,
    requests: Sequence[ImageRequest],
    embeds: Sequence[EmbedPair],
    on_step_end: Callable[[object, int, object, dict[str, Tensor]], dict],
) -> Tensor:
    """Return latents (B, 4, H / 8, W / 8)."""
    first, params = requests[0], requests[0].params
    assert params.num_inference_steps is not None
    assert params.guidance_scale is not None
    if isinstance(pipeline.unet, EngineUNet):
        skipped = params.num_inference_steps - first.num_steps
        pipeline.unet.begin(is_guided=first.is_guided, first_step=skipped)
    with prepared_for(pipeline, requests, image_size(pipeline, first)) as run:
        latents: Tensor = run(
            prompt_embeds=torch.cat([positive for positive, _ in embeds]),
            negative_prompt_embeds=torch.cat([negative for _, negative in embeds]),
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
            num_inference_steps=params.num_inference_steps,
            guidance_scale=float(params.guidance_scale),
            eta=SCHEDULERS[params.scheduler].eta,
            output_type="latent",
            callback_on_step_end=on_step_end,
        ).images
    return latents


def calibrate(
    pipeline: StableDiffusionPipeline, requests: Sequence[ImageRequest], embeds: Sequence[EmbedPair]
) -> None:
    """Calibrate a quantized U-Net on a batch, once for a base.

    The first of the batch are made from noise, whatever their strength, in a few steps.

    Args:
        pipeline: Its scheduler is that of the requests.
        requests: A batch.
        embeds: Of each request.
    """
    unet = pipeline.unet
    if not isinstance(unet, EngineUNet) or unet.is_calibrated:
        return
    steps = {"num_inference_steps": CALIBRATION_STEPS, "strength": 1.0}
    few = [
        replace(each, params=SamplingParams.of(each.params, **steps))
        for each in requests[:CALIBRATION_IMAGES]
    ]
    prompts = number_of(len(few), "prompt")
    started = time.monotonic()
    with track(f"calibrating INT8 on {prompts}, once for this base", CALIBRATION_STEPS) as update:

        def on_step_end(_pipeline: object, index: int, _time: object, tensors: dict[str, Tensor]) -> dict:
            update(min(index + 1, CALIBRATION_STEPS), "")
            return tensors

        with unet.calibrating():
            _denoise(pipeline, few, embeds[: len(few)], on_step_end)
    seconds = time.monotonic() - started
    say(f"INT8 calibrated on {prompts} in {CALIBRATION_STEPS} steps: {seconds:.1f} s, kept for this base")


def image_size(pipeline: StableDiffusionPipeline, request: ImageRequest) -> tuple[int, int]:
    """Return height and width in pixels, by default the base's own."""
    own_size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return request.params.height or own_size, request.params.width or own_size


def _smaller_batch(pipeline: StableDiffusionPipeline, batch: Sequence[ImageRequest], error: Exception) -> int:
    """Half the batch's size after an out-of-memory error; raise any other."""
    if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not should_reduce_batch_size(error):
        raise error
    if len(batch) == 1:
        height, width = image_size(pipeline, batch[0])
        raise UserError(
            f"memory does not suffice for one image of {width}x{height} pixels; generate a smaller one, or "
            "on CUDA add --offload sequential"
        ) from error
    return len(batch) // 2


def decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> tuple[np.ndarray, list[str]]:
    """Decode latents and flag failures; retry these in float32.

    Args:
        pipeline: Its VAE decodes; its safety checker, if any, looks at each image.
        latents: (B, 4, H / 8, W / 8), scaled.

    Returns:
        Images (B, H, W, 3) uint8, and the status of each, as in `GeneratedImage`.
    """
    pixels = _decode(pipeline.vae, latents)  # (B, 3, H, W) in about [-1, 1]
    failed = [
        index
        for index, (image, own) in enumerate(zip(pixels, latents, strict=True))
        if _status(image) != "ok" and torch.isfinite(own).all()  # of NaN latents float32 makes NaN too
    ]
    is_rounded = pixels.dtype != torch.float32 or isinstance(pipeline.vae.decoder, EngineDecoder)
    if failed and is_rounded:
        pixels = pixels.float()
        pixels[failed] = _decode(_in_float32(pipeline.vae, latents.device), latents[failed].float())
    statuses = [_status(image) for image in pixels]
    values = torch.nan_to_num((pixels.float() / 2 + 0.5).clamp(0, 1))
    for index in _blocked(pipeline, values):
        statuses[index], values[index] = "blocked", 0
    rounded = (values.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    return rounded, statuses


def _in_float32(vae: AutoencoderKL, device: torch.device) -> AutoencoderKL:
    """Return a copy without engine and without hooks of offload."""
    before = getattr(getattr(vae, "_hf_hook", None), "prev_module_hook", None)  # it holds the U-Net
    own = copy.deepcopy(vae, {id(before): None})
    return remove_hook_from_module(own, recurse=True).to(device, torch.float32)


@torch.no_grad()
def _decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    return vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]


def _status(pixels: Tensor) -> str:
    if not torch.isfinite(pixels).all():
        return "failed_nan"
    is_black = round((float(pixels.max()) / 2 + 0.5) * 255) <= 0  # as 8 bits round it
    return "failed_black" if is_black else "ok"


@torch.no_grad()
def _blocked(pipeline: StableDiffusionPipeline, values: Tensor) -> list[int]:
    if pipeline.safety_checker is None:
        return []
    # A copy: the checker paints black what it blocks.
    _, flags = pipeline.run_safety_checker(
        values.clone() * 2 - 1, values.device, pipeline.safety_checker.dtype
    )
    return [index for index, is_blocked in enumerate(flags) if is_blocked]
