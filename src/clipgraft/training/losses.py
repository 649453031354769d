"""Losses as pure functions, computed in float32.

B batch, N images, M captions, L tokens, D hidden width, P joint width.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgraft.errors import UserError
from clipgraft.training.exchange import Gather, alone

DuplicateImages = Literal["mask", "positive", "negative"]

LOWEST = torch.finfo(torch.float32).min
"""A masked logit; with minus infinity the gradient of an empty sum would be NaN."""


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    *,
    caption_row: Tensor | None = None,
    duplicate_id: Tensor | None = None,
    duplicate_images: DuplicateImages = "mask",
    gather: Gather = alone,
) -> Tensor:
    """CLIP's loss: cross-entropy over images and over captions.

    Of several processes each has the logits of its own captions alone.

    Args:
        image_embeds: Unit-norm rows, (N, P), of all processes.
        text_embeds: Unit-norm rows, (M, P), of this process.
        logit_scale: Log of the multiplier, scalar.
        caption_row: Row of each caption's image, int64 (M,); None = row i.
        duplicate_id: int64 (N,), equal for duplicates; None = all differ.
        duplicate_images: Treatment of other captions of the same image: "mask" leaves them out, "positive"
            splits the target among them, "negative" is the plain loss over M pairs.
        gather: Rows of all processes.

    Returns:
        Mean of both directions over the captions of all processes, float32 scalar.

    Raises:
        UserError: If `duplicate_images` is another word, or captions without `caption_row` are not as many as
            images.

    Source:
        Radford et al. 2021, figure 3; "positive": Khosla et al. 2020, equation 2.
    """
    # float16 rounds a cosine of 0.3 by 2.4e-4, which a multiplier of 100 turns into 0.024 of a logit.
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = logit_scale.float().exp() * (text_embeds.float() @ image_embeds.float().T)  # (M, N)
        row, is_same = _matches(logits, caption_row, duplicate_id, duplicate_images)
        if duplicate_images == "positive":
            return _shared_cross_entropy(logits, is_same, gather)
        own = logits.gather(1, row[:, None])[:, 0]  # (M,)
        if duplicate_images == "negative":
            # An image comes once for each of its captions.
            times = gather(row).bincount(minlength=logits.shape[1])
            by_text = (logits + times.float().log()).logsumexp(1) - own
            by_image = _logsumexp_over_captions(logits, gather)[row] - own
        else:
            negatives = logits.masked_fill(is_same, LOWEST)
            # -log(e^own / (e^own + sum of e^negative)), over images and over captions
            by_text = F.softplus(negatives.logsumexp(1) - own)
            by_image = F.softplus(_logsumexp_over_captions(negatives, gather)[row] - own)
        return (gather(by_text).mean() + gather(by_image).mean()) / 2


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    caption_row: Tensor | None = None,
    duplicate_id: Tensor | None = None,
    duplicate_images: DuplicateImages = "mask",
    gather: Gather = alone,
) -> Tensor:
    """SigLIP's loss: binary cross-entropy of every pair of image and caption.

    Arguments are those of `contrastive_loss`, plus `logit_bias` (see `balanced_bias`).

    Returns:
        Sum over images, mean over captions, float32 scalar.

    Source:
        Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", algorithm 1.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = logit_scale.float().exp() * (text_embeds.float() @ image_embeds.float().T) + logit_bias
        row, is_same = _matches(logits, caption_row, duplicate_id, duplicate_images)
        is_own = row[:, None] == torch.arange(logits.shape[1], device=logits.device)
        sign = torch.where(is_same if duplicate_images == "positive" else is_own, 1.0, -1.0)
        counts = ~is_same | is_own if duplicate_images == "mask" else torch.ones_like(is_own)
        return gather(-(F.logsigmoid(sign * logits) * counts).sum(1)).mean()


def balanced_bias(logits: Tensor, gather: Gather = alone) -> Tensor:
    """Find by bisection the bias with one expected match per caption.

    SigLIP's own start, -10 at a multiplier of 10, is for random weights. A CLIP trained with softmax has
    multiplier 100 and cosines of 0.2 to 0.3: its first loss would be in the hundreds.

    Args:
        logits: Logits of this process's captions and all images, without bias, (M, N); N at least 2.
        gather: Rows of all processes.

    Returns:
        float32 scalar b with mean sigmoid(logits + b) = 1 / N over all captions.
    """
    assert logits.shape[1] > 1, "no bias expects one pair of one image"
    logits = logits.double()
    low, high = -gather(logits.max()[None]).max() - 50, -gather(logits.min()[None]).min() + 50
    for _ in range(60):  # halves an interval of about 300 to float32's precision
        middle = (low + high) / 2
        mean = gather(torch.sigmoid(logits + middle).mean()[None]).mean()
        low, high = (low, middle) if mean > 1 / logits.shape[1] else (middle, high)
    return middle.float()


def _matches(
    logits: Tensor, caption_row: Tensor | None, duplicate_id: Tensor | None, duplicate_images: str
) -> tuple[Tensor, Tensor]:
    """Return each caption's image row (M,) and that image's duplicates (M, N)."""
    known = get_args(DuplicateImages)
    if duplicate_images not in known:
        raise UserError(f"duplicate_images must be one of {', '.join(known)}; got {duplicate_images!r}")
    if caption_row is None and logits.shape[0] != logits.shape[1]:
        counts = f"{logits.shape[0]} captions and {logits.shape[1]} images"
        raise UserError(f"{counts}: name each caption's image (caption_row)")
    rows = torch.arange(logits.shape[1], device=logits.device)
    row = rows if caption_row is None else caption_row
    ids = rows if duplicate_id is None else duplicate_id
    return row, ids[row][:, None] == ids


def _logsumexp_over_captions(logits: Tensor, gather: Gather) -> Tensor:
    """Return each image's (N,) over the captions of all processes."""
    parts = gather(logits.logsumexp(0))
    return parts.view(-1, logits.shape[1]).logsumexp(0)


def _shared_cross_entropy(logits: Tensor, is_target: Tensor, gather: Gather) -> Tensor:
    """Return the mean of both directions, targets being split evenly."""
    by_text = F.cross_entropy(logits, is_target / is_target.sum(1, keepdim=True), reduction="none")
    sums, counts = (
        gather(values.sum(0)).view(-1, logits.shape[1]).sum(0) for values in (logits * is_target, is_target)
    )
    by_image = _logsumexp_over_captions(logits, gather) - sums / counts
    return (gather(by_text).mean() + by_image.mean()) / 2


def state_errors(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Sum errors of hidden states over a caption's positions, for `state_loss`.

    Args:
        student: (B, L, D).
        teacher: (B, L, D).
        weights: Weights of positions, (B, L).

    Returns:
        float32 (B, 5), weighted sums of: squared error, the teacher's power, 1 - cosine, squared relative
        difference of norms, 1.
    """
    student, teacher, weights = student.float(), teacher.float(), weights.float()
    squared = (student - teacher).square().mean(-1)
    distance = 1 - F.cosine_similarity(student, teacher, dim=-1)
    # The epsilon keeps the gradient of a norm finite at a state of zero.
    norms = [(states.square().sum(-1) + 1e-12).sqrt() for states in (student, teacher)]
    stretch = (norms[0] / norms[1] - 1).square()
    sums = [squared, teacher.square().mean(-1), distance, stretch, torch.ones_like(squared)]
    return torch.stack([(weights * value).sum(1) for value in sums], dim=1)


def state_loss(errors: Tensor, *, cosine_weight: float = 1.0, norm_weight: float = 0.0) -> Tensor:
    """Return relative squared error plus weighted errors of direction and norm.

    Args:
        errors: (B, 5) from `state_errors`.
        cosine_weight: Weight of the mean of 1 - cosine.
        norm_weight: Weight of the mean squared relative difference of norms.
    """
    squared, power, distance, stretch, weight = errors.sum(0)
    return squared / power + (cosine_weight * distance + norm_weight * stretch) / weight


def clamped_snr_weights(alphas_cumprod: Tensor, timesteps: Tensor, gamma: float) -> Tensor:
    """Return weights of the noise-prediction loss by clamped signal-to-noise ratio (SNR).

    Low-noise steps are capped at `gamma`, as in min-SNR. Below an SNR of 1, min-SNR weighs the noise's error
    by 1; here the image's error counts, 1 / SNR times as much. At that noise only the text determines global
    properties, such as the time of day, and the noise's error hardly shows them: without this floor a trial
    generated any time of day. The floor dominates: with Stable Diffusion's schedule and a gamma of 5, 98.7 %
    of the weights' sum lie on the 64.6 % of timesteps with an SNR below 1.

    Args:
        alphas_cumprod: The scheduler's, (T,).
        timesteps: int64 in [0, T), (B,).
        gamma: Cap of the signal-to-noise ratio, at least 1.

    Returns:
        clamp(SNR, 1, gamma) / SNR, float32, (B,).

    Source:
        Cap: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", epsilon
        prediction. Floor: Salimans and Ho 2022, "Progressive Distillation", section 4, truncated SNR.
    """
    alphas = alphas_cumprod.to(timesteps.device)[timesteps].float()
    snr = alphas / (1 - alphas)
    return snr.clamp(1, gamma) / snr
