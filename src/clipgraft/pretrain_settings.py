"""Settings of an embedded base's training from scratch."""

from typing import Annotated, Literal

from pydantic import Field

from clipgraft.section import Count, Every, NotNegative, Positive, Section
from clipgraft.settings import TrainSettings


class AutoencoderSettings(TrainSettings):
    """The VAE of an embedded base, trained on crops."""

    learning_rate: Positive = 1e-3
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    weight_decay: NotNegative = 0.0
    batch_size: Count = 8
    num_epochs: Annotated[int, Field(ge=0)] = 40
    crop_size: Annotated[int, Field(ge=16, multiple_of=8)] = 64
    """Side of the square crop of each image, in pixels."""
    kl_weight: NotNegative = 1e-6
    """Weight of the latents' KL divergence from a unit Gaussian (SD's; 1e-3 cost 3 dB in a trial)."""


class DenoiserSettings(TrainSettings):
    """The U-Net of an embedded base and its text encoder, trained together."""

    learning_rate: Positive = 5e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 200
    num_epochs: Annotated[int, Field(ge=0)] = 60
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    snr_gamma: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    """Timestep weights clamp(SNR, 1, this) / SNR: largest at high noise, unlike min-SNR."""
    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of captions replaced by the empty prompt, for classifier-free guidance."""


class PlainClipSettings(TrainSettings):
    """CLIP as it is before fine-tuning: trained on plain captions alone."""

    learning_rate: Positive = 5e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    weight_decay: NotNegative = 0.1
    batch_size: Count = 64
    num_epochs: Annotated[int, Field(ge=0)] = 12


class ProbeSettings(TrainSettings):
    """The classifier of a flatland image's attributes."""

    learning_rate: Positive = 1e-3
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    num_epochs: Annotated[int, Field(ge=0)] = 8
    num_images: Count = 12000
    """Images painted for it, held-out combinations among them."""


class PretrainSettings(Section):
    """Training of flatland's models from scratch."""

    vae: AutoencoderSettings = AutoencoderSettings()
    unet: DenoiserSettings = DenoiserSettings()
    clip: PlainClipSettings = PlainClipSettings()
    probe: ProbeSettings = ProbeSettings()
