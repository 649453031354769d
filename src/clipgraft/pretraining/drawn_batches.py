"""Batches of drawn images, functions of seed, epoch and position.

N images in an epoch, B in a batch. All of an epoch's tensors lie on the device.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipgraft.data.batches import from_uint8
from clipgraft.pretraining.drawing import DrawnImages

Arrays = dict[str, Tensor]


class DrawnBatches:
    """Full batches of an epoch's images, in another order each pass.

    Args:
        images: Drawn anew for each epoch.
        passes: Over an epoch's images.
        batch_size, seed: As everywhere.
        device: Of the batches.
    """

    def __init__(self, images: DrawnImages, *, passes: int, batch_size: int, seed: int, device: torch.device):
        self.images, self.passes, self.batch_size, self.seed = images, passes, batch_size, seed
        self.device = device

    def __len__(self) -> int:
        return self.images.num_images * self.passes // self.batch_size

    def epoch(self, epoch: int, start: int) -> Iterator[Arrays]:
        """Yield the batches of an epoch from `start` on."""
        parts = [self.prepare(part) for part in map(self._load, self.images.epoch(epoch))]
        arrays = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        del parts
        random = np.random.default_rng([self.seed, epoch])
        num_images = self.images.num_images
        order = np.concatenate([random.permutation(num_images) for _ in range(self.passes)])
        # Copied once for all batches: a copy at each step would make it wait.
        rows = torch.from_numpy(order).to(self.device)
        draws = torch.from_numpy(random.random((len(order), 2), np.float32)).to(self.device)
        for begin in range(start * self.batch_size, len(self) * self.batch_size, self.batch_size):
            chosen = slice(begin, begin + self.batch_size)
            yield self.batch(arrays, rows[chosen], draws[chosen])

    def prepare(self, part: Arrays) -> Arrays:
        """Return what is kept of a part's arrays for the epoch."""
        return part

    @abstractmethod
    def batch(self, arrays: Arrays, rows: Tensor, draws: Tensor) -> Arrays:
        """Return the batch of rows (B,) with random numbers (B, 2) in [0, 1)."""

    def _load(self, path: Path) -> Arrays:
        return {name: tensor.to(self.device) for name, tensor in load_file(path).items()}


class DrawnCrops(DrawnBatches):
    """Random square crops, and where they show a subject."""

    def __init__(self, images: DrawnImages, *, crop_size: int, **common: int | torch.device):
        super().__init__(images, **common)  # type: ignore[arg-type]
        self.crop_size = crop_size

    def batch(self, arrays: Arrays, rows: Tensor, draws: Tensor) -> Arrays:
        """Return `vae_pixel_values` (B, 3, S, S) in [-1, 1] and `is_subject` (B, S, S) bool."""
        free = arrays["pixels"].shape[-1] - self.crop_size
        corners = (draws * (free + 1)).long().clamp_(max=free)  # (B, 2)
        places = corners[:, :, None] + torch.arange(self.crop_size, device=rows.device)  # (B, 2, S)
        top, left = places[:, 0, :, None], places[:, 1, None, :]
        # Without the channels, so that the indexed dimensions stay together.
        pixels = arrays["pixels"].movedim(1, -1)[rows[:, None, None], top, left].movedim(-1, 1)
        is_subject = arrays["is_subject"][rows[:, None, None], top, left]
        return {"vae_pixel_values": from_uint8(pixels), "is_subject": is_subject}


class DrawnLatents(DrawnBatches):
    """Latents, each with one of its captions.

    Args:
        encode: uint8 pixels (n, 3, H, W) -> scaled latents (n, 4, h, w).
    """

    def __init__(
        self, images: DrawnImages, *, encode: Callable[[Tensor], Tensor], **common: int | torch.device
    ):
        super().__init__(images, **common)  # type: ignore[arg-type]
        self.encode = encode

    def prepare(self, part: Arrays) -> Arrays:
        """Keep latents and captions."""
        return {"latents": self.encode(part["pixels"]), "input_ids": part["input_ids"]}

    def batch(self, arrays: Arrays, rows: Tensor, draws: Tensor) -> Arrays:
        """Return `latents` (B, 4, h, w) and `input_ids` (B, 77)."""
        input_ids = arrays["input_ids"]
        chosen = (draws[:, 0] * input_ids.shape[1]).long().clamp_(max=input_ids.shape[1] - 1)
        return {"latents": arrays["latents"][rows], "input_ids": input_ids[rows, chosen].long()}


class DrawnLabels(DrawnBatches):
    """Images with their labels.

    Args:
        change: What is done to each part's pixels first.
    """

    def __init__(
        self, images: DrawnImages, *, change: Callable[[Tensor], Tensor], **common: int | torch.device
    ):
        super().__init__(images, **common)  # type: ignore[arg-type]
        self.change = change

    def prepare(self, part: Arrays) -> Arrays:
        """Keep changed pixels and labels."""
        return {"pixels": self.change(part["pixels"]), "labels": part["labels"]}

    def batch(self, arrays: Arrays, rows: Tensor, draws: Tensor) -> Arrays:
        """Return `pixels` (B, 3, H, W) in [-1, 1] and `labels` (B, attributes)."""
        return {"pixels": from_uint8(arrays["pixels"][rows]), "labels": arrays["labels"][rows].long()}
