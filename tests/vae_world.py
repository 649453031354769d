"""VAEs beside a tiny base's own: a fine-tuned one, and TAESD as its authors define it."""

import copy

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn


def fine_tuned(vae: AutoencoderKL, seed: int = 3) -> AutoencoderKL:
    """A copy whose weights are a little off, most of all the decoder's."""
    tuned = copy.deepcopy(vae)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            weight += (0.2 if name.startswith("decoder") else 0.02) * weight.std() * torch.randn_like(weight)
    return tuned.eval()


class Clamp(nn.Module):
    """Keeps latents between -3 and 3."""

    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


class Block(nn.Module):
    """Three convolutions around which the input goes too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 64))

    def forward(self, features: Tensor) -> Tensor:
        return torch.relu(self.conv(features) + features)


def conv(num_inputs: int, num_outputs: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(num_inputs, num_outputs, 3, padding=1, **options)


def taesd_encoder(channels: int = 4) -> nn.Sequential:
    """From pixels in [0, 1] to latents as the U-Net has them; its state_dict has TAESD's own names."""
    torch.manual_seed(11)
    layers = [conv(3, 64), Block()]
    for _ in range(3):
        layers += [conv(64, 64, stride=2, bias=False), Block(), Block(), Block()]
    return nn.Sequential(*layers, conv(64, channels)).eval()


def taesd_decoder(channels: int = 4) -> nn.Sequential:
    """From latents as the U-Net has them to pixels in [0, 1], which show something."""
    torch.manual_seed(12)
    layers: list[nn.Module] = [Clamp(), conv(channels, 64), nn.ReLU()]
    for _ in range(3):
        layers += [Block(), Block(), Block(), nn.Upsample(scale_factor=2), conv(64, 64, bias=False)]
    last = conv(64, 3)
    with torch.no_grad():
        last.weight.mul_(20)
        last.bias.fill_(0.5)
    return nn.Sequential(*layers, Block(), last).eval()


def tiny_vae() -> AutoencoderTiny:
    """TAESD as diffusers' class; both list their weights in the same order."""
    vae = AutoencoderTiny()
    weights = [*taesd_encoder().state_dict().values(), *taesd_decoder().state_dict().values()]
    vae.load_state_dict(dict(zip(vae.state_dict(), weights, strict=True)))
    return vae.eval()
