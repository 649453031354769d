"""Objective for refining a graft through a frozen U-Net."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipgraft.models.clip import text_hidden_states
from clipgraft.models.graft import GraftedTextEncoder
from clipgraft.settings import RefineSettings
from clipgraft.training.losses import clamped_snr_weights
from clipgraft.training.objectives import Result, add_noise


class RefineObjective(nn.Module):
    """Error of predicted noise against the true noise and the teacher's prediction.

    Args:
        encoder: The graft's; parameters with gradients are trained.
        unet: Frozen, in its own dtype; losses are float32.
        teacher: The base's own text encoder, frozen.
        settings: Weights of losses, sampling of timesteps, dropped captions.
        alphas_cumprod: The scheduler's, (T,).
        empty_input_ids: The empty prompt's, (L,), replacing dropped captions. The graft stores the teacher's
            embeds of it, so both predictions are equal and nothing is learned.

    Source:
        Default weights: PEA-Diffusion (Ma et al. 2023), but with relative feature errors.
    """

    alphas_cumprod: Tensor
    empty_input_ids: Tensor

    def __init__(
        self,
        encoder: GraftedTextEncoder,
        unet: UNet2DConditionModel,
        teacher: CLIPTextModel,
        settings: RefineSettings,
        *,
        alphas_cumprod: Tensor,
        empty_input_ids: Tensor,
    ):
        super().__init__()
        self.encoder, self.settings = encoder, settings
        self.unet = unet.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False)
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        self.register_buffer("empty_input_ids", empty_input_ids)

    def train(self, mode: bool = True) -> "RefineObjective":
        """Set the encoder's mode; the frozen models stay in eval."""
        super().train(mode)
        self.unet.eval()
        self.teacher.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss.

        Args:
            batch: Scaled `latents` (B, 4, h, w), `input_ids` (B, L), and optionally `progress` (1,), the
                finished share of the training.
        """
        settings = self.settings
        latents = batch["latents"].float()
        is_dropped = torch.rand(len(latents), 1, device=latents.device) < settings.caption_drop
        input_ids = torch.where(is_dropped, self.empty_input_ids, batch["input_ids"])
        count = len(self.alphas_cumprod)
        timesteps = sample_timesteps(len(latents), count, settings.timestep_sampling, latents.device)
        noise = torch.randn_like(latents)
        noisy_latents = add_noise(latents, noise, self.alphas_cumprod, timesteps)
        left = 1 + (settings.teacher_end - 1) * float(batch["progress"]) if "progress" in batch else 1.0
        has_teacher = left > 0 and (settings.teacher_weight or settings.feature_weight)
        if has_teacher:  # first, while there is no graph in memory
            with torch.no_grad(), block_outputs(self.unet) as teacher_features:
                teacher_embeds = text_hidden_states(self.teacher, input_ids)
                teacher_pred = self._predict(noisy_latents, timesteps, teacher_embeds)
        embeds = self.encoder(input_ids).last_hidden_state
        with block_outputs(self.unet) as features:
            noise_pred = self._predict(noisy_latents, timesteps, embeds)
        errors = {"noise_error": _mean_square(noise_pred - noise)}
        weighted = settings.noise_weight * errors["noise_error"]
        if has_teacher:
            errors["teacher_error"] = _mean_square(noise_pred - teacher_pred)
            weighted = weighted + left * settings.teacher_weight * errors["teacher_error"]
            if settings.feature_weight:
                errors["feature_error"] = _feature_errors(features, teacher_features)
                weighted = weighted + left * settings.feature_weight * errors["feature_error"]
        if settings.snr_gamma:
            weighted = weighted * clamped_snr_weights(self.alphas_cumprod, timesteps, settings.snr_gamma)
        return weighted.mean(), {name: error.mean().detach() for name, error in errors.items()}

    def _predict(self, noisy_latents: Tensor, timesteps: Tensor, embeds: Tensor) -> Tensor:
        dtype = self.unet.dtype
        return self.unet(noisy_latents.to(dtype), timesteps, embeds.to(dtype)).sample.float()


def sample_timesteps(count: int, num_timesteps: int, sampling: str, device: torch.device) -> Tensor:
    """Sample timesteps (count,) int64 in [0, num_timesteps), uniform or linearly weighted."""
    if sampling == "uniform":
        return torch.randint(num_timesteps, (count,), device=device)
    return (num_timesteps * torch.rand(count, device=device).sqrt()).long().clamp(max=num_timesteps - 1)


@contextmanager
def block_outputs(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Collect the outputs of the U-Net's blocks (down, middle, up) within the context."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    blocks = [*unet.down_blocks, *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks]
    handles = [block.register_forward_hook(keep) for block in blocks]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _feature_errors(features: list[Tensor], teacher_features: list[Tensor]) -> Tensor:
    """Return relative squared errors summed over blocks, (B,)."""
    pairs = zip(features, teacher_features, strict=True)
    relative = [
        _mean_square(ours.float() - theirs.float()) / _mean_square(theirs.float()) for ours, theirs in pairs
    ]
    return torch.stack(relative).sum(0)


def _mean_square(values: Tensor) -> Tensor:
    return values.square().mean((1, 2, 3))
