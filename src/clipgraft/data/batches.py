"""Batches of data encoded once, functions of seed, epoch and position.

N items, B in a batch. Token states: L positions of a batch's longest caption, widths D (student) and W
(teacher).
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipgraft.data.buckets import bucket_batches, num_bucket_batches
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import open_image
from clipgraft.data.transforms import pad_input_ids, vae_pixel_values
from clipgraft.errors import UserError
from clipgraft.files import naming

BATCHES_IN_POOL = 16
"""Batches per pool of captions, sorted by length."""
WHOLE_EVERY = 4
"""One of this many batches of captions has padding."""
BYTES = 2
"""Of a float16 in the file: its rounding, 5e-4, is far below the error of any bridge."""


def load_pixels(images: Sequence[CaptionedImage], size: int) -> Tensor:
    """Decode images to (N, 3, size, size) uint8, resized and centre-cropped."""
    pixels = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for index, image in enumerate(images):
        pixels[index] = to_uint8(vae_pixel_values([open_image(image.file)], size)[0])
    return pixels


def to_uint8(pixels: Tensor) -> Tensor:
    """Convert pixels in [-1, 1] to uint8."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(pixels: Tensor) -> Tensor:
    """Convert uint8 pixels to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


class ShuffledBatches:
    """Full batches of rows in an order drawn from (seed, epoch)."""

    def __init__(self, num_items: int, batch_size: int, seed: int):
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed

    def __len__(self) -> int:
        return self.num_items // self.batch_size

    def shuffle(self, epoch: int) -> tuple[np.random.Generator, np.ndarray]:
        """Return the epoch's generator and the order of all items."""
        random = np.random.default_rng([self.seed, epoch])
        return random, random.permutation(self.num_items)

    def rows(self, order: np.ndarray, start: int) -> Iterator[np.ndarray]:
        """Yield the items of each batch from `start` on."""
        for batch in range(start, len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def by_length(self, epoch: int, lengths: np.ndarray) -> np.ndarray:
        """Return rows (batches, B) of an epoch, by similar lengths (N,)."""
        random, order = self.shuffle(epoch)
        order = order[: len(self) * self.batch_size]
        size = self.batch_size * BATCHES_IN_POOL
        pools = (order[begin : begin + size] for begin in range(0, len(order), size))
        sorted_pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
        batches = np.concatenate(sorted_pools).reshape(len(self), self.batch_size)
        return batches[random.permutation(len(self))]


class LatentBatches(ShuffledBatches):
    """Cached latents, each with one of its captions, drawn anew every epoch.

    Args:
        latents: Scaled, N of (4, h, w), of equal size within a bucket.
        input_ids: Token ids of each image's captions, unpadded.
        eos_token_id: Pads captions to `context_length`.
        context_length: Positions of the text encoder, all read by the U-Net.
        batch_size, seed: See `ShuffledBatches`.
        num_epochs: Epochs of the whole training; 0 leaves `progress` out.
        bucket_of: Bucket of each image, (N,); None = one for all. A batch holds one bucket, and is smaller
            where a bucket ends (see `bucket_batches`).
    """

    def __init__(
        self,
        latents: Sequence[Tensor | np.ndarray] | Tensor,
        input_ids: Sequence[Sequence[Sequence[int]]],
        *,
        eos_token_id: int,
        context_length: int,
        batch_size: int,
        seed: int,
        num_epochs: int = 0,
        bucket_of: np.ndarray | None = None,
    ):
        super().__init__(len(latents), batch_size, seed)
        self.latents, self.input_ids, self.num_epochs = latents, input_ids, num_epochs
        self.eos_token_id, self.context_length = eos_token_id, context_length
        self.bucket_of = np.zeros(len(latents), np.uint8) if bucket_of is None else bucket_of
        self.num_batches = num_bucket_batches(self.bucket_of, batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def rows(self, order: np.ndarray, start: int) -> Iterator[np.ndarray]:
        """Yield the items of each batch from `start` on."""
        yield from bucket_batches(order, self.bucket_of, self.batch_size)[start:]

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield `latents` (B, 4, h, w), `input_ids` (B, context_length), `progress` (1,) in [0, 1)."""
        random, order = self.shuffle(epoch)
        draws = random.random(self.num_items)
        for index, rows in enumerate(self.rows(order, start), start):
            captions = [self.input_ids[i][int(draws[i] * len(self.input_ids[i]))] for i in rows]
            batch = {
                "latents": torch.stack([torch.as_tensor(self.latents[i]) for i in rows]),
                "input_ids": pad_input_ids(captions, self.eos_token_id, self.context_length),
            }
            if self.num_epochs:
                batch["progress"] = torch.tensor([(epoch + index / len(self)) / self.num_epochs])
            yield batch


class CaptionBatches(ShuffledBatches):
    """Batches of captions of similar length, most of them without padding.

    Padding is three in four of a caption's positions and weighs little, so only one batch in `WHOLE_EVERY` is
    whole, and its padding weighs as much more.

    Args:
        input_ids: Padded, (N, L) int32.
        has_new_word: Marks of captions, (N,) bool.
        eos_token_id: The tokenizer's, also of padding.
    """

    def __init__(
        self, input_ids: Tensor, has_new_word: Tensor, *, eos_token_id: int, batch_size: int, seed: int
    ):
        super().__init__(len(input_ids), batch_size, seed)
        self.input_ids, self.has_new_word = input_ids, has_new_word
        self.lengths = (input_ids == eos_token_id).int().argmax(1).numpy() + 1

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield `input_ids` (B, L) int64, `has_new_word` (B,) bool, `padding_scale` (1,)."""
        for index, rows in enumerate(self.by_length(epoch, self.lengths)[start:], start):
            is_whole = index % WHOLE_EVERY == 0
            length = None if is_whole else self.lengths[rows].max()
            chosen = torch.from_numpy(rows)
            yield {
                "input_ids": self.input_ids[chosen, :length].long(),
                "has_new_word": self.has_new_word[chosen],
                "padding_scale": torch.tensor([float(WHOLE_EVERY * is_whole)]),
            }


class TokenStates:
    """Memory-mapped token states of two text towers at chosen positions of captions.

    Args:
        path: The file, written anew and allocated at once.
        counts: Positions of each caption, (N,) int64, in the order of `add`.
        sizes: D and W.
    """

    def __init__(self, path: Path, counts: Tensor, sizes: tuple[int, int]):
        self.sizes = sizes
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        path.unlink(missing_ok=True)
        total, width = int(self.starts[-1]), sum(sizes)
        needed, free = total * width * BYTES, shutil.disk_usage(path.parent).free
        if needed > free:
            raise UserError(
                f"token states of {len(counts):,} captions take {needed / 1e9:.1f} GB and {path.parent} has "
                f"{free / 1e9:.1f} GB free; give fewer captions (bridge.max_captions) or make room"
            )
        with naming(path), path.open("wb") as file:
            _reserve(file.fileno(), needed)
        self.states = torch.from_file(str(path), shared=True, size=total * width, dtype=torch.float16)
        self.states = self.states.view(total, width)
        self.classes, self.positions = (torch.zeros(total, dtype=torch.uint8) for _ in range(2))
        self.num_added = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    def add(self, student: Tensor, teacher: Tensor, classes: Tensor, chosen: Tensor) -> None:
        """Add captions: states (B, L, D) and (B, L, W), token classes and bool `chosen` (B, L)."""
        part = slice(self.num_added, self.num_added + int(chosen.sum()))
        self.states[part] = torch.cat([student[chosen], teacher[chosen]], dim=1)
        self.classes[part] = classes[chosen]
        self.positions[part] = torch.arange(classes.shape[1]).expand_as(classes)[chosen]
        self.num_added = part.stop


def _reserve(file: int, num_bytes: int) -> None:
    # Without room on the disk, a later write to the mapped memory would kill the process.
    if num_bytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, num_bytes)
    else:
        os.truncate(file, num_bytes)


class StateBatches(ShuffledBatches):
    """Batches of token states of captions of similar length, padded.

    `padding` and `bos` are token classes. BOS, which is constant, has no weight; the padding that was kept of
    some captions stands for that of all.
    """

    def __init__(self, states: TokenStates, *, padding: int, bos: int, batch_size: int, seed: int):
        super().__init__(len(states), batch_size, seed)
        self.states, self.padding, self.bos = states, padding, bos
        caption = torch.arange(len(states)).repeat_interleave(states.starts.diff())
        num_whole = len(caption[states.classes == padding].unique())
        self.padding_scale = len(states) / max(1, num_whole)

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Yield `student` (B, L, D), `teacher` (B, L, W), `classes`, `positions` and `weights` (B, L)."""
        for rows in self.by_length(epoch, self.states.starts.diff().numpy())[start:]:
            yield self._batch(torch.from_numpy(rows))

    def _batch(self, rows: Tensor) -> dict[str, Tensor]:
        kept, (student_size, _) = self.states, self.states.sizes
        starts, counts = kept.starts[rows], kept.starts[rows + 1] - kept.starts[rows]
        place = torch.arange(int(counts.max()))  # (L,)
        is_there = place < counts[:, None]  # (B, L)
        index = starts[:, None] + place.minimum(counts[:, None] - 1)
        states = kept.states[index].float()
        classes = torch.where(is_there, kept.classes[index].long(), self.padding)
        weights = torch.where(classes == self.padding, self.padding_scale, 1.0) * (classes != self.bos)
        return {
            "student": states[..., :student_size],
            "teacher": states[..., student_size:],
            "classes": classes,
            "positions": kept.positions[index].long(),
            "weights": weights * is_there,
        }
