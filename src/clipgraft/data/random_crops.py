"""Random crops of whole photographs, decided by seed, epoch and image."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import CLIPImageProcessorPil

STREAM = 1
"""Keeps the numbers drawn for crops apart from those for captions."""


def without_crop(processor: CLIPImageProcessorPil) -> CLIPImageProcessorPil:
    """Return a processor that resizes alike and keeps all of an image."""
    return CLIPImageProcessorPil.from_dict(processor.to_dict() | {"do_center_crop": False})


@dataclass(frozen=True, slots=True)
class RandomCrops:
    """Random crops, at most as large as the processor's own.

    No flips: captions may say left or right.

    Args:
        processor: CLIP's, with crops of S x S pixels.
        min_scale: Least area, as a share of what its own crop shows of the image; uniform up to 1.
        seed: Decides the crops, together with epoch and image.
    """

    processor: CLIPImageProcessorPil
    min_scale: float
    seed: int

    def __call__(self, whole: np.ndarray, epoch: int, number: int) -> np.ndarray:
        """Cut a crop from anywhere in an image.

        Args:
            whole: The resized image, (3, H, W) uint8, by a processor `without_crop`.
            epoch: 0-based.
            number: The image's.

        Returns:
            (3, S, S) uint8; black where the image is shorter than S, as in the processor's own crop.
        """
        random = np.random.default_rng([self.seed, epoch, number, STREAM])
        side = self.processor.crop_size["height"]
        size = np.array(whole.shape[1:])  # H, W
        shown = np.minimum(size, side)
        cut = shown * math.sqrt(random.uniform(self.min_scale, 1))
        top, left = random.random(2) * (size - cut)
        box = left, top, left + cut[1], top + cut[0]
        image = Image.fromarray(np.ascontiguousarray(whole.transpose(1, 2, 0)))
        resized = image.resize((int(shown[1]), int(shown[0])), self.processor.resample, box)
        crop = np.zeros((3, side, side), np.uint8)
        y, x = -(-(side - shown) // 2)
        crop[:, y : y + shown[0], x : x + shown[1]] = np.asarray(resized).transpose(2, 0, 1)
        return crop
