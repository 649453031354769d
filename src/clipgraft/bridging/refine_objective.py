"""The objective of refining a graft through a frozen U-Net. B batch, W the width of token states."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipgraft.models.clip import text_hidden_states
from clipgraft.models.graft import GraftedTextEncoder
from clipgraft.training.losses import clamped_snr_weights
from clipgraft.training.objectives import Result, add_noise

TimestepSampling = Literal["uniform", "high_noise"]


class RefineObjective(nn.Module):
    """Noise prediction with the graft's token states, against the noise and against the teacher's prediction.

    Args:
        encoder: What of it has gradients is trained.
        unet: Frozen; its dtype is that of its work, the losses are float32.
        teacher: The base's own text encoder, frozen.
        alphas_cumprod: The scheduler's, shape (T,).
        empty_input_ids: The empty prompt's, shape (L,). It takes the place of dropped captions, for which the
            graft has the teacher's states stored: both predictions are then one, and nothing is learned.
        noise_weight: Of the squared error against the noise.
        teacher_weight: Of the squared error against the prediction with the teacher's states.
        feature_weight: Of the squared error of each U-Net block's output relative to the teacher's power,
            summed over blocks.
        teacher_end: Share of the last two weights that is left at the end of training.
        caption_drop: Share of captions dropped.
        timestep_sampling: "uniform", or "high_noise": in proportion to the timestep, as the text acts early.
        snr_gamma: Cap of the signal-to-noise ratio in the weights of timesteps; 0 = all weigh the same.

    Source:
        Weights 1, 1, 0.1: PEA-Diffusion (Ma et al. 2023), whose features' errors are not relative.
    """

    alphas_cumprod: Tensor
    empty_input_ids: Tensor

    def __init__(
        self,
        encoder: GraftedTextEncoder,
        unet: UNet2DConditionModel,
        teacher: CLIPTextModel,
        *,
        alphas_cumprod: Tensor,
        empty_input_ids: Tensor,
        noise_weight: float = 1.0,
        teacher_weight: float = 1.0,
        feature_weight: float = 0.1,
        teacher_end: float = 1.0,
        caption_drop: float = 0.1,
        timestep_sampling: TimestepSampling = "uniform",
        snr_gamma: float = 0.0,
    ):
        super().__init__()
        self.encoder = encoder
        self.unet = unet.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False)
        self.register_buffer("alphas_cumprod", alphas_cumprod)
        self.register_buffer("empty_input_ids", empty_input_ids)
        self.noise_weight, self.teacher_weight, self.feature_weight = (
            noise_weight,
            teacher_weight,
            feature_weight,
        )
        self.teacher_end = teacher_end
        self.caption_drop = caption_drop
        self.timestep_sampling: TimestepSampling = timestep_sampling
        self.snr_gamma = snr_gamma

    def train(self, mode: bool = True) -> "RefineObjective":
        """Switch the encoder alone: the frozen models stay in eval."""
        super().train(mode)
        self.unet.eval()
        self.teacher.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss.

        Args:
            batch: Scaled `latents` (B, 4, h, w), `input_ids` (B, L), and by choice `progress` (1,): how
                much of the training is done, 0 to 1.
        """
        latents = batch["latents"].float()
        is_dropped = torch.rand(len(latents), 1, device=latents.device) < self.caption_drop
        input_ids = torch.where(is_dropped, self.empty_input_ids, batch["input_ids"])
        timesteps = sample_timesteps(
            len(latents), len(self.alphas_cumprod), self.timestep_sampling, latents.device
        )
        noise = torch.randn_like(latents)
        noisy_latents = add_noise(latents, noise, self.alphas_cumprod, timesteps)
        left = 1 + (self.teacher_end - 1) * float(batch["progress"]) if "progress" in batch else 1.0
        states = self.encoder(input_ids).last_hidden_state
        with block_outputs(self.unet) as features:
            noise_pred = self._predict(noisy_latents, timesteps, states)
        errors = {"noise_error": _mean_square(noise_pred - noise)}
        weighted = self.noise_weight * errors["noise_error"]
        if left > 0 and (self.teacher_weight or self.feature_weight):
            with torch.no_grad(), block_outputs(self.unet) as teacher_features:
                teacher_states = text_hidden_states(self.teacher, input_ids)
                teacher_pred = self._predict(noisy_latents, timesteps, teacher_states)
            errors["teacher_error"] = _mean_square(noise_pred - teacher_pred)
            weighted = weighted + left * self.teacher_weight * errors["teacher_error"]
            if self.feature_weight:
                errors["feature_error"] = _feature_errors(features, teacher_features)
                weighted = weighted + left * self.feature_weight * errors["feature_error"]
        if self.snr_gamma:
            weighted = weighted * clamped_snr_weights(self.alphas_cumprod, timesteps, self.snr_gamma)
        return weighted.mean(), {name: error.mean().detach() for name, error in errors.items()}

    def _predict(self, noisy_latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        dtype = self.unet.dtype
        return self.unet(noisy_latents.to(dtype), timesteps, states.to(dtype)).sample.float()


def sample_timesteps(
    count: int, num_timesteps: int, sampling: TimestepSampling, device: torch.device
) -> Tensor:
    """Draw timesteps (count,) int64 in [0, num_timesteps): all alike, or in proportion to themselves."""
    if sampling == "uniform":
        return torch.randint(num_timesteps, (count,), device=device)
    return (num_timesteps * torch.rand(count, device=device).sqrt()).long().clamp(max=num_timesteps - 1)


@contextmanager
def block_outputs(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Collect the output of each block (down, middle, up) of what is predicted within the context."""
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
    """Squared error of block outputs relative to the teacher's power, summed over blocks, (B,)."""
    pairs = zip(features, teacher_features, strict=True)
    relative = [
        _mean_square(ours.float() - theirs.float()) / _mean_square(theirs.float()) for ours, theirs in pairs
    ]
    return torch.stack(relative).sum(0)


def _mean_square(values: Tensor) -> Tensor:
    return values.square().mean((1, 2, 3))
