"""Settings of an embedded base's training from scratch.

The defaults are those of the shipped weights, for one GPU; on CPUs lower `batch_size`.
"""

from typing import Annotated, Literal

from pydantic import Field

from clipgraft.section import Count, Every, NotNegative, Positive, Section
from clipgraft.settings import TrainSettings


class DrawnSettings(TrainSettings):
    """A part trained on images drawn while it trains."""

    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    images_per_epoch: Count = 8192
    """Images drawn for an epoch; no other epoch sees them."""
    passes: Count = 8
    """Passes over them in their epoch."""
    num_epochs: Annotated[int, Field(ge=0)] = 8
    """Epochs, each on new images."""
    log_every: Count = 20
    checkpoint_every: Every = 1000
    num_workers: Annotated[int, Field(ge=-1, le=256)] = -1
    """Processes that draw; -1 = one per core but one."""


class AutoencoderSettings(DrawnSettings):
    """The VAE of an embedded base: 143,360 images."""

    learning_rate: Positive = 1.5e-3
    weight_decay: NotNegative = 0.0
    batch_size: Count = 64
    images_per_epoch: Count = 4096
    passes: Count = 5
    num_epochs: Annotated[int, Field(ge=0)] = 7
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    crop_size: Annotated[int, Field(ge=16, le=128, multiple_of=8)] = 128
    """Side of a square crop of each image, in pixels."""
    kl_weight: NotNegative = 1e-6
    """Weight of the latents' KL divergence from a unit Gaussian (SD's; 1e-3 cost 3 dB in a trial)."""
    subject_weight: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """Weight of subjects' pixels, relative to the background's (a guess)."""


class DenoiserSettings(DrawnSettings):
    """The U-Net and its text encoder; 65,536 samples an epoch."""

    learning_rate: Positive = 1.5e-3
    warmup_steps: Every = 200
    batch_size: Count = 512
    num_epochs: Annotated[int, Field(ge=0)] = 38
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    snr_gamma: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    """Timestep weights clamp(SNR, 1, this) / SNR: largest at high noise, unlike min-SNR."""
    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of captions replaced by the empty prompt, for classifier-free guidance."""


class PlainClipSettings(TrainSettings):
    """CLIP before fine-tuning, trained on plain captions of flatland8k alone."""

    learning_rate: Positive = 7e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    weight_decay: NotNegative = 0.1
    batch_size: Count = 128
    num_epochs: Annotated[int, Field(ge=0)] = 16
    log_every: Count = 20


class ProbeSettings(DrawnSettings):
    """The classifier of a flatland image's attributes, held-out combinations included."""

    learning_rate: Positive = 2e-3
    batch_size: Count = 256
    passes: Count = 6
    num_epochs: Annotated[int, Field(ge=0)] = 9


class PretrainSettings(Section):
    """Training of flatland's models from scratch."""

    vae: AutoencoderSettings = AutoencoderSettings()
    unet: DenoiserSettings = DenoiserSettings()
    clip: PlainClipSettings = PlainClipSettings()
    probe: ProbeSettings = ProbeSettings()
