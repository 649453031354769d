"""Likeness of two pictures of the same prompt and seed, pixel by pixel.

Pictures are compared as they were drawn, neither resized nor cropped. Each pair is a sample; one is enough.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5
LUMINANCE_CONSTANT, CONTRAST_CONSTANT = 0.01**2, 0.03**2


def psnr(pictures: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair, `-10 log10 mean (x - y)^2`.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        references: The same.

    Returns:
        (N,) decibels; infinite where a pair is equal.
    """
    return -10 * (pictures.double() - references.double()).square().mean((1, 2, 3)).log10()


def ssim(pictures: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each pair, by an 11 x 11 Gaussian window: the mean over channels and places.

    Args:
        pictures: (N, 3, H, W) in [0, 1], each side 11 pixels or more.
        references: The same.

    Returns:
        (N,) in [-1, 1]; 1 where a pair is equal.

    Source:
        Wang et al. 2004: sigma 1.5, K1 0.01, K2 0.03; the window stays within the picture.
    """
    offsets = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()

    def local_mean(values: Tensor) -> Tensor:
        rows = F.conv2d(values.flatten(0, 1)[:, None], weights[None, None, :, None])
        return F.conv2d(rows, weights[None, None, None, :])  # (3 N, 1, H - 10, W - 10)

    x, y = pictures.double(), references.double()
    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + LUMINANCE_CONSTANT) / (mean_x**2 + mean_y**2 + LUMINANCE_CONSTANT)
    contrast = (2 * covariance + CONTRAST_CONSTANT) / (var_x + var_y + CONTRAST_CONSTANT)
    return (luminance * contrast).mean((1, 2, 3)).view(len(x), -1).mean(1)
