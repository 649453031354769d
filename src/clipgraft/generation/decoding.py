"""From latents to pictures, of which none that failed passes for a success. B batch, H x W pixels."""

import copy

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor

from clipgraft.generation.engines.networks import EngineDecoder


def decode(pipeline: StableDiffusionPipeline, latents: Tensor) -> tuple[np.ndarray, list[str]]:
    """Decode latents, a second time in float32 where the VAE's own dtype gave no numbers or only black.

    Args:
        pipeline: Its VAE decodes; its safety checker, where it has one, looks at each picture.
        latents: (B, 4, H / 8, W / 8), scaled.

    Returns:
        Pictures, (B, H, W, 3) uint8, and each one's status: "ok", "failed_nan" (values that are no numbers),
        "failed_black" (nothing but black), or "blocked" (by the safety checker).
    """
    pixels = _decode(pipeline.vae, latents)  # (B, 3, H, W) in about [-1, 1]
    failed = [
        index
        for index, (picture, own) in enumerate(zip(pixels, latents, strict=True))
        if _status(picture) != "ok" and torch.isfinite(own).all()  # of no numbers float32 makes none either
    ]
    is_rounded = pixels.dtype != torch.float32 or isinstance(pipeline.vae.decoder, EngineDecoder)
    if failed and is_rounded:
        precise = copy.deepcopy(pipeline.vae).float()  # an engine's decoder becomes torch's
        pixels = pixels.float()
        pixels[failed] = _decode(precise, latents[failed].float())
    statuses = [_status(picture) for picture in pixels]
    values = torch.nan_to_num((pixels.float() / 2 + 0.5).clamp(0, 1))
    for index in _blocked(pipeline, values):
        statuses[index], values[index] = "blocked", 0
    rounded = (values.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    return rounded, statuses


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
    """Pictures that the base's safety checker blocks; it gets copies, for it paints what it blocks black."""
    if pipeline.safety_checker is None:
        return []
    _, flags = pipeline.run_safety_checker(
        values.clone() * 2 - 1, values.device, pipeline.safety_checker.dtype
    )
    return [index for index, is_blocked in enumerate(flags) if is_blocked]
