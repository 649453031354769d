"""A cache of the U-Net's deep features in DeepCache's manner (Ma et al. 2023, arXiv 2312.00858). Class C.

What comes up from the U-Net's deep changes little from step to step. So all of it is run every few steps
alone; between them its first convolution, last resnet and last attention, on the feature kept from before.
"""

from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from clipgraft.generation.engines.networks import Denoiser, Predict, Run, in_chunks


class DenoiserWithFeature(Denoiser):
    """The U-Net: sample, waves and states to noise_pred and what goes into its last resnet from below."""

    def forward(self, sample: Tensor, waves: Tensor, states: Tensor) -> tuple[Tensor, ...]:
        """Return noise_pred (B, 4, h, w) and the feature (B, C, h, w)."""
        kept: list[Tensor] = []
        skip_channels = self.unet.conv_in.out_channels
        hook = (
            self.unet.up_blocks[-1]
            .resnets[-1]
            .register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0][:, :-skip_channels]))
        )
        noise_pred = super().forward(sample, waves, states)[0]
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

    def forward(self, sample: Tensor, waves: Tensor, states: Tensor, feature: Tensor) -> tuple[Tensor, ...]:
        """Return noise_pred (B, 4, h, w)."""
        embedding = self.time_embedding(waves.to(sample.dtype))
        hidden = self.resnet(torch.cat([feature, self.conv_in(sample)], dim=1), embedding)
        hidden = self.attention(hidden, encoder_hidden_states=states, return_dict=False)[0]
        return (self.conv_out(self.conv_act(self.conv_norm_out(hidden))),)


def with_feature_cache(
    run_all: Run, run_last: Run, current_step: Callable[[], tuple[int, int]], interval: int
) -> Predict:
    """Run the whole U-Net at every `interval`-th step, and its last layer alone between.

    Args:
        run_all: Runs a `DenoiserWithFeature`.
        run_last: Runs a `LastLayer`.
        current_step: Which step of how many is run; the first one, 0, begins other pictures.
        interval: 1 = no cache.
    """
    feature = torch.empty(0)

    def predict(sample: Tensor, waves: Tensor, states: Tensor) -> Tensor:
        nonlocal feature
        # Where guidance begins, there are more rows than were kept.
        if current_step()[0] % interval == 0 or len(feature) < len(sample):
            noise_pred, feature = in_chunks(run_all, sample, waves, states)
            return noise_pred
        # After guidance has ended, the prompts' half of the feature is what is left.
        return in_chunks(run_last, sample, waves, states, feature[-len(sample) :])[0]

    return predict
