"""Latents of captioned images, encoded once for all runs."""

from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipgraft.cache import cache_dir
from clipgraft.cached_arrays import CachedArrays, ContentCache
from clipgraft.console import track
from clipgraft.data.dataset import CaptionDataset, CaptionedImage
from clipgraft.data.image_file import content_sums
from clipgraft.data.images import open_image
from clipgraft.data.transforms import vae_pixel_values
from clipgraft.errors import DataError, UserError
from clipgraft.evaluation.features import model_fingerprint, pixels_versions
from clipgraft.files import fingerprint
from clipgraft.models.base import FrozenBase
from clipgraft.settings import DataSettings

ENCODE_BATCH_SIZE = 4
"""Images of 512 x 512; larger batches are no faster on a CPU."""
NUM_MEASURED_IMAGES = 8
"""Each costs fifteen passes of the U-Net before and after refining."""


class LatentImages(NamedTuple):
    """Images to refine and to measure on, and their float16 latents."""

    train: tuple[CaptionedImage, ...]
    train_latents: CachedArrays
    test: tuple[CaptionedImage, ...]
    test_latents: Tensor
    """(N, 4, h, w)."""


def encode_images(
    data: CaptionDataset,
    base: FrozenBase,
    limits: DataSettings | None = None,
    num_measured: int = NUM_MEASURED_IMAGES,
) -> LatentImages:
    """Encode the train split, and test (else train) images to measure on.

    Raises:
        UserError: If there is no training image.
    """
    assert base.unet is not None
    limits = limits or DataSettings()
    train = data.train.first(limits.max_train_images or len(data.train))
    if not train:
        raise UserError("no training image to refine on; name a source with a train split")
    test = (data.test[: limits.max_test_images or None] or train)[:num_measured]
    size = int(base.unet.config.sample_size) * 8
    return LatentImages(train, load_latents(base, train, size), test, stacked(load_latents(base, test, size)))


def load_latents(base: FrozenBase, images: Sequence[CaptionedImage], size: int) -> CachedArrays:
    """Return each image's scaled float16 latents (4, size / 8, size / 8).

    float16 halves the memory and is far finer than the added noise. Images are resized to fill a square of
    `size` pixels and cropped.

    Raises:
        DataError: If the VAE's latents of an image are not finite; those before it are kept.
    """
    assert base.vae is not None
    encoder = fingerprint(size, model_fingerprint(base.vae), pixels_versions(), version("diffusers"))
    cache = ContentCache(cache_dir() / "latents" / encoder[:16], "latents")
    with track("encoding latents", len(images)) as update:
        return cache.arrays(
            content_sums([image.file for image in images]),
            lambda indices: _encode(base, [images[index] for index in indices], size),
            lambda done: update(done, "images"),
        )


def stacked(latents: Iterable[np.ndarray]) -> Tensor:
    """Return latents as one tensor (N, 4, h, w)."""
    return torch.from_numpy(np.stack([*latents]))


@torch.no_grad()
def _encode(base: FrozenBase, images: Sequence[CaptionedImage], size: int) -> Iterator[np.ndarray]:
    assert base.vae is not None
    for start in range(0, len(images), ENCODE_BATCH_SIZE):
        batch = images[start : start + ENCODE_BATCH_SIZE]
        opened = (open_image(image.file) for image in batch)
        pixels = vae_pixel_values(opened, size).to(base.vae.device, base.vae.dtype)
        for row, image in zip(base.encode_latents(pixels).half().cpu(), batch, strict=True):
            if not row.isfinite().all():
                raise DataError(
                    f"the base's VAE makes no finite latents of {image.file}; take the image out of "
                    "the source, or set refine.mixed_precision to no"
                )
            yield row.contiguous().numpy()
