"""The probe, a classifier of flatland images' attributes, and prompt fidelity."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from clipgraft.console import track
from clipgraft.errors import MissingFileError
from clipgraft.flatland import ATTRIBUTES, Scene
from clipgraft.models.loading import read_weights, refuse_misfits
from clipgraft.models.weights import write_tensors

CHANNELS = (32, 64, 112, 160)
"""Channels of each stage, from 128 to 8 pixels."""
PLACED_CHANNELS = 16
"""Channels read place by place, for sides and numbers."""
HIDDEN = 192
GROUPS = 8
READ_BATCH_SIZE = 64


class Probe(nn.Module):
    """Convolutions, features by place and pooled, a head per attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for channels in CHANNELS:
            layers += [*_convolution(width, channels, stride=2), *_convolution(channels, channels)]
            width = channels
        self.features = nn.Sequential(*layers)
        self.placed = nn.Conv2d(width, PLACED_CHANNELS, 1)
        self.hidden = nn.Sequential(nn.Linear(2 * width + 64 * PLACED_CHANNELS, HIDDEN), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, len(values)) for values in ATTRIBUTES.values())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return each attribute's logits (B, values) of images (B, 3, 128, 128)."""
        features = self.features(pixels)  # (B, C, 8, 8)
        hidden = self.hidden(torch.cat([_pool(features), self.placed(features).flatten(1)], 1))
        return [head(hidden) for head in self.heads]

    def pooled(self, pixels: Tensor) -> Tensor:
        """Return pooled features (B, 320) of images (B, 3, 128, 128)."""
        return _pool(self.features(pixels))


def read_attributes(probe: Probe, pixels: Tensor) -> Tensor:
    """Classify images (N, 3, 128, 128) uint8.

    Returns:
        (N, A) int64: the index of each attribute's likeliest value, in the order of ATTRIBUTES.
    """
    probe.eval()
    device = next(probe.parameters()).device
    labels = []
    with torch.no_grad(), track("classifying images", len(pixels)) as update:
        for batch in pixels.split(READ_BATCH_SIZE):
            logits = probe(batch.to(device).float() / 127.5 - 1)
            labels.append(torch.stack([values.argmax(1) for values in logits], 1).cpu())
            update(min(len(labels) * READ_BATCH_SIZE, len(pixels)), "images")
    return torch.cat(labels)


def probe_accuracy(read: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of correct labels per attribute; both arguments (N, A)."""
    shares = (read == labels).double().mean(0).tolist()
    return dict(zip(ATTRIBUTES, shares, strict=True))


def fidelity_scores(
    read: Tensor, scenes: Sequence[Scene], *, named: Sequence[Collection[str]] | None = None
) -> dict[str, np.ndarray]:
    """Compare the attributes found by the probe with those named by prompts.

    Args:
        read: (N, A) int64 from `read_attributes`; -1 where an image is missing.
        scenes: Scenes described by the N prompts; one without a subject names place and time only.
        named: Attributes to count for each prompt; None = all of its scene.

    Returns:
        Metric -> (N,) float64: `prompt_fidelity`, the share of named attributes found; `..._all_at_once`, 1
        where all were found; `..._<attribute>`, 1 where it was found, NaN where it is not named. All are NaN
        where the image is missing. The probe makes mistakes too: compare with `real_images`.
    """
    labels = torch.tensor([scene.labels for scene in scenes])
    is_named = torch.tensor([[bool(getattr(scene, name)) for name in ATTRIBUTES] for scene in scenes])
    if named is not None:
        is_named &= torch.tensor([[name in counted for name in ATTRIBUTES] for counted in named])
    is_asked = is_named & (read >= 0)  # (N, A)
    found = torch.where(is_asked, (read == labels).double(), torch.nan)
    shares = found.nansum(1) / is_asked.sum(1)  # 0 / 0 is NaN
    all_at_once = torch.where(is_asked.any(1), (shares == 1).double(), torch.nan)
    scores = {"prompt_fidelity": shares, "prompt_fidelity_all_at_once": all_at_once}
    scores |= {f"prompt_fidelity_{name}": found[:, place] for place, name in enumerate(ATTRIBUTES)}
    return {name: values.numpy() for name, values in scores.items()}


def save_probe(probe: Probe, path: Path) -> None:
    """Write the weights atomically as one safetensors file, float16."""
    write_tensors(path, {name: tensor.half().contiguous() for name, tensor in probe.state_dict().items()})


def load_probe(path: Path) -> Probe:
    """Load a probe in float32.

    Raises:
        MissingFileError: If there is no such file.
        CheckpointError: If its weights do not fit.
    """
    if not path.is_file():
        raise MissingFileError(f"probe not found: {path}; `clipgraft pretrain` trains one")
    probe, weights = Probe(), read_weights([path])
    refuse_misfits(path, probe, weights)
    probe.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return probe.eval()


def _pool(features: Tensor) -> Tensor:
    return torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)


def _convolution(width: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(width, channels, 3, stride, 1), nn.GroupNorm(GROUPS, channels), nn.SiLU()]
