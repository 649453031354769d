"""Sets that fit in memory, decoded or encoded once; batches that only seed, epoch and position decide."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import open_image
from clipgraft.data.transforms import pad_input_ids, vae_pixel_values


def load_pixels(images: Sequence[CaptionedImage], size: int) -> Tensor:
    """Decode images once: (N, 3, size, size) uint8, resized to fill the square and centre-cropped."""
    pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for index, image in enumerate(images):
        pixels[index] = to_uint8(vae_pixel_values([open_image(image.path)], size)[0])
    return pixels


def to_uint8(pixels: Tensor) -> Tensor:
    """Turn pixels in [-1, 1] into uint8."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


NUM_CANDIDATES = 4
"""Crops among which CropBatches takes the one with most detail."""


class CropBatches:
    """Random square crops, each the richest in detail of four; every image gives one an epoch.

    Subjects are a small part of a picture and skies a large one: taking the crop with the greatest mean
    difference between neighbouring rows shows a model more of the subjects for the same cost.

    Args:
        pixels: (N, 3, H, W) uint8.
        crop_size: Side of the crop, at most H and W.
        batch_size: Crops in a batch; an epoch's last, smaller batch is left out.
        seed: Decides order and places, together with the epoch.
    """

    def __init__(self, pixels: Tensor, *, crop_size: int, batch_size: int, seed: int):
        self.pixels, self.crop_size, self.batch_size, self.seed = pixels, crop_size, batch_size, seed

    def __len__(self) -> int:
        return len(self.pixels) // self.batch_size

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Give `vae_pixel_values` (B, 3, crop_size, crop_size) in [-1, 1]."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.pixels))
        free = np.array(self.pixels.shape[2:]) - self.crop_size
        corners = random.integers(0, free + 1, size=(len(self.pixels), NUM_CANDIDATES, 2))
        for batch in range(start, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            crops = [max((self._crop(i, *corner) for corner in corners[i]), key=_detail) for i in chosen]
            yield {"vae_pixel_values": from_uint8(torch.stack(crops))}

    def _crop(self, index: int, top: int, left: int) -> Tensor:
        return self.pixels[index, :, top : top + self.crop_size, left : left + self.crop_size]


def _detail(crop: Tensor) -> float:
    return float(crop.float().diff(dim=1).abs().mean())


class LatentBatches:
    """Cached latents, each with one of its captions drawn afresh every epoch.

    Args:
        latents: Scaled, (N, 4, h, w).
        input_ids: For each image its captions' token ids, unpadded.
        eos_token_id: Pads captions to `context_length`.
        context_length: Positions of the text encoder; all are given, as a U-Net reads all.
        batch_size: Images in a batch; an epoch's last, smaller batch is left out.
        seed: Decides order and captions, together with the epoch.
    """

    def __init__(
        self,
        latents: Tensor,
        input_ids: Sequence[Sequence[Sequence[int]]],
        *,
        eos_token_id: int,
        context_length: int,
        batch_size: int,
        seed: int,
    ):
        self.latents, self.input_ids = latents, input_ids
        self.eos_token_id, self.context_length = eos_token_id, context_length
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        return len(self.latents) // self.batch_size

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Give `latents` (B, 4, h, w) and `input_ids` (B, context_length)."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.latents))
        draws = random.random(len(self.latents))
        for batch in range(start, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            captions = [self.input_ids[i][int(draws[i] * len(self.input_ids[i]))] for i in chosen]
            yield {
                "latents": self.latents[torch.from_numpy(chosen)],
                "input_ids": pad_input_ids(captions, self.eos_token_id, self.context_length),
            }


class WithProgress:
    """Batches that know how much of a training is done, so that a resumed one needs no count of its own.

    Args:
        batches: See `fit`.
        num_epochs: Of the whole training.
    """

    def __init__(self, batches: LatentBatches, num_epochs: int):
        self.batches, self.num_epochs = batches, num_epochs

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Give what the batches give, and `progress` (1,): 0 at the first batch, below 1 at the last."""
        for index, batch in enumerate(self.batches.epoch(epoch, start), start):
            done = (epoch + index / len(self)) / self.num_epochs
            yield {**batch, "progress": torch.tensor([done])}


class LabelledBatches:
    """Pictures with their labels.

    Args:
        pixels: (N, 3, H, W) uint8.
        labels: (N, K) int64.
        batch_size: Pictures in a batch; an epoch's last, smaller batch is left out.
        seed: Decides the order, together with the epoch.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, *, batch_size: int, seed: int):
        self.pixels, self.labels, self.batch_size, self.seed = pixels, labels, batch_size, seed

    def __len__(self) -> int:
        return len(self.pixels) // self.batch_size

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Give `pixels` (B, 3, H, W) in [-1, 1] and `labels` (B, K)."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pixels))
        for batch in range(start, len(self)):
            chosen = torch.from_numpy(order[batch * self.batch_size : (batch + 1) * self.batch_size])
            yield {"pixels": from_uint8(self.pixels[chosen]), "labels": self.labels[chosen]}
