"""Sums of photographs' bytes: a name does not say what a file holds. Each file is read once a process."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

from clipgraft.data.dataset import CaptionedImage
from clipgraft.errors import MissingFileError


def content_sums(paths: Sequence[Path]) -> list[str]:
    """Return the sha256 (hex) of each file's bytes.

    Args:
        paths: Of files; one that has not changed since it was read in this process is not read again.

    Raises:
        MissingFileError: If one is not there.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib lets go of the interpreter's lock
        return list(pool.map(_content_sum, paths))


def merge_copies(images: Sequence[CaptionedImage]) -> tuple[CaptionedImage, ...]:
    """Take files with the same bytes as one image, with the captions of all.

    Whoever looks for it cannot tell one copy from the other, so that either is the right answer.

    Args:
        images: In any order; the first of copies stands for all.
    """
    merged: dict[str, CaptionedImage] = {}
    for image, content in zip(images, content_sums([image.path for image in images]), strict=True):
        first = merged.get(content)
        merged[content] = replace(first, captions=first.captions + image.captions) if first else image
    return tuple(merged.values())


def _content_sum(path: Path) -> str:
    try:
        found = path.stat()
        return _sum_of(path, found.st_size, found.st_mtime_ns)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such image") from None


@cache
def _sum_of(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
