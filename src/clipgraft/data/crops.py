"""CLIP's 8-bit crops of photographs, each decoded once for all runs.

A crop's key is the checksum of its file; the settings that decide its pixels name the folder. So a changed
photograph is decoded anew and the others are not.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np

from clipgraft.cache import CachedArrays, ContentCache, cache_dir, content_sums
from clipgraft.console import track
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import decode, opened_image
from clipgraft.data.transforms import PIXELS_VERSION, ImageProcessor, clip_crop

SEGMENT_BYTES = 128 * 2**20
"""Held in memory while it is cut: 891 crops of 224 pixels."""
PARALLEL_PIXELS = 25_000_000
"""Of an image that is decoded while others are; larger ones take up to 1.5 GB each."""
NORMALIZATION = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
"""Settings of an image processor that come behind its 8-bit crop."""


def load_crops(images: Sequence[CaptionedImage], processor: ImageProcessor) -> CachedArrays:
    """Return CLIP's crops of images, decoding those that are not cached; see `cut_crops`."""
    paths = [image.path for image in images]
    with track("reading images", len(paths)) as update:
        return cut_crops(paths, processor, cache_dir() / "crops", lambda done: update(done, "decoded"))


def cut_crops(
    paths: Sequence[Path],
    processor: ImageProcessor,
    folder: Path,
    on_image: Callable[[int], None] = lambda done: None,
) -> CachedArrays:
    """Return CLIP's crops of photographs, decoding those that are not in `folder`.

    Args:
        paths: JPEG, PNG or WebP files.
        processor: Its settings are part of a crop's key.
        folder: All crops of all data.
        on_image: Called with the number of images decoded so far.

    Returns:
        For each path (3, S, S) uint8.

    Raises:
        MissingFileError: If a photograph is missing.
        DataError: If one cannot be read; what was cut before stays.
        OSError: If the disk is full; what was cut before stays.
    """
    cache = ContentCache(folder / _settings_sum(processor), "crops")
    sums = content_sums(paths)
    known = cache.find(sums)
    todo = list({key: path for key, path in zip(sums, paths, strict=True) if key not in known}.items())
    start = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter's lock
        while start < len(todo):
            key, path = todo[start]
            crops = {key: _cut(path, processor)}
            part = todo[start : start + max(1, SEGMENT_BYTES // crops[key].nbytes)]
            on_image(start + 1)
            cuts = pool.map(partial(_cut_if_small, processor=processor), [path for _, path in part[1:]])
            for (key, path), crop in zip(part[1:], cuts, strict=True):
                crops[key] = _cut(path, processor) if crop is None else crop
                on_image(start + len(crops))
            known |= cache.add(crops)
            start += len(part)
    return CachedArrays(known[key] for key in sums)


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
