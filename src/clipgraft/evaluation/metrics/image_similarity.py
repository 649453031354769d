"""PSNR and SSIM of image pairs; diversity and nearest images by embeddings."""

import torch
from torch import Tensor
from torch.nn import functional as F

from clipgraft.errors import UserError

WINDOW, SIGMA = 11, 1.5
LUMINANCE_CONSTANT, CONTRAST_CONSTANT = 0.01**2, 0.03**2


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, `-10 log10 mean (x - y)^2`.

    Both arguments are (N, 3, H, W) in [0, 1]. Returns (N,) decibels; infinite where a pair is equal.
    """
    return -10 * (images.double() - references.double()).square().mean((1, 2, 3)).log10()


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each pair, averaged over channels and positions.

    Both arguments are (N, 3, H, W) in [0, 1], each side 11 pixels or more. Returns (N,) in [-1, 1]; 1 where a
    pair is equal.

    Source:
        Wang et al. 2004: an 11 x 11 Gaussian window inside the image, sigma 1.5, K1 0.01, K2 0.03.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def local_mean(values: Tensor) -> Tensor:
        rows = F.conv2d(values.flatten(0, 1)[:, None], weights[None, None, :, None])
        return F.conv2d(rows, weights[None, None, None, :])  # (3 N, 1, H - 10, W - 10)

    x, y = images.double(), references.double()
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + LUMINANCE_CONSTANT) / (mean_x**2 + mean_y**2 + LUMINANCE_CONSTANT)
    contrast = (2 * covariance + CONTRAST_CONSTANT) / (var_x + var_y + CONTRAST_CONSTANT)
    return (luminance * contrast).mean((1, 2, 3)).view(len(x), -1).mean(1)


def seed_diversity(embeds: Tensor) -> Tensor:
    """Mean of `1 - cosine` over all pairs of a prompt's images.

    Args:
        embeds: (N, K, P), unit norm: K >= 2 images of each of N prompts, of different seeds.

    Returns:
        (N,) in [0, 2]; 0 where the embeddings of all K are equal.

    Raises:
        UserError: If there is one image per prompt.
    """
    num_seeds = embeds.shape[1]
    if num_seeds < 2:
        raise UserError(f"diversity needs 2 or more images per prompt; got {num_seeds}")
    # Of K unit vectors the cosines of all ordered pairs sum to |sum|^2 - K.
    pairs = embeds.double().sum(1).square().sum(-1) - embeds.double().square().sum((1, 2))
    return 1 - pairs / (num_seeds * (num_seeds - 1))


def nearest_images(embeds: Tensor, image_embeds: Tensor, rows_per_chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Find the training image nearest to each image, to detect memorisation.

    Compare the cosines with those of held-out photographs: a cosine alone says nothing.

    Args:
        embeds: (N, P), unit norm.
        image_embeds: (M, P), unit norm.
        rows_per_chunk: Images compared at once.

    Returns:
        Cosine (N,), and row of the nearest training image (N,) int64.
    """
    best = [(chunk.float() @ image_embeds.float().T).max(1) for chunk in embeds.split(rows_per_chunk)]
    return torch.cat([found.values for found in best]), torch.cat([found.indices for found in best])
