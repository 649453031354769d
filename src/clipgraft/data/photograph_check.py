"""Damage, copies and look-alikes of photographs, found in one pass."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from clipgraft.data.dataset import SPLITS, CaptionedImage
from clipgraft.data.findings import NUM_SHOWN, Example, Finding, Lookup
from clipgraft.data.image_file import ImageFile, content_checksums, read_image_bytes
from clipgraft.data.images import MAX_FILE_BYTES, MAX_PIXELS, MIN_SIDE, decode_beside_others, read_header
from clipgraft.data.near_duplicates import PerceptualHash, near_groups, perceptual_hash
from clipgraft.data.repeats import equal_groups
from clipgraft.errors import DataError, MissingFileError, number_of

MAX_UNREADABLE = 10_000
"""Damaged photographs that are kept by name; the rest are counted."""
UNREAD = 0
"""In place of the checksum of a photograph that was not read."""


class _Look(NamedTuple):
    """What one photograph is, or why it cannot be used."""

    content: int
    hash: PerceptualHash | None
    problem: str = ""


class PhotographCheck:
    """Measurements of photographs from one pass; 25 bytes each stay in memory.

    Args:
        decode: Decode every photograph; otherwise bytes alone are compared.
        on_image: Called after each photograph that was decoded.
    """

    def __init__(self, *, decode: bool, on_image: Callable[[], None]):
        self._decode, self._on_image = decode, on_image
        self.num_unreadable = 0
        self.unreadable: dict[str, str] = {}
        """Image id -> reason."""
        self._damaged: list[Example] = []
        self._contents, self._splits = array("Q"), array("B")
        self._phashes, self._dhashes = array("Q"), array("Q")  # of those that were read

    def add(self, images: Sequence[CaptionedImage], pool: Executor) -> None:
        """Add photographs that follow one another, a few at a time."""
        self._splits.extend(SPLITS.index(image.split) for image in images)
        if not self._decode:
            checksums = content_checksums([image.file for image in images])
            self._contents.extend(int(content[:16], 16) for content in checksums)
            return
        for image, look in zip(images, pool.map(_look, [image.file for image in images]), strict=True):
            self._add(image, look)
            self._on_image()

    def _add(self, image: CaptionedImage, look: _Look) -> None:
        self._contents.append(look.content)
        if look.hash:
            self._phashes.append(look.hash.phash)
            self._dhashes.append(look.hash.dhash)
        if look.problem:
            self.num_unreadable += 1
            if self.num_unreadable <= MAX_UNREADABLE:
                self.unreadable[image.image_id] = look.problem
            if self.num_unreadable <= NUM_SHOWN:
                self._damaged.append(Example(f"{image.image_id}: {look.problem}", (image,)))

    def splits(self) -> np.ndarray:
        """Return the index in `SPLITS` of each image's split."""
        return np.frombuffer(self._splits, np.uint8)

    def same_image(self) -> np.ndarray:
        """Return, for each image, the number of the first with equal bytes."""
        same = np.arange(len(self._splits), dtype=np.uint32)
        for group in self.duplicates():
            same[group] = group[0]
        return same

    def duplicates(self) -> list[list[int]]:
        """Group the numbers of images with equal bytes."""
        contents = np.frombuffer(self._contents, np.uint64)
        if not self.num_unreadable:
            return equal_groups(contents)
        places = np.flatnonzero(contents != UNREAD)
        return [places[group].tolist() for group in equal_groups(contents[places])]

    def near_duplicates(self) -> list[list[int]] | None:
        """Group images that look alike, one of each content; None without decoding."""
        if not self._decode:
            return None
        read = np.flatnonzero(np.frombuffer(self._contents, np.uint64) != UNREAD)
        is_copy = np.zeros(len(self._contents), bool)
        for group in self.duplicates():
            is_copy[group[1:]] = True
        is_first = ~is_copy[read]
        places = read[is_first]
        hashes = (np.frombuffer(each, np.uint64)[is_first] for each in (self._phashes, self._dhashes))
        return [places[group].tolist() for group in near_groups(*hashes)]

    def findings(self, lookup: Lookup) -> Iterator[Finding]:
        """Yield what is odd in photographs, the worst first."""
        if self.num_unreadable:
            yield Finding(
                "unreadable",
                f"{number_of(self.num_unreadable, 'photograph')} cannot be opened",
                "training stops at the first one, or leaves them out with --on-damaged skip",
                self.num_unreadable,
                tuple(self._damaged),
            )
        equal, alike = self.duplicates(), self.near_duplicates() or []
        groups = {
            "leakage": [group for group in equal if self._is_leak(group)],
            "near_leakage": [group for group in alike if self._is_leak(group)],
            "duplicates": [group for group in equal if not self._is_leak(group)],
            "near_duplicates": [group for group in alike if not self._is_leak(group)],
        }
        for kind, found in groups.items():
            if found:
                yield _group_finding(kind, found, lookup)

    def _is_leak(self, group: Sequence[int]) -> bool:
        return len({self._splits[number] for number in group}) > 1


GROUPS = {
    "leakage": (
        "have the same bytes, in more than one split",
        "figures of val and test are too good by them (--fix keeps each in one split)",
    ),
    "near_leakage": (
        "look alike, in more than one split",
        "if they are copies, figures of val and test are too good by them (--sheet shows them)",
    ),
    "duplicates": (
        "have the same bytes",
        "each is seen as often as it has copies (--fix merges them with their captions)",
    ),
    "near_duplicates": (
        "look alike",
        "if they are copies, they are seen more often, and are false negatives of each other in one batch",
    ),
}
"""Findings on groups of photographs, and their effect on training."""


def _group_finding(kind: str, groups: Sequence[Sequence[int]], lookup: Lookup) -> Finding:
    what, effect = GROUPS[kind]
    shown = groups[:NUM_SHOWN]
    found = lookup({number for group in shown for number in group[:NUM_SHOWN]})
    examples = []
    for group in shown:
        images = tuple(found[number] for number in group[:NUM_SHOWN])
        more = f" and {len(group) - NUM_SHOWN:,} more" if len(group) > NUM_SHOWN else ""
        text = " = ".join(f"{image.image_id} ({image.split})" for image in images)
        examples.append(Example(text + more, images))
    num_images = sum(map(len, groups))
    summary = f"{number_of(num_images, 'photograph')} {what} ({number_of(len(groups), 'group')})"
    return Finding(kind, summary, effect, len(groups), tuple(examples))


def _look(file: ImageFile) -> _Look:
    try:
        content = read_image_bytes(file, MAX_FILE_BYTES)
        image = decode_beside_others(read_header(content, MAX_PIXELS, min_side=MIN_SIDE))
    except (DataError, MissingFileError) as error:
        if isinstance(error.__cause__, MemoryError):  # says nothing of the file
            raise
        return _Look(UNREAD, None, str(error).removeprefix(f"{file}: "))
    key = int.from_bytes(sha256(content).digest()[:8])
    return _Look(key, perceptual_hash(image))
