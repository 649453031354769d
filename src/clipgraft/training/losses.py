"""Losses as pure functions; all compute in float32 whatever the precision of their inputs.

B batch, L tokens, D hidden width, P joint width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor) -> Tensor:
    """CLIP's loss: the cross-entropy of finding each image's caption and each caption's image in the batch.

    Args:
        image_embeds: Unit-norm rows, shape (B, P).
        text_embeds: Unit-norm rows, shape (B, P); row i belongs to image i.
        logit_scale: The log of the multiplier, scalar.

    Returns:
        Mean of both directions, float32 scalar.

    Source:
        Radford et al. 2021, figure 3. Logits are computed in float32: in float16 a cosine of 0.3 is known
        to 2.4e-4 only, which a multiplier of 100 turns into 0.024 of a logit.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = logit_scale.float().exp() * image_embeds.float() @ text_embeds.float().T  # (B, B)
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def state_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Weighted error of token states: squared error relative to the teacher's power, plus 1 - cosine.

    Args:
        student: Shape (B, L, D).
        teacher: Shape (B, L, D).
        weights: Importance of each position, shape (B, L); zero leaves a position out.

    Returns:
        float32 scalar; 0 where both agree.
    """
    student, teacher, weights = student.float(), teacher.float(), weights.float()
    scale = (weights * teacher.square().mean(-1)).sum()
    squared = (weights * (student - teacher).square().mean(-1)).sum() / scale
    cosine = F.cosine_similarity(student, teacher, dim=-1)
    return squared + (weights * (1 - cosine)).sum() / weights.sum()


def min_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float) -> Tensor:
    """Weight of each sample's noise-prediction loss, so that easy low-noise steps do not dominate.

    Args:
        alphas_cumprod: The scheduler's, shape (T,).
        timesteps: int64 in [0, T), shape (B,).
        gamma: Cap of the signal-to-noise ratio.

    Returns:
        min(SNR, gamma) / SNR, float32, shape (B,).

    Source:
        Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", epsilon prediction.
    """
    alphas = alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = alphas / (1 - alphas)
    return snr.clamp(max=gamma) / snr
