"""Distances between two sets of images: CMMD, KID, FID; smaller is closer.

Computed in float64 of features (N, D) of generated and (M, D) of real images. Both sets need the same feature
extractor and resize filter.
"""

import torch
from torch import Tensor

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
LEAST_FOR_CMMD, LEAST_FOR_KID = 100, 50
"""Images per set (guesses): with fewer, intervals are wider than any difference of interest."""
LEAST_FORCED = 2
"""Images per set: KID needs a pair, FID a covariance."""
ROWS_PER_CHUNK = 1024


def cmmd(generated: Tensor, real: Tensor) -> float:
    """Squared maximum mean discrepancy of CLIP embeds (unit norm), times 1,000.

    `mean k(x, x') + mean k(y, y') - 2 mean k(x, y)` with `k(x, y) = exp(-|x - y|^2 / (2 sigma^2))`, sigma 10,
    each mean over all pairs including x with itself. This published estimator is biased upwards by about
    1000 (1 - mean k) (1 / N + 1 / M), so compare sets of equal size. Published figures use ViT-L/14 at 336
    pixels and 30,000 images.

    Source:
        Jayasumana et al. 2024, and the code beside it.
    """
    x, y = generated.double(), real.double()
    return CMMD_SCALE * (_mean_gaussian(x, x) + _mean_gaussian(y, y) - 2 * _mean_gaussian(x, y))


def kid(generated: Tensor, real: Tensor) -> float:
    """Unbiased squared MMD of image features; may be negative.

    The kernel is `(x . y / D + 1)^3`. Computed over all images at once; the published code averages 100
    subsets of 1,000.

    Source:
        Binkowski et al. 2018, equation 4; its features are Inception's 2,048.
    """
    x, y = generated.double(), real.double()
    return _mean_off_diagonal(x) + _mean_off_diagonal(y) - 2 * float(_cubic(x, y).mean())


def fid(generated: Tensor, real: Tensor) -> float:
    """Frechet distance between Gaussians fitted to image features.

    `|mu_x - mu_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))`, covariances over N - 1. Biased upwards, the more so
    the fewer images: 134 for 259 images, 12.6 for 30,000 (CompVis/latent-diffusion issue 90).

    Source:
        Heusel et al. 2017; its features are Inception's 2,048.
    """
    x, y = generated.double(), real.double()
    root = _root(_covariance(x))
    between = torch.linalg.eigvalsh(root @ _covariance(y) @ root).clamp(min=0).sqrt().sum()
    spread = x.var(0).sum() + y.var(0).sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * between)


def shortage(
    metric: str, num_generated: int, num_real: int, num_features: int, *, force: bool = False
) -> str:
    """Return why a distance was skipped for lack of images, or "".

    FID needs more images than features, else both covariances are singular; `force` lowers each minimum to 2.
    """
    least = {"cmmd": LEAST_FOR_CMMD, "kid": LEAST_FOR_KID, "fid": num_features + 1}[metric]
    least = LEAST_FORCED if force else least
    found = min(num_generated, num_real)
    if found >= least:
        return ""
    return (
        f"{metric.upper()} was not computed: it needs {least} images of each set, got {num_generated} "
        f"generated and {num_real} real ones{'' if force else '; --force computes it from fewer'}"
    )


def _mean_gaussian(x: Tensor, y: Tensor) -> float:
    total = 0.0
    for rows in x.split(ROWS_PER_CHUNK):
        # |x|^2 + |y|^2 - 2 x.y, as cdist's differences would take D times the memory.
        squared = rows.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * rows @ y.T
        total += float(torch.exp(-squared.clamp(min=0) / (2 * CMMD_SIGMA**2)).sum())
    return total / (len(x) * len(y))


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_off_diagonal(x: Tensor) -> float:
    kernel = _cubic(x, x)
    return float(kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _covariance(x: Tensor) -> Tensor:
    return torch.atleast_2d(x.T.cov())
