"""Batches of images with captions, a pure function of seed and epoch.

A run resumed at (epoch, start) sees the batches of the unbroken run, with any number of workers and training
processes. Each index carries the epoch, because workers outlive an epoch with a copy of the dataset.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionedImage
from clipgraft.data.image_file import content_sums
from clipgraft.data.transforms import (
    ImageProcessor,
    encode_captions,
    normalize_clip_crops,
    pad_input_ids,
)
from clipgraft.errors import UserError


class EpochIndex(NamedTuple):
    """Index of an image in an epoch."""

    epoch: int
    image_index: int


class Item(NamedTuple):
    """One image with the captions drawn for it."""

    clip_crop: np.ndarray | None
    """(3, S, S) uint8; None for captions alone."""
    input_ids: list[list[int]]
    image_index: int
    image_id: str


class EpochSampler(Sampler[list[EpochIndex]]):
    """Image indices of each full batch, from a permutation per (seed, epoch).

    `batch_size` counts the images of all processes; each gets an equal share of every batch.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ) -> None:
        if seed < 0:
            raise UserError(f"seed must not be negative; got {seed}")
        if not 1 <= batch_size <= num_items:
            raise UserError(
                f"batch_size must be between 1 and the number of images, {num_items}; got {batch_size}"
            )
        if batch_size % num_processes:
            raise UserError(
                f"batch_size must be a multiple of the number of processes, {num_processes}; got {batch_size}"
            )
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.num_batches = num_items // batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.resume(0, 0)

    def resume(self, epoch: int, start: int) -> None:
        """Set the epoch of the next pass and its first batch."""
        if not 0 <= start <= self.num_batches:
            raise UserError(f"start must be between 0 and the {self.num_batches} batches; got {start}")
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        return self.num_batches - self.start

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_items)
        share = self.batch_size // self.num_processes
        for batch in range(self.start, self.num_batches):
            begin = batch * self.batch_size + self.process_index * share
            yield [EpochIndex(self.epoch, int(index)) for index in order[begin : begin + share]]


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


def duplicate_ids(images: Sequence[CaptionedImage]) -> list[int]:
    """Return for each image the index of the first with equal bytes."""
    first: dict[str, int] = {}
    sums = content_sums([image.file for image in images])
    return [first.setdefault(content, index) for index, content in enumerate(sums)]


class ImageCaptionDataset(Dataset[Item]):
    """Images, each with some of its captions (tokenized once), indexed by `EpochIndex`."""

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        crops: Sequence[np.ndarray] | None,
        *,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        captions_per_image: int = 1,
    ) -> None:
        self.images, self.crops = tuple(images), crops
        self.seed, self.captions_per_image = seed, captions_per_image
        captions = [caption for image in self.images for caption in image.captions]
        self._input_ids, self.num_truncated = encode_captions(captions, tokenizer)
        self._first_caption = np.cumsum([0] + [len(image.captions) for image in self.images])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, where: EpochIndex) -> Item:
        epoch, index = where
        image = self.images[index]
        drawn = draw_captions(
            len(image.captions), self.captions_per_image, seed=self.seed, epoch=epoch, index=index
        )
        input_ids = [self._input_ids[self._first_caption[index] + caption] for caption in drawn]
        return Item(None if self.crops is None else self.crops[index], input_ids, index, image.image_id)


@dataclass(frozen=True, slots=True)
class Collate:
    """Collate items into a batch for objectives (a class, so that it can be pickled for workers)."""

    processor: ImageProcessor
    eos_token_id: int
    duplicate_ids: tuple[int, ...]
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
            "duplicate_id": torch.tensor([self.duplicate_ids[item.image_index] for item in items]),
            "image_ids": [item.image_id for item in items],
        }
        return batch if pixels is None else {"clip_pixel_values": pixels, **batch}


class CaptionedBatches:
    """Training batches of any epoch, from any position.

    Args:
        images: The images of one split.
        crops: Their crops, (3, S, S) uint8 each; None for captions alone.
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
        images: Sequence[CaptionedImage],
        crops: Sequence[np.ndarray] | None,
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
            len(images), batch_size, seed=seed, process_index=process_index, num_processes=num_processes
        )
        self.dataset = ImageCaptionDataset(
            images, crops, tokenizer=tokenizer, seed=seed, captions_per_image=captions_per_image
        )
        self.loader: DataLoader[Any] = DataLoader(
            self.dataset,
            batch_sampler=self.sampler,
            num_workers=num_workers,
            collate_fn=Collate(
                processor, tokenizer.eos_token_id, tuple(duplicate_ids(images)), length_multiple
            ),
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),  # else each pass would use the global one
        )

    def __len__(self) -> int:
        return self.sampler.num_batches

    def epoch(self, epoch: int, start: int) -> Iterable[dict[str, Any]]:
        """Return the batches of an epoch from `start` on; see `Collate`."""
        self.sampler.resume(epoch, start)
        return self.loader
