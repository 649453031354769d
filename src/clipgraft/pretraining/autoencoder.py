"""Latents and images by flatland's VAE."""

from contextlib import AbstractContextManager, nullcontext

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from clipgraft.console import track
from clipgraft.data.batches import from_uint8, to_uint8
from clipgraft.device import inference_dtype

ENCODE_BATCH_SIZE = 32
"""On a GPU a multiple, for speed alone."""
GPU_FACTOR = 8


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode uint8 pixels (N, 3, H, W) to unscaled latents (N, 4, H/8, W/8), on the VAE's device."""
    with _autocast(vae.device):
        means = [_mean(vae, batch) for batch in pixels.split(_batch_size(vae))]
    return torch.cat(means).float().contiguous()


@torch.no_grad()
def decode_again(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode and decode uint8 pixels (N, 3, H, W), fast and on the VAE's device."""
    with _autocast(vae.device):
        batches = pixels.split(_batch_size(vae))
        return torch.cat([to_uint8(vae.decode(_mean(vae, batch)).sample.float()) for batch in batches])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode and decode uint8 pixels (N, 3, H, W) in float32, on the CPU."""
    decoded = []
    with track("reconstructing images", len(pixels)) as update:
        for batch in pixels.split(ENCODE_BATCH_SIZE):
            decoded.append(to_uint8(vae.decode(_mean(vae, batch)).sample.cpu()))
            update(min(len(decoded) * ENCODE_BATCH_SIZE, len(pixels)), "images")
    return torch.cat(decoded)


def reconstruction_psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Mean PSNR in dB of uint8 pixels (N, 3, H, W), encoded and decoded."""
    error = (reconstruct(vae, pixels).float() - pixels.float()).square().mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / error)).mean())


def _mean(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    return vae.encode(from_uint8(pixels.to(vae.device))).latent_dist.mean


def _batch_size(vae: AutoencoderKL) -> int:
    return ENCODE_BATCH_SIZE * (1 if vae.device.type == "cpu" else GPU_FACTOR)


def _autocast(device: torch.device) -> AbstractContextManager[None]:
    dtype = inference_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)
