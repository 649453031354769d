"""Batches read from shares: crops, drawn captions, stand-ins for damaged images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from clipgraft.data.crop_reader import Crop
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionedImage
from clipgraft.data.images import DamagedImageError
from clipgraft.data.random_crops import RandomCrops
from clipgraft.data.transforms import (
    ImageProcessor,
    encode_captions,
    normalize_clip_crops,
    pad_input_ids,
)
from clipgraft.errors import DataError, UserError, some_of

Numbered = tuple[int, CaptionedImage]
Crops = Callable[[CaptionedImage], Crop]
Batch = dict[str, Any]


class Share(NamedTuple):
    """One process's images of a batch, with their numbers."""

    epoch: int
    images: list[Numbered]
    spares: list[Numbered] | None = None
    """The batch's other images, those after this process's first; None where a damaged image is an error."""


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


def content_number(content_checksum: str) -> int:
    """Return 64 bits of a sha256 as int64, for batches.

    Two different files of ten million have one number by chance once in 400,000 sets.
    """
    return int(content_checksum[:16], 16) - 2**63


class BatchReader(Dataset[Batch]):
    """Batches of shares, read in this process or in workers.

    Captions are tokenized as they are drawn. A damaged image is an error, or with spares (see `Share`) the
    next intact image of the batch takes its place: a function of the files and the order alone.
    """

    def __init__(
        self,
        crops: Crops,
        collate: "Collate",
        *,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        captions_per_image: int = 1,
        random_crops: RandomCrops | None = None,
    ) -> None:
        self.crops, self.collate, self.tokenizer = crops, collate, tokenizer
        self.seed, self.captions_per_image = seed, captions_per_image
        self.random_crops = random_crops

    def __getitems__(self, share: Share) -> Batch | Exception:
        """Return a share's batch, or the error to raise."""
        damaged: dict[str, str] = {}
        try:
            batch = self.collate(self.items(share, damaged))
        except (UserError, OSError) as error:
            return error
        return {**batch, "damaged": damaged} if damaged else batch

    def items(self, share: Share, damaged: dict[str, str] | None = None) -> list[Item]:
        """Return the items of a share; `damaged` gets image id -> reason."""
        found = self._intact(share, {} if damaged is None else damaged)
        count = self.captions_per_image
        captions = [
            image.captions[drawn]
            for (number, _), (image, _) in zip(share.images, found, strict=True)
            for drawn in draw_captions(
                len(image.captions), count, seed=self.seed, epoch=share.epoch, index=number
            )
        ]
        ids = iter(encode_captions(captions, self.tokenizer)[0])
        return [
            Item(
                self._cut(crop.pixels, share.epoch, number),
                list(islice(ids, count)),
                number,
                content_number(crop.content_checksum),
                image.image_id,
            )
            for (number, _), (image, crop) in zip(share.images, found, strict=True)
        ]

    def _cut(self, pixels: np.ndarray | None, epoch: int, number: int) -> np.ndarray | None:
        if pixels is None or self.random_crops is None:
            return pixels
        return self.random_crops(pixels, epoch, number)

    def _intact(self, share: Share, damaged: dict[str, str]) -> list[tuple[CaptionedImage, Crop]]:
        """Return each place's image or the next intact one, with crop."""
        batch = share.images + (share.spares or [])
        found: list[tuple[CaptionedImage, Crop]] = []
        for place in range(len(share.images)):
            for _, image in (*batch[place:], *batch[:place]):
                if image.image_id in damaged:
                    continue
                try:
                    found.append((image, self.crops(image)))
                    break
                except DamagedImageError as error:
                    if share.spares is None:
                        raise
                    damaged[image.image_id] = str(error).removeprefix(f"{image.file}: ")
            else:
                named = some_of([f"{name} ({reason})" for name, reason in damaged.items()])
                raise DataError(f"all {len(batch)} images of a batch are damaged: {named}")
        return found


@dataclass(frozen=True, slots=True)
class Collate:
    """Collate items into a batch for objectives (a class, so that it can be pickled for workers)."""

    processor: ImageProcessor
    eos_token_id: int
    length_multiple: int = 1
    """`input_ids` are padded to the batch's longest, rounded up to a multiple of this."""

    def __call__(self, items: Sequence[Item]) -> Batch:
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
        batch: Batch = {
            "input_ids": pad_input_ids(input_ids, self.eos_token_id, length),
            "image_index": torch.tensor([item.image_index for item in items]),
            "caption_image": torch.tensor([item.image_index for item in items for _ in item.input_ids]),
            "duplicate_id": torch.tensor([item.duplicate_id for item in items]),
            "image_ids": [item.image_id for item in items],
        }
        return batch if pixels is None else {"clip_pixel_values": pixels, **batch}
