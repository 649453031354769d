"""Batches of images with captions, a pure function of seed and epoch.

A run resumed at (epoch, start) sees the batches of the unbroken run, with any number of workers and training
processes. Workers are sent the epoch and the images themselves: they hold no table of the data set.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from clipgraft.cached_arrays import CachedArrays
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionedImage, TrainingImages
from clipgraft.data.image_file import content_sums
from clipgraft.data.transforms import (
    ImageProcessor,
    encode_captions,
    normalize_clip_crops,
    pad_input_ids,
)
from clipgraft.errors import UserError


class Share(NamedTuple):
    """One process's images of a batch, with their numbers."""

    epoch: int
    images: list[tuple[int, CaptionedImage]]


class Item(NamedTuple):
    """One image with the captions drawn for it."""

    clip_crop: np.ndarray | None
    """(3, S, S) uint8; None for captions alone."""
    input_ids: list[list[int]]
    image_index: int
    """The image's number."""
    duplicate_id: int
    """Equal for equal files; see `content_number`."""
    image_id: str


class EpochSampler(Sampler[Share]):
    """A process's share of each full batch, in the epoch's order.

    `batch_size` counts the images of all processes; each gets an equal share of every batch.
    """

    def __init__(
        self,
        images: TrainingImages,
        batch_size: int,
        *,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        if seed < 0:
            raise UserError(f"seed must not be negative; got {seed}")
        if not 1 <= batch_size <= len(images):
            raise UserError(
                f"batch_size must be between 1 and the number of images, {len(images)}; got {batch_size}"
            )
        if batch_size % num_processes:
            raise UserError(
                f"batch_size must be a multiple of the number of processes, {num_processes}; got {batch_size}"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.num_batches = len(images) // batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.resume(0, 0)

    def resume(self, epoch: int, start: int) -> None:
        """Set the epoch of the next pass and its first batch."""
        if not 0 <= start <= self.num_batches:
            raise UserError(f"start must be between 0 and the {self.num_batches} batches; got {start}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.num_batches - self.start

    def __iter__(self) -> Iterator[Share]:
        images = self.images.epoch(self.seed, self.epoch, self.start * self.batch_size)
        size = self.batch_size // self.num_processes
        begin = self.process_index * size
        for _ in range(self.start, self.num_batches):
            batch = list(islice(images, self.batch_size))
            yield Share(self.epoch, batch[begin : begin + size])


def draw_captions(num_captions: int, count: int, *, seed: int, epoch: int, index: int) -> list[int]:
    """Return the numbers of an image's `count` captions for an epoch.

    Each image goes through all of its captions in an order of its own before repeating one. Within an epoch
    a caption comes twice only if the image has fewer than `count`.
    """

    def order(round_: int) -> list[int]:
        """Order a round's captions, those not yet shown in its epoch first."""
        captions = np.random.default_rng([seed, index, round_]).permutation(num_captions).tolist()
        begun = round_ * num_captions // count * count
        first, num_skipped = divmod(begun, num_captions)
        shown = order(first)[num_skipped:] if num_skipped else []
        num_left = begun + count - round_ * num_captions
        head = [caption for caption in captions if caption not in shown][:num_left]
        return head + [caption for caption in captions if caption not in head]

    rounds = range(epoch * count // num_captions, ((epoch + 1) * count - 1) // num_captions + 1)
    places = [caption for round_ in rounds for caption in order(round_)]
    begin = epoch * count % num_captions
    return places[begin : begin + count]


def content_number(content_sum: str) -> int:
    """Return 64 bits of a sha256 as int64, for batches.

    Two different files of ten million have one number by chance once in 400,000 sets.
    """
    return int(content_sum[:16], 16) - 2**63


class ImageCaptionDataset(Dataset[Item]):
    """Items of a share: crops, and captions tokenized as they are drawn."""

    def __init__(
        self,
        crops: CachedArrays | None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        captions_per_image: int = 1,
    ) -> None:
        self.crops, self.tokenizer = crops, tokenizer
        self.seed, self.captions_per_image = seed, captions_per_image

    def __getitems__(self, share: Share) -> list[Item]:
        """Return the items of a share (the method that DataLoader calls for a whole batch)."""
        ids = iter(self._input_ids(share))
        return [
            Item(
                None if self.crops is None else self.crops[number],
                list(islice(ids, self.captions_per_image)),
                number,
                content_number(content),
                image.image_id,
            )
            for (number, image), content in zip(share.images, self._content_sums(share), strict=True)
        ]

    def _input_ids(self, share: Share) -> list[list[int]]:
        count = self.captions_per_image
        captions = [
            image.captions[drawn]
            for number, image in share.images
            for drawn in draw_captions(
                len(image.captions), count, seed=self.seed, epoch=share.epoch, index=number
            )
        ]
        return encode_captions(captions, self.tokenizer)[0]

    def _content_sums(self, share: Share) -> list[str]:
        if self.crops is None:
            return content_sums([image.file for _, image in share.images])
        return [self.crops.places[number].key for number, _ in share.images]


@dataclass(frozen=True, slots=True)
class Collate:
    """Collate items into a batch for objectives (a class, so that it can be pickled for workers)."""

    processor: ImageProcessor
    eos_token_id: int
    length_multiple: int = 1
    """`input_ids` are padded to the batch's longest, rounded up to a multiple of this."""

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor | list[str]]:
        """Collate N items with M captions in all.

        Returns:
            `clip_pixel_values` (N, 3, S, S) float32 (absent without images), `input_ids` (M, L) int64 padded
            with EOS, `image_index` (N,) int64, `caption_image` (M,) int64 (each caption's `image_index`),
            `duplicate_id` (N,) int64 (equal for equal files), `image_ids` (N names).
        """
        crops = [item.clip_crop for item in items if item.clip_crop is not None]
        pixels = normalize_clip_crops(torch.from_numpy(np.stack(crops)), self.processor) if crops else None
        input_ids = [ids for item in items for ids in item.input_ids]
        longest = max(map(len, input_ids))
        length = min(CONTEXT_LENGTH, math.ceil(longest / self.length_multiple) * self.length_multiple)
        batch: dict[str, Tensor | list[str]] = {
            "input_ids": pad_input_ids(input_ids, self.eos_token_id, length),
            "image_index": torch.tensor([item.image_index for item in items]),
            "caption_image": torch.tensor([item.image_index for item in items for _ in item.input_ids]),
            "duplicate_id": torch.tensor([item.duplicate_id for item in items]),
            "image_ids": [item.image_id for item in items],
        }
        return batch if pixels is None else {"clip_pixel_values": pixels, **batch}


class CaptionedBatches:
    """Training batches of any epoch, from any position.

    Args:
        images: The training images.
        crops: Crops by the images' numbers, (3, S, S) uint8 each; None for captions alone.
        tokenizer: The model's own.
        processor: The model's own.
        batch_size: Images per batch over all processes. A last, smaller batch is dropped: a contrastive loss
            depends on its size.
        seed: Decides order and captions, together with the epoch.
        captions_per_image: Captions drawn for each image.
        length_multiple: See `Collate`; 77 pads to all positions.
        num_workers: Worker processes; 0 = this process.
        process_index: This process's share of each batch.
        num_processes: Equal shares of a batch.

    Raises:
        UserError: If there is no full batch, or it cannot be divided evenly.
    """

    def __init__(
        self,
        images: TrainingImages,
        crops: CachedArrays | None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        processor: ImageProcessor,
        batch_size: int,
        seed: int,
        captions_per_image: int = 1,
        length_multiple: int = 1,
        num_workers: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.sampler = EpochSampler(
            images, batch_size, seed=seed, process_index=process_index, num_processes=num_processes
        )
        dataset = ImageCaptionDataset(
            crops, tokenizer=tokenizer, seed=seed, captions_per_image=captions_per_image
        )
        self.loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self.sampler,  # type: ignore[arg-type]  # a Share goes to `__getitems__` whole
            num_workers=num_workers,
            collate_fn=Collate(processor, tokenizer.eos_token_id, length_multiple),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each pass would use the global one
        )

    def __len__(self) -> int:
        return self.sampler.num_batches

    def epoch(self, epoch: int, start: int) -> Iterable[dict[str, Any]]:
        """Return the batches of an epoch from `start` on; see `Collate`."""
        self.sampler.resume(epoch, start)
        return self.loader
