"""Approximations that change the image: a guidance interval and DeepCache.

B rows (a guided image has two), h and w latent positions, L tokens, W width of the prompt embeds.
"""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from clipgraft.generation.engines.networks import Denoiser, Predict, Run, in_chunks

CurrentStep = Callable[[], tuple[int, int]]
"""Gives the step at work, from 0, and the number of steps."""


def guide_in_interval(
    predict: Predict, current_step: CurrentStep, start: float, stop: float, *, is_guided: Callable[[], bool]
) -> Predict:
    """Guide in an interval of steps (Kynkäänniemi et al. 2024, arXiv 2404.07724).

    Args:
        predict: Of a guided batch, whose first half has the negative prompt.
        current_step: Tells the step at work.
        start: Share of the steps at which guidance begins; 0 = the first step.
        stop: Share at which it ends; 1 = after the last step.
        is_guided: Whether there is a half with the negative prompt.
    """

    def guided(sample: Tensor, t_proj: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        step, num_steps = current_step()
        if not is_guided() or round(start * num_steps) <= step < round(stop * num_steps):
            return predict(sample, t_proj, encoder_hidden_states)
        half = len(sample) // 2
        noise_pred = predict(sample[half:], t_proj, encoder_hidden_states[half:])
        # negative + scale * (positive - negative) is then the positive prediction, at any scale.
        return torch.cat([noise_pred, noise_pred])

    return guided


class DenoiserWithFeature(Denoiser):
    """U-Net that also returns the deep feature into its last resnet."""

    def forward(self, sample: Tensor, t_proj: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Return noise_pred (B, 4, h, w) and feature (B, C, h, w)."""
        kept: list[Tensor] = []
        skip_channels = self.unet.conv_in.out_channels
        hook = (
            self.unet.up_blocks[-1]
            .resnets[-1]
            .register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0][:, :-skip_channels]))
        )
        try:
            noise_pred = super().forward(sample, t_proj, encoder_hidden_states)[0]
        finally:  # also where memory runs out, as the batch is tried again in halves
            hook.remove()
        return noise_pred, kept[0]


class LastLayer(nn.Module):
    """The U-Net's first convolution and last layer, from a feature to `(noise_pred,)`."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.conv_in, self.time_embedding = unet.conv_in, unet.time_embedding
        block = unet.up_blocks[-1]
        self.resnet, self.attention = block.resnets[-1], block.attentions[-1]
        self.conv_norm_out, self.conv_act, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out

    def forward(
        self, sample: Tensor, t_proj: Tensor, encoder_hidden_states: Tensor, feature: Tensor
    ) -> tuple[Tensor, ...]:
        """Return noise_pred (B, 4, h, w)."""
        embedding = self.time_embedding(t_proj.to(sample.dtype))
        hidden = self.resnet(torch.cat([feature, self.conv_in(sample)], dim=1), embedding)
        hidden = self.attention(hidden, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
        return (self.conv_out(self.conv_act(self.conv_norm_out(hidden))),)


def with_feature_cache(run_all: Run, run_last: Run, current_step: CurrentStep, interval: int) -> Predict:
    """Run the whole U-Net every `interval` steps, its last layer between.

    DeepCache (Ma et al. 2023, arXiv 2312.00858): the deep feature changes little from step to step.

    Args:
        run_all: Runs a `DenoiserWithFeature`.
        run_last: Runs a `LastLayer`.
        current_step: Tells the step at work; step 0 begins other images.
        interval: 1 = no cache.
    """
    feature = torch.empty(0)

    def predict(sample: Tensor, t_proj: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        nonlocal feature
        # Where guidance begins, there are more rows than were kept.
        if current_step()[0] % interval == 0 or len(feature) < len(sample):
            noise_pred, feature = in_chunks(run_all, sample, t_proj, encoder_hidden_states)
            return noise_pred
        # After guidance has ended, the positive half of the feature is left.
        return in_chunks(run_last, sample, t_proj, encoder_hidden_states, feature[-len(sample) :])[0]

    return predict
