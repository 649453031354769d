"""Objectives: each an nn.Module with `forward(batch) -> (loss, metrics)`; only what is trained has gradients.

B batch, L tokens, D hidden width, P joint width.
"""

import math
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel

from clipgraft.models.bridge import Bridge, position_weights, token_classes
from clipgraft.models.clip import encode_images, encode_text, text_hidden_states
from clipgraft.training.losses import contrastive_loss, min_snr_weights, state_loss

LOGIT_SCALE_MAX = math.log(100)
"""Radford et al. 2021, section 2.5: the multiplier is kept from passing 100 for a stable training."""

SQUARED_WEIGHT = 10.0
"""At equal weights the absolute error's gradient is the greater up to a quarter of the range: a smooth sky
then counts as much as a blurred subject. At ten the squared one leads from 6 levels of 255 on."""

Result = tuple[Tensor, dict[str, Any]]


class ContrastiveObjective(nn.Module):
    """CLIP's contrastive loss over the pairs of a batch; both towers and `logit_scale` are trained.

    Args:
        clip: The model to train, float32.
    """

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss of `clip_pixel_values` (B, 3, S, S) against `input_ids` (B, L), row by row."""
        image_embeds = encode_images(self.clip, batch["clip_pixel_values"])  # (B, P)
        text_embeds = encode_text(self.clip, batch["input_ids"])  # (B, P)
        loss = contrastive_loss(image_embeds, text_embeds, self.clip.logit_scale)
        return loss, {"logit_scale": self.clip.logit_scale.detach().exp()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the parameter itself: clamping it in `forward` would end its gradient at the bound."""
        self.clip.logit_scale.clamp_(0, LOGIT_SCALE_MAX)


class BridgeObjective(nn.Module):
    """Error of the bridged token states against the teacher's, computed on the way from `input_ids`.

    Args:
        bridge: Trained.
        text_model: The fine-tuned CLIP's text tower, frozen.
        teacher: The base's own text encoder, frozen.
        eos_token_id: Tells words from padding.
    """

    def __init__(self, bridge: Bridge, text_model: nn.Module, teacher: nn.Module, eos_token_id: int):
        super().__init__()
        self.bridge = bridge
        self.text_model = text_model.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False)
        self.eos_token_id = eos_token_id

    def train(self, mode: bool = True) -> "BridgeObjective":
        """Switch the bridge alone: frozen towers stay in eval."""
        super().train(mode)
        self.text_model.eval()
        self.teacher.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss over `input_ids` (B, L), each position weighted by its class."""
        with torch.no_grad():
            student = text_hidden_states(self.text_model, batch["input_ids"])  # (B, L, D of CLIP)
            teacher = text_hidden_states(self.teacher, batch["input_ids"])  # (B, L, D of the base)
        weights = position_weights(token_classes(batch["input_ids"], self.eos_token_id))
        return state_loss(self.bridge(student), teacher, weights), {}


class AutoencoderObjective(nn.Module):
    """Reconstruction error of a VAE, absolute and squared, with a light KL divergence on its latents.

    Args:
        vae: Trained.
        kl_weight: Weight of the KL divergence, a mean over the latents' elements.
    """

    def __init__(self, vae: AutoencoderKL, kl_weight: float):
        super().__init__()
        self.vae = vae
        self.kl_weight = kl_weight

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss over `vae_pixel_values` (B, 3, H, W) in [-1, 1]."""
        pixels = batch["vae_pixel_values"]
        posterior = self.vae.encode(pixels).latent_dist
        error = (self.vae.decode(posterior.sample()).sample - pixels).float()  # (B, 3, H, W)
        squared = error.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error.abs().mean() + SQUARED_WEIGHT * squared + self.kl_weight * kl
        # Peak signal is 2, the width of [-1, 1].
        return loss, {"psnr": 10 * torch.log10(4 / squared.detach()), "kl": kl.detach()}


class DenoisingObjective(nn.Module):
    """Noise prediction of a U-Net from the text encoder's token states; both are trained.

    Args:
        unet: Predicts the noise (epsilon).
        text_encoder: Gives the states it attends to.
        alphas_cumprod: The scheduler's, shape (T,).
        empty_input_ids: The empty prompt's, shape (L,); takes the place of dropped captions.
        caption_drop: Share of captions dropped, for classifier-free guidance.
        snr_gamma: Cap of the signal-to-noise ratio in the loss' weights.
    """

    alphas_cumprod: Tensor
    empty_input_ids: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        *,
        alphas_cumprod: Tensor,
        empty_input_ids: Tensor,
        caption_drop: float,
        snr_gamma: float,
    ):
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        self.register_buffer("empty_input_ids", empty_input_ids)
        self.caption_drop = caption_drop
        self.snr_gamma = snr_gamma

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss over scaled `latents` (B, 4, h, w) and `input_ids` (B, 77)."""
        latents, input_ids = batch["latents"], batch["input_ids"]
        is_dropped = torch.rand(len(latents), 1, device=latents.device) < self.caption_drop
        hidden_states = text_hidden_states(
            self.text_encoder, torch.where(is_dropped, self.empty_input_ids, input_ids)
        )  # (B, 77, D)
        timesteps = torch.randint(len(self.alphas_cumprod), (len(latents),), device=latents.device)
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy_latents = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        noise_pred = self.unet(noisy_latents, timesteps, hidden_states).sample
        errors = F.mse_loss(noise_pred.float(), noise, reduction="none").mean((1, 2, 3))  # (B,)
        weights = min_snr_weights(self.alphas_cumprod, timesteps, self.snr_gamma)
        return (weights * errors).mean(), {"noise_error": errors.mean().detach()}


class AttributeObjective(nn.Module):
    """Cross entropy of a classifier with a head for each attribute, summed over attributes.

    Args:
        classifier: Gives the logits (B, values) of each attribute of pixels in [-1, 1].
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss over `pixels` (B, 3, H, W) in [-1, 1] and `labels` (B, attributes)."""
        labels = batch["labels"]
        logits = self.classifier(batch["pixels"])
        losses = [F.cross_entropy(values.float(), labels[:, i]) for i, values in enumerate(logits)]
        is_right = [values.argmax(1) == labels[:, i] for i, values in enumerate(logits)]
        return torch.stack(losses).sum(), {"accuracy": torch.stack(is_right).float().mean()}
