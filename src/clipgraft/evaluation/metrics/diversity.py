"""Diversity between seeds: whether one prompt still gives several pictures."""

import torch
from torch import Tensor

from clipgraft.errors import UserError


def seed_diversity(embeds: Tensor) -> Tensor:
    """Return the mean of `1 - cosine` over all pairs of a prompt's pictures: two at the least.

    Preprocessing is the extractor's own.

    Args:
        embeds: (N, K, P), unit norm: K >= 2 pictures of each of N prompts, which differ in their seed alone.

    Returns:
        (N,) in [0, 2]; 0 where all K are equal to the extractor.

    Raises:
        ValueError: If there is one picture a prompt.
    """
    num_seeds = embeds.shape[1]
    if num_seeds < 2:
        raise UserError(f"diversity needs 2 or more pictures a prompt; got {num_seeds}")
    # Of K unit vectors the cosines of all ordered pairs sum to |sum|^2 - K.
    pairs = embeds.double().sum(1).square().sum(-1) - embeds.double().square().sum((1, 2))
    return 1 - pairs / (num_seeds * (num_seeds - 1))


def nearest_images(embeds: Tensor, image_embeds: Tensor, rows_per_chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find the training image nearest to each picture: one that is a copy was memorised.

    A cosine says nothing alone; held-out photographs' own nearest training images are the measure. One
    training image is enough. Preprocessing is the extractor's own, the same for both.

    Args:
        embeds: (N, P), unit norm.
        image_embeds: (M, P), unit norm.
        rows_per_chunk: Pictures that are compared at once.

    Returns:
        Cosine (N,), and row of the nearest image (N,) int64.
    """
    best = [(chunk.float() @ image_embeds.float().T).max(1) for chunk in embeds.split(rows_per_chunk)]
    return torch.cat([found.values for found in best]), torch.cat([found.indices for found in best])
