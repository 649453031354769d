"""Crops from the cache, or decoded while training."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipgraft.cache import cache_bound
from clipgraft.cached_arrays import CachedArrays
from clipgraft.data.dataset import CaptionedImage, CaptionedImages, TrainingImages
from clipgraft.data.image_file import content_checksums, read_image_bytes
from clipgraft.data.images import MAX_FILE_BYTES, DamagedImageError, decode, opened_content
from clipgraft.data.mixed import MixedImages
from clipgraft.data.transforms import ImageProcessor, clip_crop, load_crops
from clipgraft.errors import MissingFileError


class Crop(NamedTuple):
    """CLIP's crop of an image."""

    pixels: np.ndarray | None
    """(3, S, S) uint8; None where captions are read alone."""
    content_checksum: str
    """sha256 of the file, equal for equal files."""


class KeptCrops:
    """Crops of images in memory, from the cache.

    Args:
        images: All of them.
        arrays: Their crops.
    """

    def __init__(self, images: Sequence[CaptionedImage], arrays: CachedArrays) -> None:
        self.arrays = arrays
        self._index = {image.image_id: index for index, image in enumerate(images)}

    def __call__(self, image: CaptionedImage) -> Crop:
        """Return an image's crop."""
        index = self._index[image.image_id]
        return Crop(self.arrays[index], self.arrays.places[index].key)


@dataclass(frozen=True, slots=True)
class CropReader:
    """Crops cut as they are needed, equal to the cached ones."""

    processor: ImageProcessor

    def __call__(self, image: CaptionedImage) -> Crop:
        """Read, decode and crop an image.

        Raises:
            DamagedImageError: If it cannot be used, or its own file is not there.
            MissingFileError: If its shard is not there any more.
            DataError: If its shard is cut or has changed.
        """
        try:
            content = read_image_bytes(image.file, MAX_FILE_BYTES)
        except MissingFileError as error:
            if isinstance(image.file, Path):
                raise DamagedImageError(str(error)) from error
            raise
        with opened_content(content, image.file) as opened:
            pixels = clip_crop(decode(opened), self.processor)
        return Crop(np.ascontiguousarray(pixels), sha256(content).hexdigest())


def crops_of(images: TrainingImages, processor: ImageProcessor) -> "KeptCrops | CropReader":
    """Return crops cut before training if they fit into the cache."""
    held = images.held if isinstance(images, MixedImages) else images
    size = processor.crop_size
    if isinstance(held, CaptionedImages) and 3 * size["height"] * size["width"] * len(held) <= cache_bound():
        return KeptCrops(held, load_crops(held, processor))
    return CropReader(processor)


class NoCrops:
    """Content checksums alone, where a table has the embeds of all images."""

    def __call__(self, image: CaptionedImage) -> Crop:
        """Return an image's content checksum without pixels."""
        return Crop(None, content_checksums([image.file])[0])
