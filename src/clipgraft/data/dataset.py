"""Captioned images and their splits."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np

from clipgraft.console import say
from clipgraft.data.image_file import ImageFile, content_checksums
from clipgraft.errors import DataError, UserError
from clipgraft.files import fingerprint
from clipgraft.settings import DataSettings

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

MAX_HELD_OUT = 5_000
"""Images of val, and of test, of a source that is not held in memory, unless settings say otherwise."""
MAX_HELD_IMAGES = 10_000
"""Training images that stages hold in memory of a larger source (latents, nearest images)."""
CONTEXT_LENGTH = 77
"""Positions of CLIP's text tower, BOS and EOS included (`CLIPTextConfig`'s default)."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One photograph with all of its captions, at least one."""

    image_id: str
    """File name relative to the image folder, with forward slashes: `1000268201_693b08cb0e.jpg`."""
    file: ImageFile
    captions: tuple[str, ...]
    split: Split


class TrainingImages(Protocol):
    """Images of the train split, in memory or not."""

    def __len__(self) -> int:
        """Return the number of images in an epoch."""
        ...

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, CaptionedImage]]:
        """Yield number and image in the epoch's order, from position `start` on.

        A pure function of the source and the arguments. The number is the image's in every epoch and decides
        which of its captions are drawn; within an epoch all numbers differ.
        """
        ...

    def first(self, count: int) -> "CaptionedImages":
        """Return the first images of the source, in memory."""
        ...

    def iter_captions(self) -> Iterator[str]:
        """Yield all captions, image by image."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return a checksum of the content, compared when resuming."""
        ...


class CaptionedImages(tuple[CaptionedImage, ...]):
    """Images in memory, sorted by id."""

    __slots__ = ()

    @property
    def captions(self) -> list[str]:
        """All captions, image by image."""
        return list(self.iter_captions())

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, CaptionedImage]]:
        """Yield index and image, from a permutation for each seed and epoch."""
        for index in np.random.default_rng([seed, epoch]).permutation(len(self))[start:].tolist():
            yield index, self[index]

    def first(self, count: int) -> "CaptionedImages":
        """Return the first images."""
        return CaptionedImages(self[:count])

    def iter_captions(self) -> Iterator[str]:
        """Yield all captions, image by image."""
        return (caption for image in self for caption in image.captions)

    @property
    def fingerprint(self) -> str:
        """Return a checksum of all photographs' bytes and all captions, in order."""
        photographs = content_checksums([image.file for image in self])
        return fingerprint(photographs, [image.captions for image in self])


@dataclass(frozen=True, slots=True)
class Excluded:
    """One photograph or caption excluded from the dataset, with the reason."""

    kind: Literal["image", "caption"]
    name: str
    """`IMAGE_ID`, or `IMAGE_ID#NUMBER` for a caption (from 0)."""
    reason: str


@dataclass(frozen=True, slots=True)
class CaptionDataset:
    """All captioned images of one folder, and everything excluded.

    Raises:
        DataError: If an image id comes twice, a split is unknown or an image has no caption.
    """

    root: Path | str
    """Folder; of shards the source that was named, which may be a URL or pattern."""
    format: str
    """Name of the format, as in `docs/data.md`."""
    files: dict[str, str]
    """Role (`captions`, `images`, `train split`) -> path below `root`, of each file read."""
    images: CaptionedImages
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...] = ()
    """Oddities, such as another encoding than UTF-8."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Image id -> reason, of photographs that were skipped."""
    split_rule: str = ""
    """What decides the splits: a `SplitRule`, or other words."""
    streamed: TrainingImages | None = None
    """Training images that are not held in memory; `images` are those of val and test then."""
    settings: DataSettings | None = None
    """Settings that load it again; None if it was put together in Python."""

    def __post_init__(self) -> None:
        seen: dict[str, Split] = {}
        for image in self.images:
            if image.split not in SPLITS:
                raise DataError(
                    f"image {image.image_id!r} is in split {image.split!r}; "
                    f"expected one of {', '.join(SPLITS)}"
                )
            if not image.captions:
                raise DataError(f"image {image.image_id!r} has no caption; leave it out or give it one")
            if image.image_id in seen:
                raise DataError(
                    f"image {image.image_id!r} comes twice, in {seen[image.image_id]} and in {image.split}; "
                    "an image belongs to one split"
                )
            seen[image.image_id] = image.split

    def in_split(self, split: Split) -> CaptionedImages:
        """Return the images of one split."""
        if split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        return CaptionedImages(image for image in self.images if image.split == split)

    @property
    def train(self) -> TrainingImages:
        """Training images."""
        return self.in_split("train") if self.streamed is None else self.streamed

    def hold_train(self, limit: int = 0) -> CaptionedImages:
        """Return the first training images, in memory.

        At most `limit`; 0 = all, or `MAX_HELD_IMAGES` of a source that is not in memory, with a note.
        """
        if not limit and len(self.train) > MAX_HELD_IMAGES and not isinstance(self.train, CaptionedImages):
            say(
                f"the first {MAX_HELD_IMAGES:,} of {len(self.train):,} training images are used here; "
                "data.max_train_images sets another number"
            )
            limit = MAX_HELD_IMAGES
        return self.train.first(limit or len(self.train))

    @property
    def val(self) -> CaptionedImages:
        """Validation images."""
        return self.in_split("val")

    @property
    def test(self) -> CaptionedImages:
        """Test images."""
        return self.in_split("test")

    @property
    def origin(self) -> DataSettings:
        """Settings that load it again; by its root if it has none."""
        return self.settings or DataSettings(source=str(self.root))

    @property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Number of `images` and `captions` in each split."""
        parts = {split: self.in_split(split) for split in SPLITS}
        return {split: {"images": len(part), "captions": len(part.captions)} for split, part in parts.items()}

    @property
    def fingerprint(self) -> str:
        """Return the sha256 (hex) of all image ids, splits and captions.

        Independent of folder and photographs' bytes: a moved copy is the same dataset.
        """
        digest = hashlib.sha256()
        for image in sorted(self.images, key=lambda image: image.image_id):
            digest.update(json.dumps([image.image_id, image.split, image.captions]).encode() + b"\n")
        if self.streamed is not None:
            digest.update(self.streamed.fingerprint.encode())
        return digest.hexdigest()


def merge_duplicates(images: Sequence[CaptionedImage]) -> tuple[CaptionedImage, ...]:
    """Merge images with equal bytes into the first one, with all captions.

    Retrieval cannot tell copies apart, so each is a right answer.
    """
    merged: dict[str, CaptionedImage] = {}
    for image, content in zip(images, content_checksums([image.file for image in images]), strict=True):
        first = merged.get(content)
        merged[content] = replace(first, captions=first.captions + image.captions) if first else image
    return tuple(merged.values())
