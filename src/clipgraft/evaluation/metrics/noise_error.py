"""Noise prediction error of a text encoder, relative to the teacher's."""

from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from clipgraft.data.buckets import group_by_size
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
    latents: Sequence[Tensor] | Tensor,
    input_ids: Tensor,
    *,
    timesteps: Sequence[int] = TIMESTEPS,
) -> dict[str, float]:
    """Compare a U-Net's noise predictions with two text encoders at several timesteps.

    Args:
        unet: On the same device as both encoders (in eval mode).
        teacher: The base's own text encoder.
        alphas_cumprod: (T,), of the scheduler.
        latents: N of (4, h, w), scaled.
        input_ids: (N, L) int64, one caption per image.

    Returns:
        Timestep -> squared error against the teacher's prediction over that of the empty prompt's:
        0 = the teacher's own, 1 = as far from it as no text at all.
    """
    device = next(unet.parameters()).device
    generator = torch.Generator().manual_seed(NOISE_SEED)
    noise = [torch.randn(each.shape, generator=generator) for each in latents]
    empty = torch.full_like(input_ids[:1], int(input_ids[0, -1]))  # EOS pads, and fills the empty prompt
    empty[0, 0] = input_ids[0, 0]
    totals = torch.zeros(len(timesteps), 2, dtype=torch.float64)
    for rows in group_by_size([each.shape for each in latents], BATCH_SIZE):
        ids = input_ids[rows].to(device)
        states = [
            text_hidden_states(encoder, ids),
            text_hidden_states(teacher, ids),
            text_hidden_states(teacher, empty.to(device)).expand(len(rows), -1, -1),
        ]
        for index, timestep in enumerate(timesteps):
            alpha = alphas_cumprod[timestep].item()
            pairs = ((latents[row].float(), noise[row]) for row in rows)
            noisy = torch.stack([alpha**0.5 * own + (1 - alpha) ** 0.5 * added for own, added in pairs])
            noisy = noisy.to(device, unet.dtype)
            # To the CPU first: Apple's GPUs have no float64.
            student, own, blank = (
                unet(noisy, timestep, s.to(unet.dtype)).sample.cpu().double() for s in states
            )
            totals[index, 0] += (student - own).square().sum()
            totals[index, 1] += (blank - own).square().sum()
    ratios = (totals[:, 0] / totals[:, 1]).tolist()
    return {str(timestep): ratio for timestep, ratio in zip(timesteps, ratios, strict=True)}
