"""From photographs and captions to tensors: CLIP's image range, the VAE's image range, token ids.

Sizes, means and deviations are read from the model's own image processor, never typed here. CLIP's
preprocessing is cut in two at its 8-bit image, so that the costly half (resize, crop) can be kept in memory.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.image_transforms import get_resize_output_image_size

from clipgraft.data.dataset import CONTEXT_LENGTH
from clipgraft.errors import UserError

PIXELS_VERSION = 1
"""Of the pixels that `open_image`, `clip_crop` and `vae_pixel_values` make of a file.

Caches of what is made of these are keyed by it. Raised when other pixels come out, which a test says.
"""
END_OF_WORD = "</w>"
"""By which CLIP's vocabulary tells a token that ends a word."""


class ImageProcessor(Protocol):
    """What is used of transformers' `CLIPImageProcessor`, whichever of its backends made it."""

    image_mean: list[float]
    image_std: list[float]
    rescale_factor: float
    do_resize: bool
    resample: Any
    size: Any

    def to_dict(self) -> dict[str, Any]:
        """Return all settings."""

    def __call__(self, images: Any, **kwargs: Any) -> Any:
        """Return features with `pixel_values`."""


class TokenizedCaptions(NamedTuple):
    """Token ids of a batch of captions, and how many captions were too long."""

    input_ids: Tensor
    """(B, L) int64: BOS, words, EOS, then EOS as padding."""
    num_truncated: int
    """Captions that lost their end."""


def clip_pixel_values(images: Iterable[Image.Image], processor: ImageProcessor) -> Tensor:
    """Return images as CLIP's vision tower wants them: what `processor(images)` gives.

    Args:
        images: B RGB images of any size, taken one by one.
        processor: The model's own `CLIPImageProcessor`; gives size S, crop, mean and deviation.

    Returns:
        (B, 3, S, S) float32, normalised by CLIP's mean and deviation.
    """
    return normalize_clip_crops(
        torch.from_numpy(np.stack([clip_crop(i, processor) for i in images])), processor
    )


def clip_crop(image: Image.Image, processor: ImageProcessor) -> np.ndarray:
    """Return one image resized (bicubic) and centre-cropped as CLIP's processor does: (3, S, S) uint8."""
    do_resize = processor.do_resize
    if do_resize and dict(processor.size).keys() == {"shortest_edge"}:
        # By the processor's own functions, without the four copies of the whole image that it makes before.
        shape = np.broadcast_to(np.uint8(0), (3, image.height, image.width))
        height, width = get_resize_output_image_size(
            shape, processor.size["shortest_edge"], default_to_square=False
        )
        image, do_resize = image.resize((width, height), processor.resample), False
    features = processor(
        images=image, do_resize=do_resize, do_rescale=False, do_normalize=False, return_tensors="np"
    )
    return features["pixel_values"][0]


def normalize_clip_crops(crops: Tensor, processor: ImageProcessor) -> Tensor:
    """Return 8-bit crops in CLIP's range.

    Args:
        crops: (B, 3, S, S) uint8 from `clip_crop`.
        processor: The processor that cut them.

    Returns:
        (B, 3, S, S) float32.
    """
    mean = torch.tensor(processor.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(processor.image_std).view(1, 3, 1, 1)
    return (crops.float() * processor.rescale_factor - mean) / std  # (B, 3, S, S)


def vae_pixel_values(images: Iterable[Image.Image], size: int) -> Tensor:
    """Return images as the VAE wants them: resized to fill a square (bicubic), centre-cropped, in [-1, 1].

    Args:
        images: B RGB images of any size, taken one by one.
        size: Side of the square in pixels; a multiple of 8, because the VAE halves it three times.

    Returns:
        (B, 3, size, size) float32 in [-1, 1].

    Raises:
        ValueError: If `size` is not a positive multiple of 8.
    """
    if size < 8 or size % 8:
        raise UserError(f"size must be a positive multiple of 8 pixels; got {size}")
    crops = [np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)  # (B, 3, H, W) uint8
    return pixels.float().div(127.5).sub(1).contiguous()


def tokenize(
    captions: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context_length: int = CONTEXT_LENGTH,
    pad_to_context_length: bool = False,
) -> TokenizedCaptions:
    """Turn captions into token ids of one length, padded with EOS.

    CLIP's text tower is causal and read out at its first EOS, so padding behind it changes nothing;
    the longest caption of a batch sets the length, unless the full 77 positions are asked for.

    Args:
        captions: B captions.
        tokenizer: The model's own tokenizer; it sets BOS and EOS.
        context_length: Most tokens of a caption, BOS and EOS included.
        pad_to_context_length: Pad to `context_length`, as diffusion models want, not to the longest.

    Returns:
        The ids, and how many captions were longer; of these the end is lost, EOS stays.
    """
    ids, num_truncated = encode_captions(captions, tokenizer, context_length=context_length)
    length = context_length if pad_to_context_length else max(map(len, ids))
    return TokenizedCaptions(pad_input_ids(ids, tokenizer.eos_token_id, length), num_truncated)


def encode_captions(
    captions: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, context_length: int = CONTEXT_LENGTH
) -> tuple[list[list[int]], int]:
    """Return each caption's token ids without padding, EOS last, and how many captions were cut.

    They are cut where the positions end, as transformers and diffusers do.
    """
    whole = encode_whole(captions, tokenizer)
    ids = [[*row[: context_length - 1], row[-1]] if len(row) > context_length else row for row in whole]
    return ids, sum(len(row) > context_length for row in whole)


def encode_whole(captions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return each caption's token ids, BOS and EOS included, however many.

    The text `<|endoftext|>` in a caption is read letter by letter: as EOS it would end the caption there.
    """
    # `verbose` off: the tokenizer would warn of one long caption, and we count all.
    encoded = tokenizer(list(captions), truncation=False, verbose=False, split_special_tokens=True)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def pad_input_ids(ids: Sequence[Sequence[int]], eos_token_id: int, length: int) -> Tensor:
    """Return token ids as (B, length) int64, padded with EOS; no list is longer than `length`."""
    return torch.tensor([[*row, *[eos_token_id] * (length - len(row))] for row in ids], dtype=torch.int64)
