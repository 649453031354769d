"""Captioned images, their splits, and what was excluded.

The split is by image, never by caption: all captions of an image lie in the image's split. Readers parse
their format into a `RawDataset`; `assemble` turns it into a `CaptionDataset`, where every photograph and
every caption is either in `images` or named with a reason in `excluded`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from clipgraft.cache import content_sums
from clipgraft.errors import DataError, UserError, printable
from clipgraft.files import LONE_SURROGATE

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

CONTEXT_LENGTH = 77
"""Positions of CLIP's text tower, BOS and EOS included (`CLIPTextConfig`'s default)."""
MAX_CAPTION_CHARACTERS = 10_000
"""CLIP reads 77 tokens, some 400 characters; the longest captions written for images have some thousands."""

NO_PHOTOGRAPH = "no photograph"
NO_CAPTION = "no caption"
NEITHER = "listed in a split, but no photograph and no caption"
IN_NO_SPLIT = "in no split"
EMPTY_CAPTION = "empty caption"
OTHER_FORMAT = "not a JPEG, PNG or WebP file"
HIDDEN_FILE = "hidden file"
NOT_UTF8 = "file name that is not UTF-8"
LONG_CAPTION = f"caption of over {MAX_CAPTION_CHARACTERS:,} characters"
HASHED_SPLIT = "no split is named, so each image's split follows from its name: 80% train, 10% val, 10% test"

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
OTHER_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff"}
)


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One photograph with all of its captions, at least one."""

    image_id: str
    """File name relative to the image folder, with forward slashes: `1000268201_693b08cb0e.jpg`."""
    path: Path
    captions: tuple[str, ...]
    split: Split


class CaptionedImages(tuple[CaptionedImage, ...]):
    """Images in the order of their ids."""

    __slots__ = ()

    @property
    def captions(self) -> list[str]:
        """All captions, image by image."""
        return [caption for image in self for caption in image.captions]


@dataclass(frozen=True, slots=True)
class Excluded:
    """One photograph or one caption that is not in the dataset, and why."""

    kind: Literal["image", "caption"]
    name: str
    """Image id; for a caption, image id, `#` and the caption's number from 0."""
    reason: str


@dataclass(frozen=True, slots=True)
class CaptionDataset:
    """All captioned images of one folder, and everything excluded from them.

    Raises:
        DataError: If an image id comes twice (be it in two splits), a split is unknown or an image has no
            caption.
    """

    root: Path
    format: str
    """Name of the format, as in `docs/data.md`."""
    files: dict[str, str]
    """Role of each file that was read (`captions`, `images`, `train split`) -> its path below `root`."""
    images: CaptionedImages
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...] = ()
    """Oddities: an encoding other than UTF-8, splits that follow from names."""

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
    def train(self) -> CaptionedImages:
        """Training images."""
        return self.in_split("train")

    @property
    def val(self) -> CaptionedImages:
        """Validation images."""
        return self.in_split("val")

    @property
    def test(self) -> CaptionedImages:
        """Test images."""
        return self.in_split("test")

    @property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Number of `images` and `captions` in each split."""
        parts = {split: self.in_split(split) for split in SPLITS}
        return {split: {"images": len(part), "captions": len(part.captions)} for split, part in parts.items()}

    @property
    def fingerprint(self) -> str:
        """Return the sha256 (hex) of all image ids, splits and captions.

        Folder and photographs' bytes do not enter: a moved copy is the same dataset.
        """
        digest = hashlib.sha256()
        for image in sorted(self.images, key=lambda image: image.image_id):
            digest.update(json.dumps([image.image_id, image.split, image.captions]).encode() + b"\n")
        return digest.hexdigest()


def merge_duplicates(images: Sequence[CaptionedImage]) -> tuple[CaptionedImage, ...]:
    """Merge files with equal bytes into the first of them, with the captions of all.

    A search cannot tell one copy from the other, so either is a right answer.
    """
    merged: dict[str, CaptionedImage] = {}
    for image, content in zip(images, content_sums([image.path for image in images]), strict=True):
        first = merged.get(content)
        merged[content] = replace(first, captions=first.captions + image.captions) if first else image
    return tuple(merged.values())


class RawCaption(NamedTuple):
    """A caption as its file has it."""

    image_id: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class RawDataset:
    """What a reader found, before anything is included or excluded."""

    format: str
    files: dict[str, str]
    photographs: Mapping[str, Path]
    """Every file in the image folder whose name is an image's, by image id."""
    captions: list[RawCaption]
    splits: Mapping[str, Split] | None
    """Split of each image id; None if the format names no splits: then `hash_split` decides."""


def hash_split(image_id: str) -> Split:
    """Return a split by the hash of an image id: 80% train, 10% val, 10% test.

    It depends on the id alone, so new images and other captions never move an image to another split.
    """
    tenth = int.from_bytes(hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()[:8]) % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"


def check_image_name(name: str, where: str) -> str:
    """Return an image name from a caption file; refuse one that points out of the image folder.

    Args:
        name: File name relative to the image folder.
        where: File and line, for the message.

    Raises:
        DataError: If the name is absolute, has a drive letter, a backslash (also a UNC path), `..` or a NUL.
    """
    is_unsafe = name.startswith("/") or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name)
    if is_unsafe or ".." in name.split("/"):
        raise DataError(
            f"{where}: image name {name[:120]!r} points out of the image folder; "
            "expected a name inside it, with forward slashes and without '..'"
        )
    return name


def is_utf8(name: str) -> bool:
    """Whether a file's name is text; Python puts a lone surrogate for each byte that is not."""
    return not LONE_SURROGATE.search(name)


def assemble(
    root: Path, raw: RawDataset, notes: Iterable[str] = (), *, include_unsplit: bool
) -> CaptionDataset:
    """Include every photograph and every caption, or exclude it with a reason.

    Args:
        root: The dataset's folder.
        raw: What the format's reader found.
        notes: Its oddities.
        include_unsplit: Put images outside every split into train instead of excluding them.

    Raises:
        DataError: If no captioned image remains.
    """
    excluded: list[Excluded] = []
    captions_of: dict[str, list[RawCaption]] = {}
    for caption in raw.captions:
        if reason := _caption_problem(caption, raw.photographs):
            excluded.append(_excluded_caption(caption, reason))
        else:
            captions_of.setdefault(caption.image_id, []).append(caption)

    images: list[CaptionedImage] = []
    for image_id, path in sorted(raw.photographs.items()):
        captions = captions_of.get(image_id, [])
        split = raw.splits.get(image_id) if raw.splits is not None else hash_split(image_id)
        if split is None and include_unsplit:
            split = "train"
        reason = _image_problem(image_id, path, captions)
        if reason is not None or split is None:
            excluded.append(Excluded("image", printable(image_id), reason or IN_NO_SPLIT))
            excluded.extend(_excluded_caption(caption, reason or IN_NO_SPLIT) for caption in captions)
        else:
            images.append(CaptionedImage(image_id, path, tuple(caption.text for caption in captions), split))

    known = raw.photographs.keys() | {caption.image_id for caption in raw.captions}
    excluded.extend(Excluded("image", name, NEITHER) for name in sorted((raw.splits or {}).keys() - known))
    if not images:
        raise DataError(_nothing_remains(root, raw, excluded))
    notes = tuple(map(printable, notes)) + ((HASHED_SPLIT,) if raw.splits is None else ())
    files = {printable(role): printable(name) for role, name in raw.files.items()}
    return CaptionDataset(root, raw.format, files, CaptionedImages(images), tuple(excluded), notes)


def _caption_problem(caption: RawCaption, photographs: Mapping[str, Path]) -> str | None:
    if not caption.text:
        return EMPTY_CAPTION
    if len(caption.text) > MAX_CAPTION_CHARACTERS:
        return LONG_CAPTION
    return None if caption.image_id in photographs else NO_PHOTOGRAPH


def _image_problem(image_id: str, path: Path, captions: list[RawCaption]) -> str | None:
    if not is_utf8(image_id):
        return NOT_UTF8
    if path.name.startswith("."):
        return HIDDEN_FILE  # macOS leaves `._name.jpg` beside every photograph of an unpacked archive
    if path.suffix.lower() in OTHER_IMAGE_SUFFIXES:
        return OTHER_FORMAT
    return None if captions else NO_CAPTION


def _excluded_caption(caption: RawCaption, reason: str) -> Excluded:
    return Excluded("caption", printable(f"{caption.image_id}#{caption.number}"), reason)


def _nothing_remains(root: Path, raw: RawDataset, excluded: list[Excluded]) -> str:
    counts = Counter((item.kind, item.reason) for item in excluded)
    reasons = "; ".join(f"{count} {kind}(s): {reason}" for (kind, reason), count in counts.most_common())
    files = ", ".join(f"{role} {name}" for role, name in raw.files.items())
    return f"{root}: no image with a caption remains ({raw.format}: {files}). Excluded: {reasons}"
