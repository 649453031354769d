"""A base's U-Net and VAE decoder on an engine, shared by pipelines."""

import copy
from pathlib import Path

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
from clipgraft.generation.engines.lora import fuse_lora
from clipgraft.generation.engines.networks import (
    Decoder,
    Denoiser,
    EngineDecoder,
    EngineUNet,
    TimestepProjection,
    TorchUNet,
)
from clipgraft.models.base import FrozenBase, Origin
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
    put_on_engine(base, engine, lora=inference.lora, has_feature_cache=inference.feature_cache > 1)


def put_on_engine(
    base: FrozenBase, engine: Engine, *, lora: str = "", has_feature_cache: bool = False
) -> None:
    """Move U-Net and VAE decoder to an engine; the rest becomes float32.

    Args:
        base: Gets stand-ins for both; the U-Net's own weights leave memory.
        engine: From `choose_engine`.
        lora: That was added to the U-Net.
        has_feature_cache: Whether features will be cached.
    """
    assert base.unet is not None
    assert base.vae is not None
    unet, base.unet = base.unet, None
    config = unet.config
    # Only torch's engine may hold on to these weights.
    in_torch = _kept(unet) if engine.name == "torch" else _reloaded(base.origin, engine, lora)
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
    base.unet = EngineUNet(config, project, engine.device, run_unet, run_last_layer, in_torch)
    base.vae.float()
    decoder = base.vae.decoder
    latents = torch.randn(1, base.vae.config.latent_channels, EXAMPLE_SIZE, EXAMPLE_SIZE)
    run_decoder = engine.prepare("the VAE's decoder", Decoder(copy.deepcopy(decoder)), (latents,))
    base.vae.decoder = EngineDecoder(decoder, run_decoder)
    if base.text_encoder is not None:
        base.text_encoder.float()


def _kept(unet: UNet2DConditionModel) -> TorchUNet:
    return TorchUNet(lambda: unet)


def _reloaded(origin: Origin | None, engine: Engine, lora: str) -> TorchUNet:
    """Return a base's U-Net in torch, loaded again when first needed."""

    def load() -> UNet2DConditionModel:
        assert origin is not None
        say(f"the U-Net runs in torch under ControlNets and IP-Adapters, which {engine.name} does not take")
        revision = origin.revision or None
        unet = FrozenBase.load(origin.name, revision=revision, components=["unet"], dtype=engine.dtype).unet
        assert unet is not None
        if lora:
            fuse_lora(unet, Path(lora))
        return unet

    return TorchUNet(load)


def set_approximations(pipeline: StableDiffusionPipeline, inference: InferenceConfig) -> None:
    """Set the base's guidance interval and feature cache on a pipeline."""
    start, stop = inference.guidance_interval
    unet = pipeline.unet
    own = EngineUNet(
        unet.config, unet.project, unet.device, unet.run_unet, unet.run_last_layer, unet.in_torch
    )
    own.is_approximated = inference.feature_cache > 1 or (start, stop) != (0, 1)
    pipeline.unet = own

    def step() -> tuple[int, int]:
        return own.step, len(pipeline.scheduler.timesteps) - own.first_step

    if inference.feature_cache > 1:
        assert own.run_last_layer is not None
        own.predict = with_feature_cache(own.run_unet, own.run_last_layer, step, inference.feature_cache)
    if (start, stop) != (0, 1):
        own.predict = guide_in_interval(own.predict, step, start, stop, is_guided=lambda: own.is_guided)
