"""A base's U-Net and VAE decoder on an engine, shared by pipelines."""

import copy
import math
from collections.abc import Callable

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from clipgraft.console import say
from clipgraft.generation.engines.approximations import (
    DenoiserWithFeature,
    LastLayer,
    guide_in_interval,
    with_feature_cache,
)
from clipgraft.generation.engines.engine import Engine
from clipgraft.generation.engines.networks import (
    Decoder,
    Denoiser,
    EngineDecoder,
    EngineUNet,
    TimestepProjection,
    TorchUNet,
)
from clipgraft.memory import release_memory
from clipgraft.models.base import FrozenBase, Origin
from clipgraft.sampling_params import InferenceConfig

EXAMPLE_SIZE = 9
"""Latent positions; odd at every level of a U-Net, so that it is traced to upsample by size."""


def put_on_engine(base: FrozenBase, engine: Engine, *, has_feature_cache: bool = False) -> None:
    """Move U-Net and VAE decoder to an engine; the rest becomes float32.

    Args:
        base: Gets stand-ins for both; the U-Net's own weights leave memory.
        engine: From `choose_engine`.
        has_feature_cache: Whether features will be cached.
    """
    unet, base.unet = base.unet, None
    reload = unet_loader(base.origin, engine.dtype)
    num_tokens = base.tokenizer.model_max_length
    base.unet = engine_unet(unet, engine, reload, num_tokens, has_feature_cache=has_feature_cache)
    del unet
    release_memory()
    base.vae.float()
    decoder = base.vae.decoder
    latents = torch.randn(1, base.vae.config.latent_channels, EXAMPLE_SIZE, EXAMPLE_SIZE)
    run_decoder = engine.prepare("the VAE's decoder", Decoder(copy.deepcopy(decoder)), (latents,))
    base.vae.decoder = EngineDecoder(decoder, run_decoder)
    if base.text_encoder is not None:
        base.text_encoder.float()


def engine_unet(
    unet: UNet2DConditionModel,
    engine: Engine,
    reload: Callable[[], UNet2DConditionModel],
    num_tokens: int,
    *,
    has_feature_cache: bool,
    name: str = "the U-Net",
) -> EngineUNet:
    """Move a U-Net to an engine, which owns it from there on.

    Args:
        unet: In torch.
        engine: From `choose_engine`.
        reload: Returns it again, from an engine that does not keep it.
        num_tokens: Of the prompt embeds that it is traced with.
        has_feature_cache: Whether features will be cached.
        name: For messages.
    """
    config = unet.config
    # Only torch's engine may hold on to these weights.
    in_torch = _kept(unet) if engine.name == "torch" else _reloaded(reload, engine)
    latents = torch.randn(1, config.in_channels, EXAMPLE_SIZE, EXAMPLE_SIZE)
    states = torch.randn(1, num_tokens, config.cross_attention_dim)
    project = TimestepProjection(unet, engine.device)
    inputs = (latents, unet.time_proj(torch.tensor([500.0])), states)
    if not has_feature_cache:
        run_unet = engine.prepare_unet(name, Denoiser(unet), inputs)
        return EngineUNet(config, project, engine.device, run_unet, None, in_torch)
    last_layer = LastLayer(copy.deepcopy(unet))
    feature_channels = last_layer.resnet.in_channels - unet.conv_in.out_channels
    feature = torch.randn(1, feature_channels, EXAMPLE_SIZE, EXAMPLE_SIZE)
    run_last_layer = engine.prepare_unet(f"{name}'s last layer", last_layer, (*inputs, feature))
    run_unet = engine.prepare_unet(f"{name} with its feature", DenoiserWithFeature(unet), inputs)
    return EngineUNet(config, project, engine.device, run_unet, run_last_layer, in_torch)


def _kept(unet: UNet2DConditionModel) -> TorchUNet:
    return TorchUNet(lambda: unet)


def _reloaded(reload: Callable[[], UNet2DConditionModel], engine: Engine) -> TorchUNet:
    def load() -> UNet2DConditionModel:
        say(f"the U-Net runs in torch under ControlNets and IP-Adapters, which {engine.name} does not take")
        return reload()

    return TorchUNet(load)


def unet_loader(origin: Origin, dtype: torch.dtype) -> Callable[[], UNet2DConditionModel]:
    """Return a function that loads a base's U-Net again."""

    def load() -> UNet2DConditionModel:
        return FrozenBase.load(origin.name, revision=origin.revision, components=["unet"], dtype=dtype).unet

    return load


def set_approximations(pipeline: StableDiffusionPipeline, inference: InferenceConfig) -> None:
    """Set the base's guidance interval and feature cache on a pipeline."""
    start, stop = inference.guidance_interval
    unet = pipeline.unet
    own = EngineUNet(
        unet.config, unet.project, unet.device, unet.run_unet, unet.run_last_layer, unet.in_torch
    )
    own.is_approximated = inference.feature_cache > 1 or (start, stop) != (0, 1)
    own.is_approximated |= inference.quantize != "none"
    pipeline.unet = own

    def step() -> tuple[int, int]:
        order = pipeline.scheduler.order  # runs of the U-Net per step; the last step has one
        num_runs = len(pipeline.scheduler.timesteps) - own.first_step * order
        return own.num_runs // order, math.ceil(num_runs / order)

    if inference.feature_cache > 1:
        assert own.run_last_layer is not None
        own.predict = with_feature_cache(own.run_unet, own.run_last_layer, step, inference.feature_cache)
    if (start, stop) != (0, 1):
        own.predict = guide_in_interval(own.predict, step, start, stop, is_guided=lambda: own.is_guided)
