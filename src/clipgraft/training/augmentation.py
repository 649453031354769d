"""Augmentation of batches on the device. No flips: captions may say left or right."""

import torch
from torch import Tensor
from torch.nn import functional as F


def random_resized_crop(pixels: Tensor, min_scale: float) -> Tensor:
    """Cut a random square from each image and resize it (bilinear) to the image's size.

    Args:
        pixels: (B, 3, S, S), float.
        min_scale: Least area of the square as a share of the image's, in (0, 1]; drawn evenly up to 1.

    Returns:
        (B, 3, S, S) in the dtype of `pixels`, by torch's global random state.
    """
    random = torch.rand(3, len(pixels), device=pixels.device)
    side = (min_scale + (1 - min_scale) * random[0]).sqrt()  # (B,)
    # In affine_grid's coordinates the image reaches from -1 to 1, so a crop's centre has 1 - side to go.
    center = (1 - side) * (2 * random[1:] - 1)  # (2, B)
    theta = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = center.T
    with torch.autocast(pixels.device.type, enabled=False):  # in bfloat16 a place is known to half a pixel
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels.float(), grid, padding_mode="reflection", align_corners=False).to(pixels)
