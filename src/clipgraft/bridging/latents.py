"""Latents of a source's pictures, encoded once for all runs."""

from collections.abc import Sequence
from importlib.metadata import version

import torch
from torch import Tensor

from clipgraft.cache import CachedArrays, ContentCache, cache_dir, content_sums
from clipgraft.console import track
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import open_image
from clipgraft.data.transforms import vae_pixel_values
from clipgraft.errors import DataError
from clipgraft.evaluation.stores import model_fingerprint, pixels_versions
from clipgraft.files import fingerprint
from clipgraft.models.base import FrozenBase

ENCODE_BATCH_SIZE = 4
"""Of 512 x 512 pictures; more at once is no faster on a CPU."""


@torch.no_grad()
def load_latents(base: FrozenBase, images: Sequence[CaptionedImage], size: int) -> Tensor:
    """Return scaled latents, from the disk where the same pictures were encoded before.

    Args:
        base: Its VAE encodes, in the VAE's dtype.
        images: N of them.
        size: Side of the square to which each is resized and cropped, in pixels.

    Returns:
        (N, 4, size / 8, size / 8) float16: half the memory, and far finer than the noise that is added.

    Raises:
        DataError: If the VAE makes something else than numbers of a picture.
    """
    assert base.vae is not None
    sums = content_sums([image.path for image in images])
    key = fingerprint(sums, size, model_fingerprint(base.vae), pixels_versions(), version("diffusers"))
    cache = ContentCache(cache_dir() / "latents", "latents")
    found = cache.find([key])
    if not found:
        found = cache.add({key: _encode(base, images, size).numpy()})
    return torch.from_numpy(CachedArrays(found.values())[0])


def _encode(base: FrozenBase, images: Sequence[CaptionedImage], size: int) -> Tensor:
    assert base.vae is not None
    encoded = []
    with track("encoding latents", len(images)) as update:
        for start in range(0, len(images), ENCODE_BATCH_SIZE):
            batch = images[start : start + ENCODE_BATCH_SIZE]
            opened = (open_image(image.path) for image in batch)
            pixels = vae_pixel_values(opened, size).to(base.vae.device, base.vae.dtype)
            encoded.append(base.encode_latents(pixels).half().cpu())
            _refuse_not_finite(encoded[-1], batch)
            update(start + len(batch), "images")
    return torch.cat(encoded).contiguous()


def _refuse_not_finite(latents: Tensor, images: Sequence[CaptionedImage]) -> None:
    for row, image in zip(latents, images, strict=True):
        if not row.isfinite().all():
            raise DataError(
                f"the base's VAE makes no finite latents of {image.path}; take the picture out of the "
                "source, or set refine.mixed_precision to no"
            )
