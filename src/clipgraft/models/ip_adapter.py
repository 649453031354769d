"""IP-Adapters and their image encoders, loaded strictly."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from clipgraft.errors import CheckpointError, MissingFileError
from clipgraft.models.attention import ATTENTION
from clipgraft.models.configs import VisionConfig, read_config
from clipgraft.models.loading import (
    TRANSFORMERS_STEM,
    load_strictly,
    opened_weights,
    read_weights,
    weight_paths,
)
from clipgraft.models.weights import FULL, HALF

ENCODER_NAME = "image_encoder"
"""Folder beside an IP-Adapter's file, as they are published."""
PARTS = ("image_proj", "ip_adapter")
FIRST_KEY = "ip_adapter.1.to_k_ip.weight"
"""Of the U-Net's first cross-attention."""
KINDS = {
    "image_proj.proj.weight": ("image_proj.proj.weight", "projection_dim"),
    "image_proj.latents": ("image_proj.proj_in.weight", "hidden_size"),
    "image_proj.proj.3.weight": ("image_proj.proj.0.weight", "hidden_size"),
}
"""By a weight that a plain, a "plus" or a "full face" IP-Adapter has: the one that reads the image encoder's
output, and which of that encoder's widths it reads."""


class ImageEncoder(NamedTuple):
    """CLIP's vision tower with its projection, and its image processor."""

    model: CLIPVisionModelWithProjection
    processor: CLIPImageProcessorPil


def ip_adapter_files(name: str) -> list[Path]:
    """Find an IP-Adapter's file, and configuration and weights of its image encoder.

    Raises:
        MissingFileError: If there is no such file, or no image encoder beside it.
        CheckpointError: If the file is no safetensors file, or the image encoder has no weights.
    """
    path = Path(name)
    if not path.is_file():
        raise MissingFileError(f"no IP-Adapter at {path}; name a .safetensors file")
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path} is not a .safetensors file; a pickle can run code, take another copy")
    with opened_weights(path) as file:
        _refuse_other(path, file.keys())
    config = path.parent / ENCODER_NAME / "config.json"
    if not config.is_file():
        raise MissingFileError(
            f"no image encoder at {config.parent}; put the one of {path.name} there, with its config.json"
        )
    return [path, config, *weight_paths(config.parent, TRANSFORMERS_STEM, (FULL, HALF))]


def check_ip_adapter(name: str, unet_config: Mapping[str, Any]) -> None:
    """Compare an IP-Adapter's widths with a base's and its image encoder's.

    Raises:
        CheckpointError: If it is for another base or image encoder, or of another kind.
    """
    path, config_path, *_ = ip_adapter_files(name)
    with opened_weights(path) as file:
        names = set(file.keys())
        kind = next((KINDS[name] for name in KINDS if name in names), None)
        if kind is None or FIRST_KEY not in names:
            raise CheckpointError(
                f"{path} is no plain, plus or full-face IP-Adapter for Stable Diffusion; name one (FaceID "
                "ones, which need another model, are not supported)"
            )
        shapes = {name: file.get_slice(name).get_shape() for name in (FIRST_KEY, kind[0])}
    width, needed = shapes[FIRST_KEY][-1], unet_config["cross_attention_dim"]
    if width != needed:
        raise CheckpointError(
            f"IP-Adapter {path} is for another base: {FIRST_KEY} takes states of width {width}, this base's "
            f"U-Net {needed}; name one that was made for this base"
        )
    config = VisionConfig.model_validate(read_config(config_path, VisionConfig))
    found, given = shapes[kind[0]][-1], getattr(config, kind[1])
    if found != given:
        raise CheckpointError(
            f"IP-Adapter {path} takes an image encoder of width {found}, {config_path.parent} has {given}; "
            "put the one there that it was made with"
        )


def read_ip_adapter(name: str) -> dict[str, dict[str, Tensor]]:
    """Read an IP-Adapter's weights, by part, as diffusers takes them.

    Raises:
        CheckpointError: If the file is damaged, or holds other weights too.
    """
    path = Path(name)
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for key, weight in read_weights([path]).items():
        part, _, inner = key.partition(".")
        parts[part][inner] = weight
    return parts


def _refuse_other(path: Path, keys: Iterable[str]) -> None:
    if other := next((key for key in keys if key.partition(".")[0] not in PARTS), None):
        raise CheckpointError(f"{path} is no IP-Adapter: it holds {other}; name another file")


def load_image_encoder(name: str, device: torch.device, dtype: torch.dtype) -> ImageEncoder:
    """Load the image encoder beside an IP-Adapter's file.

    Raises:
        CheckpointError: If its weights are damaged or do not fit its configuration.
    """
    folder = Path(name).parent / ENCODER_NAME
    model = load_strictly(
        CLIPVisionModelWithProjection, folder, VisionConfig, dtype=dtype, attn_implementation=ATTENTION
    )
    side = model.config.image_size
    size = {"height": side, "width": side}
    processor = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=size)
    return ImageEncoder(model.requires_grad_(False).to(device), processor)
