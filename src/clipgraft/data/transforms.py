"""Preprocessing: CLIP's pixels, the VAE's pixels, token ids.

Sizes, means and deviations come from the model's own image processor. CLIP's preprocessing is split at its
8-bit crop: decoding and resizing, the costly half, is cached for all runs, by checksums of files in a folder
named after the settings.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import get_image_size_for_max_height_width

from clipgraft.cache import cache_dir
from clipgraft.cached_arrays import CachedArrays, ContentCache
from clipgraft.console import track
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionedImage
from clipgraft.data.image_file import ImageFile, content_checksums
from clipgraft.data.images import PARALLEL_PIXELS, decode, opened_image
from clipgraft.errors import UserError
from clipgraft.section import PIXELS_PER_LATENT, ResizeMode

PIXELS_VERSION = 1
"""Part of each cache's key; raise it when `open_image`, `clip_crop` or `vae_pixel_values` change pixels."""
CROPS_AT_ONCE = 256
"""Crops that threads may be ahead of what is written: 38 MB of 224 pixels."""
NORMALIZATION = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
"""Settings of an image processor applied after its 8-bit crop."""
END_OF_WORD = "</w>"
"""Suffix of word-final tokens in CLIP's vocabulary."""


class ImageProcessor(Protocol):
    """The part of transformers' `CLIPImageProcessor` in use, of any backend."""

    image_mean: list[float]
    image_std: list[float]
    rescale_factor: float
    do_resize: bool
    resample: Any
    size: Any
    crop_size: Any

    def to_dict(self) -> dict[str, Any]:
        """Return all settings."""

    def __call__(self, images: Any, **kwargs: Any) -> Any:
        """Return features with `pixel_values`."""


def clip_pixel_values(images: Iterable[Image.Image], processor: ImageProcessor) -> Tensor:
    """Preprocess RGB images as `processor(images)` does: (B, 3, S, S) float32, normalised."""
    return normalize_clip_crops(
        torch.from_numpy(np.stack([clip_crop(i, processor) for i in images])), processor
    )


def clip_crop(image: Image.Image, processor: ImageProcessor) -> np.ndarray:
    """Resize and centre-crop an image as CLIP's processor does: (3, S, S) uint8."""
    if processor.do_resize:
        # At sizes of the processor's own, but without its four copies of the whole image.
        height, width = _resized(image.height, image.width, dict(processor.size))
        image = image.resize((width, height), processor.resample)
    features = processor(
        images=image, do_resize=False, do_rescale=False, do_normalize=False, return_tensors="np"
    )
    return features["pixel_values"][0]


def _resized(height: int, width: int, size: dict[str, int]) -> tuple[int, int]:
    """Return height and width after resizing by a processor's `size`."""
    if "shortest_edge" in size:
        shape = np.broadcast_to(np.uint8(0), (3, height, width))
        return get_resize_output_image_size(shape, size["shortest_edge"], default_to_square=False)
    if "max_height" in size:
        fitted = get_image_size_for_max_height_width((height, width), size["max_height"], size["max_width"])
        return max(1, fitted[0]), max(1, fitted[1])
    return size["height"], size["width"]


def with_resize_mode(processor: CLIPImageProcessorPil, mode: ResizeMode) -> CLIPImageProcessorPil:
    """Return an image processor that resizes by one of open_clip's modes.

    Args:
        processor: With crops of S x S pixels.
        mode: "shortest": the short side to S, then a centre crop; "longest": the long side to S, with black
            bars; "squash": both sides to S; "": as the processor does.
    """
    side = processor.crop_size["height"]
    sizes: dict[ResizeMode, dict[str, int]] = {
        "shortest": {"shortest_edge": side},
        "longest": {"max_height": side, "max_width": side},
        "squash": {"height": side, "width": side},
    }
    if not mode:
        return processor
    changed = {"size": sizes[mode], "do_resize": True, "do_center_crop": True}
    return CLIPImageProcessorPil.from_dict(processor.to_dict() | changed)


def normalize_clip_crops(crops: Tensor, processor: ImageProcessor) -> Tensor:
    """Return 8-bit crops (B, 3, S, S) as float32 in CLIP's range."""
    mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(processor.image_std).view(1, 3, 1, 1)
    return (crops.float() * processor.rescale_factor - mean) / std


def load_crops(images: Sequence[CaptionedImage], processor: ImageProcessor) -> CachedArrays:
    """Return CLIP's crops of images from the user's cache; see `cut_crops`."""
    files = [image.file for image in images]
    with track("reading images", len(files)) as update:
        return cut_crops(files, processor, cache_dir() / "crops", lambda done: update(done, "decoded"))


def cut_crops(
    files: Sequence[ImageFile],
    processor: ImageProcessor,
    folder: Path,
    on_image: Callable[[int], None] = lambda done: None,
) -> CachedArrays:
    """Return CLIP's crops of photographs, cutting those not cached in `folder`.

    Finished crops are kept if a photograph cannot be read or the disk is full.

    Args:
        files: Image files.
        processor: CLIP's; its settings are part of a crop's key.
        folder: Crops of all data.
        on_image: Called with the number of images decoded so far.

    Returns:
        For each file (3, S, S) uint8.
    """
    cache = ContentCache(folder / _settings_checksum(processor), "crops")
    return cache.arrays(content_checksums(files), partial(_cut_all, tuple(files), processor), on_image)


def _cut_all(
    files: Sequence[ImageFile], processor: ImageProcessor, indices: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yield the crops of some photographs, several cut at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter's lock
        for start in range(0, len(indices), CROPS_AT_ONCE):
            part = [files[index] for index in indices[start : start + CROPS_AT_ONCE]]
            cuts = pool.map(partial(_cut_if_small, processor=processor), part)
            for file, crop in zip(part, cuts, strict=True):
                yield _cut(file, processor) if crop is None else crop


def _cut(file: ImageFile, processor: ImageProcessor) -> np.ndarray:
    with opened_image(file) as image:
        return np.ascontiguousarray(clip_crop(decode(image), processor))


def _cut_if_small(file: ImageFile, processor: ImageProcessor) -> np.ndarray | None:
    with opened_image(file) as image:
        if image.width * image.height > PARALLEL_PIXELS:
            return None
    return _cut(file, processor)


def _settings_checksum(processor: ImageProcessor) -> str:
    settings = {name: str(value) for name, value in processor.to_dict().items() if name not in NORMALIZATION}
    versions = [PIXELS_VERSION, type(processor).__name__, version("pillow"), version("transformers")]
    return sha256(json.dumps([settings, versions], sort_keys=True).encode()).hexdigest()[:16]


def vae_pixel_values(images: Iterable[Image.Image], height: int, width: int | None = None) -> Tensor:
    """Resize and centre-crop RGB images: (B, 3, height, width) float32 in [-1, 1].

    Sides are multiples of 8 pixels (the VAE halves them three times), equal without a width; interpolation
    is bicubic.
    """
    width = height if width is None else width
    for side in (height, width):
        if side < 1 or side % PIXELS_PER_LATENT:
            raise UserError(f"size must be a positive multiple of {PIXELS_PER_LATENT} pixels; got {side}")
    crops = [np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # (B, 3, H, W) uint8
    return pixels.float().div(127.5).sub(1).contiguous()


def tokenize(
    captions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int = CONTEXT_LENGTH,
    pad_to_context_length: bool = False,
) -> Tensor:
    """Return token ids of B captions: (B, L) int64, padded with EOS.

    L is the longest caption's length (CLIP is causal and pools at the first EOS, so padding has no effect),
    or `context_length` for diffusion models, which read all positions.
    """
    ids, _ = encode_captions(captions, tokenizer, context_length=context_length)
    length = context_length if pad_to_context_length else max(map(len, ids))
    return pad_input_ids(ids, tokenizer.eos_token_id, length)


def encode_captions(
    captions: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, context_length: int = CONTEXT_LENGTH
) -> tuple[list[list[int]], int]:
    """Return token ids without padding and the number of truncated captions.

    EOS stays last, as in transformers and diffusers.
    """
    whole = encode_whole(captions, tokenizer)
    ids = [[*row[: context_length - 1], row[-1]] if len(row) > context_length else row for row in whole]
    return ids, sum(len(row) > context_length for row in whole)


def encode_whole(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return token ids of captions without truncation, BOS and EOS included."""
    # Split `<|endoftext|>` in a caption like other text: as EOS it would end the caption there. Not verbose:
    # the tokenizer would warn of one long caption, and callers count all.
    encoded = tokenizer(list(captions), truncation=False, verbose=False, split_special_tokens=True)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def pad_input_ids(ids: Sequence[Sequence[int]], eos_token_id: int, length: int) -> Tensor:
    """Pad lists of token ids with EOS: (B, length) int64."""
    return torch.tensor([[*row, *[eos_token_id] * (length - len(row))] for row in ids], dtype=torch.int64)
