"""A base's heavy networks put on an engine, once for all pipelines that are built of it."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from clipgraft.generation.engines import Engine
from clipgraft.generation.feature_cache import DenoiserWithFeature, LastLayer, with_feature_cache
from clipgraft.generation.guidance import in_interval
from clipgraft.generation.lora import fuse_lora
from clipgraft.generation.networks import Decoder, Denoiser, EngineDecoder, EngineUNet, step_of
from clipgraft.models.base import FrozenBase

EXAMPLE_SIZE = 9
"""Latent positions; odd at every level of a U-Net, so that it is traced to upsample by size."""


@dataclass(frozen=True)
class SpeedOptions:
    """How a base is run, in the words of `GenerateSettings`."""

    engine: str = "auto"
    compile: bool = False
    scheduler: str = "dpm++"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    feature_cache: int = 1
    lora: str = ""

    @property
    def is_guided_throughout(self) -> bool:
        """Whether there is guidance in all steps."""
        return tuple(self.guidance_interval) == (0.0, 1.0)

    def shortcuts(self) -> list[str]:
        """Name what changes the picture; each is of class C."""
        start, stop = self.guidance_interval
        named = {
            f"scheduler {self.scheduler}": self.scheduler != "dpm++",
            f"guidance from {start:.0%} to {stop:.0%} of the steps": not self.is_guided_throughout,
            f"the whole U-Net at every {self.feature_cache}. step alone": self.feature_cache > 1,
            f"LoRA {Path(self.lora).name}": bool(self.lora),
        }
        return [name for name, is_used in named.items() if is_used]


DEFAULT_OPTIONS = SpeedOptions()


def prepare_base(base: FrozenBase, engine: Engine, options: SpeedOptions) -> None:
    """Add a LoRA to a base that was loaded, and put it on an engine.

    Raises:
        ValueError: If an option is not allowed.
        FileNotFoundError: If there is no such LoRA.
        CheckpointError: If it is of another U-Net.
    """
    if options.lora:
        assert base.unet is not None
        fuse_lora(base.unet, Path(options.lora))
    put_on_engine(base, engine, has_feature_cache=options.feature_cache > 1)


def put_on_engine(base: FrozenBase, engine: Engine, *, has_feature_cache: bool = False) -> None:
    """Hand the U-Net and the VAE's decoder to an engine; what is left in torch becomes float32.

    Args:
        base: Gets stand-ins for both, after which the U-Net's own weights are in memory no longer.
        engine: From `choose_engine`.
        has_feature_cache: Whether features are going to be cached.
    """
    assert base.unet is not None
    assert base.vae is not None
    unet, base.unet = base.unet, None
    config = unet.config
    latents = torch.randn(1, config.in_channels, EXAMPLE_SIZE, EXAMPLE_SIZE)
    states = torch.randn(1, base.tokenizer.model_max_length, config.cross_attention_dim)  # type: ignore[union-attr]
    inputs = (latents, torch.tensor([500.0]), states)
    run_last_layer = None
    if has_feature_cache:
        last_layer = LastLayer(copy.deepcopy(unet))
        feature_channels = last_layer.resnet.in_channels - unet.conv_in.out_channels
        feature = torch.randn(1, feature_channels, EXAMPLE_SIZE, EXAMPLE_SIZE)
        run_last_layer = engine.prepare("the U-Net's last layer", last_layer, (*inputs, feature))
        run_unet = engine.prepare("the U-Net with its feature", DenoiserWithFeature(unet), inputs)
    else:
        run_unet = engine.prepare("the U-Net", Denoiser(unet), inputs)
    del unet
    base.unet = EngineUNet(config, engine.device, run_unet, run_last_layer)
    base.vae.float()
    decoder = base.vae.decoder
    run_decoder = engine.prepare("the VAE's decoder", Decoder(copy.deepcopy(decoder)), (latents,))
    base.vae.decoder = EngineDecoder(decoder, run_decoder)
    if base.text_encoder is not None:
        base.text_encoder.float()


def set_shortcuts(pipeline: StableDiffusionPipeline, options: SpeedOptions) -> None:
    """Let a pipeline leave out what its options say.

    Args:
        pipeline: Of a base that `prepare_base` has put on an engine with the same options.
        options: Guidance interval and feature cache are read.

    Raises:
        ValueError: If the guidance interval is none.
    """
    start, stop = options.guidance_interval
    if not 0 <= start < stop <= 1:
        raise ValueError(
            f"guidance_interval must be two shares of the steps, 0 to 1, rising; got {start} {stop}"
        )
    unet = pipeline.unet
    own = pipeline.unet = EngineUNet(unet.config, unet.device, unet.run_unet, unet.run_last_layer)

    def step(timestep: torch.Tensor) -> tuple[int, int]:
        return step_of(pipeline.scheduler, timestep)

    if options.feature_cache > 1:
        assert own.run_last_layer is not None
        own.predict = with_feature_cache(own.run_unet, own.run_last_layer, step, options.feature_cache)
    if not options.is_guided_throughout:
        own.predict = in_interval(own.predict, step, start, stop, is_guided=lambda: own.is_guided)
