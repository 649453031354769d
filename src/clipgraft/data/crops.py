"""Each photograph decoded once: CLIP's 8-bit crops on disk, read through a memory map.

A crop is known by the sum of its file and by all that decides its pixels, so a changed photograph is cut anew
and the others are not. Crops lie in segments that are written once, whole, and never changed: runs that cut
at the same time do no more than the same work twice.
"""

import json
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from clipgraft.cache import cache_dir, content_sums
from clipgraft.console import track
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import decode, opened_image
from clipgraft.data.transforms import PIXELS_VERSION, ImageProcessor, clip_crop
from clipgraft.files import clear_parts, write_bytes

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 128 * 2**20
"""Held in memory while it is cut: 891 crops of 224 pixels."""
PARALLEL_PIXELS = 25_000_000
"""Of an image that is decoded while others are; larger ones take up to 1.5 GB each."""
NORMALIZATION = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
"""Settings of an image processor that come behind its 8-bit crop."""


class Place(NamedTuple):
    """Where a crop lies: the segment, and its name there, the sum of the photograph's file."""

    segment: Path
    name: str


class Crops:
    """Crops of some images, in their order; `crops[i]` is (3, S, S) uint8.

    Args:
        places: One an image.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> np.ndarray:
        segment, name = self.places[index]
        if segment not in self._open:
            self._open[segment] = safe_open(segment, "np")
        return self._open[segment].get_tensor(name)

    def __getstate__(self) -> dict[str, Any]:
        return {"places": self.places, "_open": {}}  # each process maps the segments by itself


def cut_crops(
    paths: Sequence[Path],
    processor: ImageProcessor,
    folder: Path,
    update: Callable[[int], None] = lambda done: None,
) -> Crops:
    """Give CLIP's crops of photographs, cutting those that are not there yet.

    They are decoded one a core, but those of more than `PARALLEL_PIXELS` one at a time.

    Args:
        paths: JPEG, PNG or WebP files.
        processor: Cuts them; its settings are part of what a crop is known by.
        folder: Of all crops of all data; may be deleted at any time between runs.
        update: Called with the number of images decoded so far.

    Raises:
        MissingFileError: If a photograph is missing.
        DataError: If one cannot be read; what was cut before it stays.
        OSError: If the disk is full; what was cut before stays.
    """
    own = folder / _settings_sum(processor)
    own.mkdir(parents=True, exist_ok=True)
    clear_parts(own)
    sums = content_sums(paths)
    known = _whole_places(own, set(sums))
    todo = list({name: path for name, path in zip(sums, paths, strict=True) if name not in known}.items())
    start = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of the interpreter's lock
        while start < len(todo):
            name, path = todo[start]
            crops = {name: _cut(path, processor)}
            part = todo[start : start + max(1, SEGMENT_BYTES // crops[name].nbytes)]
            update(start + 1)
            cuts = pool.map(partial(_cut_if_small, processor=processor), [path for _, path in part[1:]])
            for (name, path), crop in zip(part[1:], cuts, strict=True):
                crops[name] = _cut(path, processor) if crop is None else crop
                update(start + len(crops))
            known |= _write_segment(own, crops)
            start += len(part)
    return Crops([known[name] for name in sums])


def load_crops(images: Sequence[CaptionedImage], processor: ImageProcessor) -> Crops:
    """Return CLIP's crops of images, decoding those that are not cached."""
    paths = [image.path for image in images]
    with track("reading images", len(paths)) as update:
        return cut_crops(paths, processor, cache_dir() / "crops", lambda done: update(done, "decoded"))


def _cut(path: Path, processor: ImageProcessor) -> np.ndarray:
    with opened_image(path) as image:
        return np.ascontiguousarray(clip_crop(decode(image), processor))


def _cut_if_small(path: Path, processor: ImageProcessor) -> np.ndarray | None:
    with opened_image(path) as image:
        if image.width * image.height > PARALLEL_PIXELS:
            return None
    return _cut(path, processor)


def _settings_sum(processor: ImageProcessor) -> str:
    settings = {name: str(value) for name, value in processor.to_dict().items() if name not in NORMALIZATION}
    versions = [PIXELS_VERSION, type(processor).__name__, version("pillow"), version("transformers")]
    return sha256(json.dumps([settings, versions], sort_keys=True).encode()).hexdigest()[:16]


def _write_segment(folder: Path, crops: dict[str, np.ndarray]) -> dict[str, Place]:
    """Write crops and their check sums as one file, whole or not at all."""
    segment = folder / f"{uuid.uuid4().hex}.safetensors"
    write_bytes(segment, save(crops, {name: str(zlib.crc32(crop.data)) for name, crop in crops.items()}))
    return {name: Place(segment, name) for name in crops}


def _whole_places(folder: Path, wanted: set[str]) -> dict[str, Place]:
    """Find those of the wanted crops whose bytes are what was written; damaged segments are deleted."""
    whole: dict[str, Place] = {}
    damaged = 0
    for segment in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(segment, "np") as crops:
                check_sums = crops.metadata() or {}
                for name in wanted & set(crops.keys()) - whole.keys():
                    if str(zlib.crc32(crops.get_tensor(name).data)) != check_sums.get(name):
                        raise SafetensorError(f"{name} is not what was written")
                    whole[name] = Place(segment, name)
        except (SafetensorError, OSError):
            whole = {name: place for name, place in whole.items() if place.segment != segment}
            damaged += 1
            if segment.is_file():
                segment.unlink(missing_ok=True)
    if damaged:
        logger.warning(
            "%d file(s) of crops in %s are damaged; their images are decoded anew", damaged, folder
        )
    return whole
