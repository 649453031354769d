"""What a source of captioned images is: its records, its splits and what was left out.

The split is by image, never by caption: all captions of an image lie in the image's split. Readers parse
their format into a `Reading`; `assemble` turns any reading into a `Source`, where every photograph and every
caption is either in `images` or named with a reason in `left_out`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from clipgraft.errors import DataError, UserError, printable
from clipgraft.files import LONE_SURROGATE

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

CONTEXT_LENGTH = 77
"""Tokens that CLIP's text tower has positions for, BOS and EOS included (`CLIPTextConfig`'s default)."""

NO_PHOTOGRAPH = "no photograph"
NO_CAPTION = "no caption"
NEITHER = "listed in a split, but no photograph and no caption"
IN_NO_SPLIT = "in no split"
EMPTY_CAPTION = "empty caption"
OTHER_FORMAT = "not a JPEG, PNG or WebP file"
HIDDEN_FILE = "hidden file"
NOT_UTF8 = "file name that is not UTF-8"
LONG_CAPTION = "caption of over 10,000 characters"

MAX_CAPTION_CHARACTERS = 10_000
"""CLIP reads 77 tokens, some 400 characters; the longest captions written for images have some thousands."""

HASHED_SPLIT = "no split is named, so a hash of each image's name draws it: 80% train, 10% val, 10% test"

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"})
OTHER_IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff"}
)


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One photograph with all of its captions."""

    image_id: str
    """File name relative to the image folder, with forward slashes: `1000268201_693b08cb0e.jpg`."""
    path: Path
    """Where the file lies."""
    captions: tuple[str, ...]
    """One or more captions, in the order of the caption file."""
    split: Split
    """The split that the image and all of its captions belong to."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """One photograph or one caption that no record holds, and why."""

    kind: Literal["image", "caption"]
    name: str
    """Image id; for a caption, image id, `#` and the caption's number from 0."""
    reason: str


@dataclass(frozen=True, slots=True)
class Source:
    """All captioned images of one folder, and all that was left out of them.

    Raises:
        DataError: If an image id comes twice (be it in two splits), a split is unknown or an image has no
            caption.
    """

    root: Path
    format: str
    """Name of the format that was found, as in `docs/data.md`."""
    files: dict[str, str]
    """Role of each file that was read (`captions`, `images`, `train split`) -> its path below `root`."""
    images: tuple[CaptionedImage, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know: an encoding that was not UTF-8, a split that was drawn by hash."""

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

    def in_split(self, split: Split) -> tuple[CaptionedImage, ...]:
        """Return the images of one split, in the order of their ids.

        Raises:
            ValueError: If `split` is not train, val or test.
        """
        if split not in SPLITS:
            raise UserError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
        return tuple(image for image in self.images if image.split == split)

    @property
    def num_images(self) -> int:
        """Number of images in all splits."""
        return len(self.images)

    @property
    def num_captions(self) -> int:
        """Number of captions in all splits."""
        return sum(len(image.captions) for image in self.images)

    @property
    def counts(self) -> dict[Split, dict[str, int]]:
        """Number of `images` and `captions` of each split."""
        totals: dict[Split, dict[str, int]] = {split: {"images": 0, "captions": 0} for split in SPLITS}
        for image in self.images:
            totals[image.split]["images"] += 1
            totals[image.split]["captions"] += len(image.captions)
        return totals

    @property
    def fingerprint(self) -> str:
        """Return the sha256 (hex) of every image id, split and caption: equal for equal training data.

        Folder and photographs' bytes do not enter, so that a moved copy is still the same source.
        """
        digest = hashlib.sha256()
        for image in sorted(self.images, key=lambda image: image.image_id):
            digest.update(json.dumps([image.image_id, image.split, image.captions]).encode() + b"\n")
        return digest.hexdigest()


class RawCaption(NamedTuple):
    """A caption as its file has it."""

    image_id: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader found, before anything is counted in or out."""

    format: str
    files: dict[str, str]
    photographs: Mapping[str, Path]
    """Every file in the image folder that looks like an image, by image id."""
    captions: list[RawCaption]
    splits: Mapping[str, Split] | None
    """Split of each image id; None where the format names no splits, so that a hash draws them."""


def hash_split(image_id: str) -> Split:
    """Return the split of an image whose source names none: 80% train, 10% val, 10% test.

    Depends on the image id alone, so that more images or other captions never move an image to another split.
    """
    tenth = int.from_bytes(hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()[:8]) % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"


def check_image_name(name: str, where: str) -> str:
    """Return an image name read from a caption file, or refuse one that could point out of the image folder.

    Args:
        name: File name as read, relative to the image folder.
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
    """Whether a file's name is text; Python stands a lone surrogate for each byte of it that is none."""
    return not LONE_SURROGATE.search(name)


def assemble(root: Path, reading: Reading, notes: Iterable[str] = (), *, include_unsplit: bool) -> Source:
    """Count every photograph and every caption of a reading in, or out with a reason.

    Args:
        root: The source's folder.
        reading: What the format's reader found.
        notes: What it found odd.
        include_unsplit: Put images that no split names into train instead of leaving them out.

    Raises:
        DataError: If not one captioned image remains.
    """
    left_out: list[LeftOut] = []
    captions_of: dict[str, list[RawCaption]] = {}
    for caption in reading.captions:
        if not caption.text:
            left_out.append(_caption_left_out(caption, EMPTY_CAPTION))
        elif len(caption.text) > MAX_CAPTION_CHARACTERS:
            left_out.append(_caption_left_out(caption, LONG_CAPTION))
        elif caption.image_id not in reading.photographs:
            left_out.append(_caption_left_out(caption, NO_PHOTOGRAPH))
        else:
            captions_of.setdefault(caption.image_id, []).append(caption)

    images: list[CaptionedImage] = []
    for image_id, path in sorted(reading.photographs.items()):
        captions = captions_of.get(image_id, [])
        split = reading.splits.get(image_id) if reading.splits is not None else hash_split(image_id)
        if split is None and include_unsplit:
            split = "train"
        reason = _reason_against(image_id, path, captions)
        if reason is not None or split is None:
            left_out.append(LeftOut("image", printable(image_id), reason or IN_NO_SPLIT))
            left_out.extend(_caption_left_out(caption, reason or IN_NO_SPLIT) for caption in captions)
        else:
            images.append(CaptionedImage(image_id, path, tuple(caption.text for caption in captions), split))

    known = reading.photographs.keys() | {caption.image_id for caption in reading.captions}
    left_out.extend(LeftOut("image", name, NEITHER) for name in sorted((reading.splits or {}).keys() - known))
    if not images:
        raise DataError(_nothing_remains(root, reading, left_out))
    notes = tuple(map(printable, notes)) + ((HASHED_SPLIT,) if reading.splits is None else ())
    files = {printable(role): printable(name) for role, name in reading.files.items()}
    return Source(root, reading.format, files, tuple(images), tuple(left_out), notes)


def _reason_against(image_id: str, path: Path, captions: list[RawCaption]) -> str | None:
    if not is_utf8(image_id):
        return NOT_UTF8
    if path.name.startswith("."):
        return HIDDEN_FILE  # macOS leaves `._name.jpg` beside every photograph of an unpacked archive
    if path.suffix.lower() in OTHER_IMAGE_SUFFIXES:
        return OTHER_FORMAT
    return None if captions else NO_CAPTION


def _caption_left_out(caption: RawCaption, reason: str) -> LeftOut:
    return LeftOut("caption", printable(f"{caption.image_id}#{caption.number}"), reason)


def _nothing_remains(root: Path, reading: Reading, left_out: list[LeftOut]) -> str:
    counts = Counter((item.kind, item.reason) for item in left_out)
    reasons = "; ".join(f"{count} {kind}(s): {reason}" for (kind, reason), count in counts.most_common())
    files = ", ".join(f"{role} {name}" for role, name in reading.files.items())
    return f"{root}: no image with a caption remains ({reading.format}: {files}). Left out: {reasons}"
