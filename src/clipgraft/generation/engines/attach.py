"""A base's U-Net and VAE decoder on an engine, shared by pipelines."""

import copy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from clipgraft.generation.engines.approximations import (
    DenoiserWithFeature,
    LastLayer,
    guide_in_interval,
    with_feature_cache,
)
from clipgraft.generation.engines.engine import Engine
from clipgraft.generation.engines.lora import fuse_lora
from clipgraft.generation.engines.networks import (
    Decoder,
    Denoiser,
    EngineDecoder,
    EngineUNet,
    TimestepProjection,
)
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig

EXAMPLE_SIZE = 9
"""Latent positions; odd at every level of a U-Net, so that it is traced to upsample by size."""


def prepare_base(base: FrozenBase, engine: Engine, inference: InferenceConfig) -> None:
    """Add a LoRA to a base, and put it on an engine.

    Raises:
        UserError: If peft, which loads it, is not installed.
        FileNotFoundError: If there is no such LoRA.
        CheckpointError: If it is of another U-Net.
    """
    if inference.lora:
        assert base.unet is not None
        fuse_lora(base.unet, Path(inference.lora))
    put_on_engine(base, engine, has_feature_cache=inference.feature_cache > 1)


def put_on_engine(base: FrozenBase, engine: Engine, *, has_feature_cache: bool = False) -> None:
    """Move U-Net and VAE decoder to an engine; the rest becomes float32.

    Args:
        base: Gets stand-ins for both; the U-Net's own weights leave memory.
        engine: From `choose_engine`.
        has_feature_cache: Whether features will be cached.
    """
    assert base.unet is not None
    assert base.vae is not None
    unet, base.unet = base.unet, None
    config = unet.config
    latents = torch.randn(1, config.in_channels, EXAMPLE_SIZE, EXAMPLE_SIZE)
    states = torch.randn(1, base.tokenizer.model_max_length, config.cross_attention_dim)  # type: ignore[union-attr]
    project = TimestepProjection(unet, engine.device)
    inputs = (latents, unet.time_proj(torch.tensor([500.0])), states)
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
    base.unet = EngineUNet(config, project, engine.device, run_unet, run_last_layer)
    base.vae.float()
    decoder = base.vae.decoder
    run_decoder = engine.prepare("the VAE's decoder", Decoder(copy.deepcopy(decoder)), (latents,))
    base.vae.decoder = EngineDecoder(decoder, run_decoder)
    if base.text_encoder is not None:
        base.text_encoder.float()


def set_approximations(pipeline: StableDiffusionPipeline, inference: InferenceConfig) -> None:
    """Set the base's guidance interval and feature cache on a pipeline."""
    start, stop = inference.guidance_interval
    unet = pipeline.unet
    own = EngineUNet(unet.config, unet.project, unet.device, unet.run_unet, unet.run_last_layer)
    pipeline.unet = own

    def step() -> tuple[int, int]:
        return own.step, len(pipeline.scheduler.timesteps) - own.first_step

    if inference.feature_cache > 1:
        assert own.run_last_layer is not None
        own.predict = with_feature_cache(own.run_unet, own.run_last_layer, step, inference.feature_cache)
    if (start, stop) != (0, 1):
        own.predict = guide_in_interval(own.predict, step, start, stop, is_guided=lambda: own.is_guided)
