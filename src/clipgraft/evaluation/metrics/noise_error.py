"""How near a text encoder comes to a base's own: in predicted noise, and in pictures from the same seeds.

Latents are of pictures resized and cut for the VAE; pictures are compared as drawn. One of either is enough.
"""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from clipgraft.models.clip import text_hidden_states

TIMESTEPS = (50, 250, 500, 750, 950)
NOISE_SEED = 0
BATCH_SIZE = 16


@torch.no_grad()
def noise_pred_errors(
    unet: UNet2DConditionModel,
    encoder: nn.Module,
    teacher: nn.Module,
    alphas_cumprod: Tensor,
    latents: Tensor,
    input_ids: Tensor,
    *,
    timesteps: Sequence[int] = TIMESTEPS,
) -> dict[str, float]:
    """Compare the noise that a U-Net predicts with two text encoders, at several timesteps.

    Args:
        unet: On the device of both encoders.
        encoder: In eval mode.
        teacher: The base's own.
        alphas_cumprod: The scheduler's, shape (T,).
        latents: Scaled, (N, 4, h, w).
        input_ids: Of a caption of each, (N, L) int64.
        timesteps: Of the same noise.

    Returns:
        By timestep the squared difference of the predictions over that between the teacher's and the
        prediction without a text: 0 = the teacher's, 1 = as far from it as no text at all.
    """
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = torch.randn(latents.shape, generator=generator)
    empty = torch.full_like(input_ids[:1], int(input_ids[0, -1]))  # EOS pads, and fills the empty prompt
    empty[0, 0] = input_ids[0, 0]
    totals = torch.zeros(len(timesteps), 2, dtype=torch.float64)
    for rows in torch.arange(len(latents)).split(BATCH_SIZE):
        ids = input_ids[rows].to(device)
        states = [
            text_hidden_states(encoder, ids),
            text_hidden_states(teacher, ids),
            text_hidden_states(teacher, empty.to(device)).expand(len(rows), -1, -1),
        ]
        for index, timestep in enumerate(timesteps):
            alpha = alphas_cumprod[timestep].item()
            noisy = alpha**0.5 * latents[rows].float() + (1 - alpha) ** 0.5 * noise[rows]
            noisy = noisy.to(device, unet.dtype)
            # To the CPU first: Apple's GPUs have no float64.
            student, own, blank = (
                unet(noisy, timestep, s.to(unet.dtype)).sample.cpu().double() for s in states
            )
            totals[index, 0] += (student - own).square().sum()
            totals[index, 1] += (blank - own).square().sum()
    ratios = (totals[:, 0] / totals[:, 1]).tolist()
    return {str(timestep): ratio for timestep, ratio in zip(timesteps, ratios, strict=True)}


def pixel_difference(pixels: Tensor, others: Tensor) -> float:
    """Mean absolute difference of pictures (N, 3, H, W) uint8, in levels of 255."""
    return float((pixels.float() - others.float()).abs().mean())


def attribute_agreement(read: Tensor, others: Tensor) -> float:
    """Share of attributes, (N, K) int64 as a probe reads them, that are the same in two sets of pictures."""
    return float((read == others).double().mean())
