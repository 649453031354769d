"""The probe: a small classifier that reads from a picture what flatland's drawing put there."""

from pathlib import Path

import torch
from torch import Tensor, nn

from clipgraft.console import track
from clipgraft.errors import MissingFileError
from clipgraft.flatland import ATTRIBUTES
from clipgraft.models.loading import read_weights, refuse_misfits
from clipgraft.models.weights import write_tensors

CHANNELS = (24, 48, 96, 128)
"""Of each halving of the picture, 128 to 8 pixels."""
GROUPS = 8
READ_BATCH_SIZE = 64


class Probe(nn.Module):
    """Convolutions, a mean and a maximum over the picture, and a linear head for each attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for channels in CHANNELS:
            layers += [*_convolution(width, channels, stride=2), *_convolution(channels, channels)]
            width = channels
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(2 * width, len(values)) for values in ATTRIBUTES.values())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the logits (B, values) of each attribute of pictures (B, 3, 128, 128) in [-1, 1]."""
        pooled = self.pooled(pixels)
        return [head(pooled) for head in self.heads]

    def pooled(self, pixels: Tensor) -> Tensor:
        """Return the features (B, 256) that the heads read of pictures (B, 3, 128, 128) in [-1, 1]."""
        features = self.features(pixels).flatten(2)  # (B, C, 64)
        return torch.cat([features.mean(2), features.amax(2)], 1)


def read_attributes(probe: Probe, pixels: Tensor) -> Tensor:
    """Read pictures.

    Args:
        probe: Trained.
        pixels: (N, 3, 128, 128) uint8.

    Returns:
        (N, 5) int64: the number of each attribute's likeliest value, in the order of ATTRIBUTES.
    """
    probe.eval()
    device = next(probe.parameters()).device
    labels = []
    with torch.no_grad(), track("reading pictures", len(pixels)) as update:
        for batch in pixels.split(READ_BATCH_SIZE):
            logits = probe(batch.to(device).float() / 127.5 - 1)
            labels.append(torch.stack([values.argmax(1) for values in logits], 1).cpu())
            update(min(len(labels) * READ_BATCH_SIZE, len(pixels)), "pictures")
    return torch.cat(labels)


def probe_accuracy(read: Tensor, labels: Tensor) -> dict[str, float]:
    """Share of pictures whose attribute was read right, by attribute; both (N, 5)."""
    shares = (read == labels).double().mean(0).tolist()
    return dict(zip(ATTRIBUTES, shares, strict=True))


def save_probe(probe: Probe, path: Path) -> None:
    """Write the weights as one safetensors file, float16, whole or not at all."""
    write_tensors(path, {name: tensor.half().contiguous() for name, tensor in probe.state_dict().items()})


def load_probe(path: Path) -> Probe:
    """Load a probe in float32.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it holds other weights.
    """
    if not path.is_file():
        raise MissingFileError(f"probe not found: {path}; `clipgraft pretrain` trains one")
    probe, weights = Probe(), read_weights([path])
    refuse_misfits(path, probe, weights)
    probe.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return probe.eval()


def _convolution(width: int, channels: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(width, channels, 3, stride, 1), nn.GroupNorm(GROUPS, channels), nn.SiLU()]
