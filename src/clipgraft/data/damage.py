"""Damaged photographs of a dataset: found once by content, skipped by name."""

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version

import numpy as np

from clipgraft.cache import cache_dir
from clipgraft.cached_arrays import ContentCache
from clipgraft.console import say, track
from clipgraft.data.dataset import CaptionDataset, CaptionedImage, CaptionedImages, Excluded
from clipgraft.data.image_file import ImageFile, content_checksums
from clipgraft.data.images import (
    MAX_PIXELS,
    MIN_SIDE,
    DamagedImageError,
    decode_beside_others,
    opened_image,
    readable_formats,
)
from clipgraft.errors import DataError, printable, some_of

DAMAGED = "damaged photograph"
VERDICTS_VERSION = 1
"""Part of the cache's key; raised when `decode` takes or refuses other images."""
VERDICTS_AT_ONCE = 256
"""Images that threads may be ahead."""


def skip_damaged(dataset: CaptionDataset) -> CaptionDataset:
    """Decode every photograph; exclude damaged ones, and say so.

    The same files give the same images, whatever was skipped before. Verdicts are remembered by content.
    """
    damaged = _find_damaged(dataset.images)
    if not damaged:
        return dataset
    kept = CaptionedImages(image for image in dataset.images if image.image_id not in damaged)
    named = some_of([f"{name} ({reason})" for name, reason in damaged.items()])
    if not kept:
        raise DataError(printable(f"{dataset.root}: every photograph is damaged: {named}"))
    number = f"{len(damaged):,} of {len(dataset.images):,} photographs"
    note = printable(f"{number} {'is' if len(damaged) == 1 else 'are'} damaged and skipped: {named}")
    say(note)
    skipped = [image for image in dataset.images if image.image_id in damaged]
    excluded = [Excluded("image", printable(image.image_id), DAMAGED) for image in skipped]
    excluded += [
        Excluded("caption", printable(f"{image.image_id}#{number}"), DAMAGED)
        for image in skipped
        for number in range(len(image.captions))
    ]
    return replace(
        dataset,
        images=kept,
        excluded=(*dataset.excluded, *excluded),
        notes=(*dataset.notes, note),
        damaged=damaged,
    )


def _find_damaged(images: Sequence[CaptionedImage]) -> dict[str, str]:
    """Return why photographs are damaged, by image id."""
    cache = ContentCache(cache_dir() / "damage" / _bounds_checksum(), "verdicts")
    checksums = content_checksums([image.file for image in images])
    with track("checking images", len(images)) as update, ThreadPoolExecutor(os.cpu_count()) as pool:

        def judge(indices: Sequence[int]) -> Iterator[np.ndarray]:
            for start in range(0, len(indices), VERDICTS_AT_ONCE):
                part = [images[index].file for index in indices[start : start + VERDICTS_AT_ONCE]]
                for why in pool.map(_why_damaged, part):
                    yield np.frombuffer(b"\0" + why.encode(), np.uint8)  # never empty

        verdicts = list(cache.arrays(checksums, judge, lambda done: update(done, "decoded")))
    reasons = (verdict.tobytes()[1:].decode() for verdict in verdicts)
    return {image.image_id: why for image, why in zip(images, reasons, strict=True) if why}


def _why_damaged(file: ImageFile) -> str:
    """Return why a photograph cannot be used; "" if it can."""
    try:
        with opened_image(file) as image:
            decode_beside_others(image)
    except DamagedImageError as error:
        return str(error).removeprefix(f"{file}: ")
    return ""


def _bounds_checksum() -> str:
    """Return a checksum of what decides on a file besides its content."""
    bounds = [VERDICTS_VERSION, version("pillow"), readable_formats(), MAX_PIXELS, MIN_SIDE]
    return sha256(json.dumps(bounds).encode()).hexdigest()[:16]
