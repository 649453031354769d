"""Latents of captioned images, encoded once for all runs."""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipgraft.cache import cache_dir
from clipgraft.cached_arrays import CachedArrays, ContentCache
from clipgraft.console import track
from clipgraft.data.buckets import Bucket, group_by_size, make_buckets, nearest_bucket
from clipgraft.data.dataset import CaptionDataset, CaptionedImage
from clipgraft.data.image_file import content_checksums
from clipgraft.data.images import open_image
from clipgraft.data.transforms import vae_pixel_values
from clipgraft.errors import DataError, UserError
from clipgraft.evaluation.features import model_fingerprint, pixels_versions
from clipgraft.files import fingerprint
from clipgraft.models.base import FrozenBase
from clipgraft.section import PIXELS_PER_LATENT, LatentCrop
from clipgraft.settings import DataSettings

ENCODE_BATCH_SIZE = 4
"""Images of 512 x 512; larger batches are no faster on a CPU."""
WINDOW = 8 * ENCODE_BATCH_SIZE
"""Images among which those of one bucket are encoded together: 100 MB of pixels."""
NUM_MEASURED_IMAGES = 8
"""Each costs fifteen passes of the U-Net before and after refining."""


class LatentImages(NamedTuple):
    """Images to refine and to measure on, and their float16 latents (4, h, w)."""

    train: tuple[CaptionedImage, ...]
    train_latents: CachedArrays
    test: tuple[CaptionedImage, ...]
    test_latents: list[Tensor]


def encode_images(
    data: CaptionDataset,
    base: FrozenBase,
    limits: DataSettings | None = None,
    num_measured: int = NUM_MEASURED_IMAGES,
    crop: LatentCrop = "buckets",
) -> LatentImages:
    """Encode the train split, and test (else train) images to measure on.

    Raises:
        UserError: If there is no training image.
    """
    limits = limits or DataSettings()
    train = data.hold_train(limits.max_train_images)
    if not train:
        raise UserError("no training image to refine on; name a source with a train split")
    test = (data.test[: limits.max_test_images or None] or train)[:num_measured]
    buckets = choose_buckets(base, crop)
    measured = [torch.from_numpy(array) for array in load_latents(base, test, buckets)]
    return LatentImages(train, load_latents(base, train, buckets), test, measured)


def choose_buckets(base: FrozenBase, crop: LatentCrop) -> tuple[Bucket, ...]:
    """Return sizes that a base's U-Net halves evenly, or its square."""
    side = int(base.unet.config.sample_size) * PIXELS_PER_LATENT
    if crop == "center":
        return (Bucket(side, side),)
    return make_buckets(side, PIXELS_PER_LATENT * 2 ** (len(base.unet.config.down_block_types) - 1))


def load_latents(
    base: FrozenBase, images: Sequence[CaptionedImage], buckets: tuple[Bucket, ...]
) -> CachedArrays:
    """Return each image's scaled float16 latents (4, height / 8, width / 8).

    float16 halves the memory and is far finer than the added noise. Each image is resized to fill the bucket
    nearest in aspect ratio, and cropped.

    Raises:
        DataError: If the VAE's latents of an image are not finite; those before it are kept.
    """
    encoder = fingerprint(buckets, model_fingerprint(base.vae), pixels_versions(), version("diffusers"))
    cache = ContentCache(cache_dir() / "latents" / encoder[:16], "latents")
    with track("encoding latents", len(images)) as update:
        return cache.arrays(
            content_checksums([image.file for image in images]),
            lambda indices: _encode(base, [images[index] for index in indices], buckets),
            lambda done: update(done, "images"),
        )


@torch.no_grad()
def _encode(
    base: FrozenBase, images: Sequence[CaptionedImage], buckets: tuple[Bucket, ...]
) -> Iterator[np.ndarray]:
    for start in range(0, len(images), WINDOW):
        window = images[start : start + WINDOW]
        pixels = [_vae_pixels(image, buckets) for image in window]
        latents: dict[int, Tensor] = {}
        for rows in group_by_size([each.shape for each in pixels], ENCODE_BATCH_SIZE):
            batch = torch.cat([pixels[row] for row in rows]).to(base.vae.device, base.vae.dtype)
            latents |= zip(rows, base.encode_latents(batch).half().cpu(), strict=True)
        for row, image in enumerate(window):
            if not latents[row].isfinite().all():
                raise DataError(
                    f"the base's VAE makes no finite latents of {image.file}; take the image out of "
                    "the source, or set refine.mixed_precision to no"
                )
            yield latents[row].contiguous().numpy()


def _vae_pixels(image: CaptionedImage, buckets: tuple[Bucket, ...]) -> Tensor:
    opened = open_image(image.file)
    bucket = buckets[nearest_bucket(opened.height, opened.width, buckets)]
    return vae_pixel_values([opened], bucket.height, bucket.width)
