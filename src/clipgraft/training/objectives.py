"""Training objectives: modules with `forward(batch) -> (loss, metrics)`.

Only trained parameters have gradients.
B batch, N images, M captions, L tokens, D hidden width, P joint width.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTextModel

from clipgraft.models.bridge import Bridge, position_weights, token_classes
from clipgraft.models.clip import encode_images, pooled_and_token_states, text_hidden_states
from clipgraft.training.exchange import Gather, alone
from clipgraft.training.losses import (
    DuplicateImages,
    balanced_bias,
    clamped_snr_weights,
    contrastive_loss,
    sigmoid_loss,
    state_errors,
    state_loss,
)

LOGIT_SCALE_MAX = math.log(100)
"""Radford et al. 2021, section 2.5: the multiplier stays below 100 for stability."""

SQUARED_WEIGHT = 10.0
"""At equal weights the absolute error's gradient dominates up to a quarter of the range: a smooth sky counts
as much as a blurred subject. At ten the squared error dominates from 6 levels of 255 on."""

Result = tuple[Tensor, dict[str, Any]]
ContrastiveLoss = Literal["softmax", "sigmoid"]


class ContrastiveObjective(nn.Module):
    """Contrastive loss between the images and captions of a batch.

    Args:
        clip: The model to train, float32.
        loss: "softmax" (CLIP's) or "sigmoid" (SigLIP's, with a `logit_bias`).
        duplicate_images: See `contrastive_loss`.
        reference_text_model: The original text tower; None without distillation.
        distill_weight: Weight of the hidden states' error against it.
        image_table: Embeds of all images, (all images, P), for a frozen vision tower.
    """

    image_table: Tensor | None

    def __init__(
        self,
        clip: CLIPModel,
        *,
        loss: ContrastiveLoss = "softmax",
        duplicate_images: DuplicateImages = "mask",
        reference_text_model: nn.Module | None = None,
        distill_weight: float = 0.0,
        image_table: Tensor | None = None,
    ):
        super().__init__()
        self.clip = clip
        self.register_buffer("image_table", image_table, persistent=False)
        self.duplicate_images = duplicate_images
        self.logit_bias = nn.Parameter(torch.zeros(())) if loss == "sigmoid" else None
        self.reference_text_model = reference_text_model
        if reference_text_model is not None:
            reference_text_model.requires_grad_(False)
        self.distill_weight = distill_weight

    def train(self, mode: bool = True) -> "ContrastiveObjective":
        """Set the mode; frozen towers stay in eval."""
        super().train(mode)
        for tower in (self.clip.vision_model, self.clip.text_model, self.reference_text_model):
            if tower is not None and not any(p.requires_grad for p in tower.parameters()):
                tower.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss of one batch."""
        return self.joint_loss(self.embed(batch))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Encode a batch row by row.

        Args:
            batch: `input_ids` (M, L); `clip_pixel_values` (N, 3, S, S), not needed with an `image_table`;
                `image_index` (N,), all different; `caption_image` (M,), the `image_index` of each caption;
                optionally `duplicate_id` (N,), equal for equal images.

        Returns:
            `image_embeds` (N, P) and `text_embeds` (M, P), unit norm, float32; the batch's indices; with
            distillation `state_errors` (M, 5).
        """
        images, texts = self.embed_parts(batch)
        numbers = {name: batch[name] for name in ("image_index", "caption_image")}
        return images | texts | numbers | {"duplicate_id": batch.get("duplicate_id", batch["image_index"])}

    def embed_parts(self, batch: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
        """Yield the embeds of images, then those of captions; see `embed`."""
        yield {"image_embeds": self._image_embeds(batch)}
        pooled, states = pooled_and_token_states(self.clip, batch["input_ids"])
        embeds = {"text_embeds": pooled}
        if self.reference_text_model is not None:
            embeds["state_errors"] = self._state_errors(states, batch["input_ids"])
        yield embeds

    def joint_loss(self, embeds: dict[str, Tensor], gather: Gather = alone) -> Result:
        """Return the loss over the concatenated embeds of one or more batches.

        Args:
            embeds: Of this process.
            gather: Rows of all processes; the loss is that of all.
        """
        images, numbers = gather(embeds["image_embeds"]), gather(embeds["image_index"])
        named: dict[str, Any] = {
            "caption_row": (embeds["caption_image"][:, None] == numbers).int().argmax(1),
            "duplicate_id": gather(embeds["duplicate_id"]),
            "duplicate_images": self.duplicate_images,
            "gather": gather,
        }
        towers = images, embeds["text_embeds"], self.clip.logit_scale
        metrics: dict[str, Any] = {"logit_scale": self.clip.logit_scale.detach().exp()}
        if self.logit_bias is None:
            loss = contrastive_loss(*towers, **named)
        else:
            loss = sigmoid_loss(*towers, self.logit_bias, **named)
            metrics["logit_bias"] = self.logit_bias.detach()
        if "state_errors" in embeds:
            distill = state_loss(gather(embeds["state_errors"]))
            metrics |= {"contrastive_loss": loss.detach(), "distill_loss": distill.detach()}
            loss = loss + self.distill_weight * distill
        return loss, metrics

    @torch.no_grad()
    def start_bias(self, embeds: dict[str, Tensor], gather: Gather = alone) -> None:
        """Set `logit_bias`, if any, to the `balanced_bias` of all processes' embeds."""
        if self.logit_bias is not None:
            cosines = embeds["text_embeds"] @ gather(embeds["image_embeds"]).T
            self.logit_bias.copy_(balanced_bias(self.clip.logit_scale.exp() * cosines, gather))

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the logit scale."""
        # Clamped in `forward`, it would lose its gradient at the bound.
        self.clip.logit_scale.clamp_(0, LOGIT_SCALE_MAX)

    def _image_embeds(self, batch: dict[str, Any]) -> Tensor:
        if self.image_table is not None and self.training:
            return self.image_table[batch["image_index"]]
        return encode_images(self.clip, batch["clip_pixel_values"])

    def _state_errors(self, states: Tensor, input_ids: Tensor) -> Tensor:
        """Return summed errors of hidden states against the original tower, (M, 5)."""
        assert self.reference_text_model is not None
        with torch.no_grad():
            before = text_hidden_states(self.reference_text_model, input_ids)
        classes = token_classes(input_ids, self.clip.text_model.config.eos_token_id)
        return state_errors(states, before, position_weights(classes))


class StateObjective(nn.Module):
    """Error of prompt embeds against a target's, relative over a step.

    Args:
        cosine_weight: See `state_loss`, also for `norm_weight`.
        kv_metric_sqrt: From `kv_metric_sqrt`, (W, W); None = without the error of keys and values.
        key_value_weight: Weight of the relative squared error of keys and values.
    """

    kv_metric_sqrt: Tensor | None

    def __init__(
        self,
        *,
        cosine_weight: float = 1.0,
        norm_weight: float = 0.0,
        kv_metric_sqrt: Tensor | None = None,
        key_value_weight: float = 0.0,
    ):
        super().__init__()
        self.cosine_weight, self.norm_weight = cosine_weight, norm_weight
        self.key_value_weight = key_value_weight
        self.register_buffer("kv_metric_sqrt", kv_metric_sqrt, persistent=False)

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss of one batch."""
        return self.joint_loss(self.embed(batch))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the `errors` of one batch."""
        raise NotImplementedError

    def errors(self, embeds: Tensor, target: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """Return summed errors of embeds (B, L, W) with weights (B, L).

        `state_errors` and, with a `kv_metric_sqrt`, `key_value_errors`; each (B, 5) float32.
        """
        errors = {"state_errors": state_errors(embeds, target, weights)}
        if self.kv_metric_sqrt is not None:
            with torch.autocast(embeds.device.type, enabled=False):
                root = self.kv_metric_sqrt.T
                pair = embeds.float() @ root, target.float() @ root
                errors["key_value_errors"] = state_errors(*pair, weights)
        return errors

    def joint_loss(self, errors: dict[str, Tensor]) -> Result:
        """Return the loss over the concatenated errors of one or more batches."""
        weights = {"cosine_weight": self.cosine_weight, "norm_weight": self.norm_weight}
        loss = state_loss(errors["state_errors"], **weights)
        if "key_value_errors" not in errors:
            return loss, {}
        squared, power, *_ = errors["key_value_errors"].sum(0)
        key_value_loss = squared / power
        metrics = {"state_loss": loss.detach(), "key_value_loss": key_value_loss.detach()}
        return loss + self.key_value_weight * key_value_loss, metrics


class BridgeObjective(StateObjective):
    """Error of bridged prompt embeds against the teacher's."""

    def __init__(self, bridge: Bridge, **weights: Any):
        super().__init__(**weights)
        self.bridge = bridge

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the errors of one batch of `StateBatches`."""
        bridged = self.bridge(batch["student"], batch["classes"], batch["positions"])
        return self.errors(bridged, batch["teacher"], batch["weights"])


class AutoencoderObjective(nn.Module):
    """Reconstruction error of a VAE plus its latents' mean KL divergence.

    Args:
        vae: The VAE.
        kl_weight: Weight of the divergence.
        subject_weight: Weight of subjects' pixels, relative to the others'.
    """

    has_fixed_shapes = True
    """See `captured.can_capture`."""

    def __init__(self, vae: AutoencoderKL, kl_weight: float, *, subject_weight: float = 1.0):
        super().__init__()
        self.vae = vae
        self.kl_weight, self.subject_weight = kl_weight, subject_weight

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss.

        Args:
            batch: `vae_pixel_values` (B, 3, H, W) in [-1, 1]; optionally `is_subject` (B, H, W) bool.
        """
        pixels = batch["vae_pixel_values"]
        posterior = self.vae.encode(pixels).latent_dist
        error = (self.vae.decode(posterior.sample()).sample - pixels).float()  # (B, 3, H, W)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        # Peak signal is 2, the width of [-1, 1].
        psnr = 10 * torch.log10(4 / error.detach().square().mean())
        errors = (error.abs() + SQUARED_WEIGHT * error.square()).mean(1)  # (B, H, W)
        if "is_subject" in batch:
            weights = 1 + (self.subject_weight - 1) * batch["is_subject"]
            errors = errors * (weights / weights.mean())
        return errors.mean() + self.kl_weight * kl, {"psnr": psnr, "kl": kl.detach()}


class DenoisingObjective(nn.Module):
    """Noise prediction (epsilon) of a U-Net, trained with its text encoder.

    Args:
        unet: The U-Net.
        text_encoder: The text encoder.
        alphas_cumprod: The scheduler's, (T,).
        empty_input_ids: The empty prompt's, (L,), replacing dropped captions.
        caption_drop: Share of captions dropped, for classifier-free guidance.
        snr_gamma: See `clamped_snr_weights`.
    """

    has_fixed_shapes = True
    """See `captured.can_capture`."""

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
        """Return the loss of scaled `latents` (B, 4, h, w) and `input_ids` (B, 77)."""
        latents, input_ids = batch["latents"], batch["input_ids"]
        is_dropped = torch.rand(len(latents), 1, device=latents.device) < self.caption_drop
        hidden_states = text_hidden_states(
            self.text_encoder, torch.where(is_dropped, self.empty_input_ids, input_ids)
        )  # (B, 77, D)
        timesteps = torch.randint(len(self.alphas_cumprod), (len(latents),), device=latents.device)
        noise = torch.randn_like(latents)
        noisy_latents = add_noise(latents, noise, self.alphas_cumprod, timesteps)
        noise_pred = self.unet(noisy_latents, timesteps, hidden_states).sample
        errors = F.mse_loss(noise_pred.float(), noise, reduction="none").mean((1, 2, 3))  # (B,)
        weights = clamped_snr_weights(self.alphas_cumprod, timesteps, self.snr_gamma)
        # Above 1 their square root: as they are, the last fifth of the timesteps has 83 % of the weight, and
        # shapes of subjects, which form before, 14 %; so 57 % and 28 %.
        weights = weights.minimum(weights.sqrt())
        return (weights * errors).mean(), {"noise_error": errors.mean().detach()}


def add_noise(latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """Return `noisy_latents` (B, 4, h, w) of latents at timesteps (B,)."""
    alphas = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise


class AttributeObjective(nn.Module):
    """Cross-entropy of a classifier, summed over attributes (logits (B, values) each)."""

    has_fixed_shapes = True
    """See `captured.can_capture`."""

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.classifier = classifier

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss of `pixels` (B, 3, H, W) in [-1, 1], `labels` (B, attributes)."""
        labels = batch["labels"]
        logits = self.classifier(batch["pixels"])
        losses = [F.cross_entropy(values.float(), labels[:, i]) for i, values in enumerate(logits)]
        is_right = [values.argmax(1) == labels[:, i] for i, values in enumerate(logits)]
        return torch.stack(losses).sum(), {"accuracy": torch.stack(is_right).float().mean()}
