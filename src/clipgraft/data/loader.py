"""Batches of images with one caption each, in an order that only seed and epoch decide.

The order of images and the caption drawn for each are pure functions of (seed, epoch): a run that is resumed
at (epoch, start) sees exactly the batches that the unbroken run would have seen, with any number of workers.
The epoch travels inside each index, because workers that outlive an epoch hold a copy of the dataset.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from clipgraft.data.images import open_image
from clipgraft.data.records import CONTEXT_LENGTH, CaptionedImage
from clipgraft.data.transforms import (
    ImageProcessor,
    clip_crop,
    encode_captions,
    normalize_clip_crops,
    pad_input_ids,
)

CACHE_BYTES = 256 * 2**20
"""Crops that each process keeps: all of 8,000 at 64 pixels (98 MB), 1,783 at 224 pixels."""


class EpochIndex(NamedTuple):
    """Which image, in which epoch."""

    epoch: int
    image_index: int


class Item(NamedTuple):
    """One image with the caption drawn for it."""

    clip_crop: np.ndarray
    """(3, S, S) uint8."""
    input_ids: list[int]
    image_index: int
    image_id: str


class EpochSampler(Sampler[EpochIndex]):
    """The order of images in each epoch: a permutation drawn from (seed, epoch).

    Args:
        num_items: Number of images.
        seed: Not negative.
        epoch: Epoch of the next pass, from 0.
        start: Images of that epoch that were seen already; later epochs start at 0.
    """

    def __init__(self, num_items: int, *, seed: int, epoch: int = 0, start: int = 0) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative; got {seed}")
        self.num_items = num_items
        self.seed = seed
        self.resume(epoch, start)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be of `epoch`, from its beginning unless it is the epoch that is set already."""
        if epoch != self.epoch:
            self.resume(epoch, 0)

    def resume(self, epoch: int, start: int) -> None:
        """Let the next pass be of `epoch`, behind its first `start` images.

        Raises:
            ValueError: If `start` is not between 0 and the number of images.
        """
        if not 0 <= start <= self.num_items:
            raise ValueError(f"start must be between 0 and the {self.num_items} images; got {start}")
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return self.num_items - self.start

    def __iter__(self) -> Iterator[EpochIndex]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_items)
        return iter([EpochIndex(self.epoch, int(index)) for index in order[self.start :]])


def draw_caption(num_captions: int, *, seed: int, epoch: int, index: int) -> int:
    """Return which caption an image shows in an epoch.

    Each image goes through all of its captions in an order of its own before one comes again.

    Args:
        num_captions: Captions of the image, at least 1.
        seed: The run's seed.
        epoch: From 0.
        index: The image's place in the dataset.

    Returns:
        A number from 0 to `num_captions` - 1.
    """
    rounds, turn = divmod(epoch, num_captions)
    return int(np.random.default_rng([seed, index, rounds]).permutation(num_captions)[turn])


class ImageCaptionDataset(Dataset[Item]):
    """Images, each with one of its captions; map-style, indexed by `EpochIndex`.

    Captions are tokenized once, here. Crops are kept in memory up to `CACHE_BYTES` in each process.

    Args:
        images: The images of one split.
        tokenizer: The model's own tokenizer.
        processor: The model's own image processor.
        seed: Decides which caption is drawn in which epoch.
        context_length: Most tokens of a caption, BOS and EOS included.
    """

    def __init__(
        self,
        images: Sequence[CaptionedImage],
        *,
        tokenizer: PreTrainedTokenizerBase,
        processor: ImageProcessor,
        seed: int,
        context_length: int = CONTEXT_LENGTH,
    ) -> None:
        self.images = tuple(images)
        self.processor = processor
        self.seed = seed
        captions = [caption for image in self.images for caption in image.captions]
        self._input_ids, self.num_truncated = encode_captions(
            captions, tokenizer, context_length=context_length
        )
        self._first_caption = np.cumsum([0] + [len(image.captions) for image in self.images])
        self._crops: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, where: EpochIndex) -> Item:
        epoch, index = where
        image = self.images[index]
        caption = draw_caption(len(image.captions), seed=self.seed, epoch=epoch, index=index)
        input_ids = self._input_ids[self._first_caption[index] + caption]
        return Item(self._crop(index), input_ids, index, image.image_id)

    def _crop(self, index: int) -> np.ndarray:
        crop = self._crops.get(index)
        if crop is None:
            crop = clip_crop(open_image(self.images[index].path), self.processor)
            if (len(self._crops) + 1) * crop.nbytes <= CACHE_BYTES:
                self._crops[index] = crop
        return crop


@dataclass(frozen=True, slots=True)
class Collate:
    """Turn items into the batch that objectives read; a class, so that workers can be spawned with it."""

    processor: ImageProcessor
    eos_token_id: int

    def __call__(self, items: Sequence[Item]) -> dict[str, Tensor | list[str]]:
        """Return the batch.

        Args:
            items: B items of the dataset.

        Returns:
            `clip_pixel_values` (B, 3, S, S) float32, `input_ids` (B, L) int64 padded with EOS to the longest,
            `image_index` (B,) int64, `image_ids` list of B names.
        """
        crops = torch.from_numpy(np.stack([item.clip_crop for item in items]))
        longest = max(len(item.input_ids) for item in items)
        return {
            "clip_pixel_values": normalize_clip_crops(crops, self.processor),
            "input_ids": pad_input_ids([item.input_ids for item in items], self.eos_token_id, longest),
            "image_index": torch.tensor([item.image_index for item in items]),
            "image_ids": [item.image_id for item in items],
        }


def make_loader(
    images: Sequence[CaptionedImage],
    *,
    tokenizer: PreTrainedTokenizerBase,
    processor: ImageProcessor,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    drop_last: bool = True,
    epoch: int = 0,
    start: int = 0,
    context_length: int = CONTEXT_LENGTH,
) -> DataLoader[Any]:
    """Return a loader of training batches; its `sampler` is an `EpochSampler`, to be told of each new epoch.

    Args:
        images: The images of one split.
        tokenizer: The model's own tokenizer.
        processor: The model's own image processor.
        batch_size: Images in a batch.
        seed: Decides order and captions, together with the epoch.
        num_workers: Processes that decode images; 0 decodes in this one.
        drop_last: Leave out an epoch's last batch if it is not full: a contrastive loss depends on its size.
        epoch: Epoch of the first pass, from 0.
        start: Images of that epoch that were seen already.
        context_length: Most tokens of a caption.

    Returns:
        A loader of the batches that `Collate` describes.

    Raises:
        ValueError: If no batch would come out.
        DataError: While iterating, if an image cannot be read; it names the file.
    """
    if batch_size < 1 or not images or (drop_last and len(images) < batch_size):
        raise ValueError(
            f"batch_size must be between 1 and the number of images, {len(images)}; got {batch_size}"
        )
    dataset = ImageCaptionDataset(
        images, tokenizer=tokenizer, processor=processor, seed=seed, context_length=context_length
    )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(len(images), seed=seed, epoch=epoch, start=start),
        num_workers=num_workers,
        collate_fn=Collate(processor, tokenizer.eos_token_id),
        drop_last=drop_last,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # else each pass would draw from the global one
    )
