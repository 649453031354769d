"""LoRAs of requests, fused into copies of U-Net and text encoder.

The models themselves stay as they are, so a request without LoRAs gives the same bits before and after.
"""

import copy
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel

from clipgraft.console import say
from clipgraft.errors import UserError
from clipgraft.generation.engines.attach import engine_unet, set_approximations, unet_loader
from clipgraft.generation.engines.engine import Engine
from clipgraft.generation.lora_files import LoraFile, check_lora, fuse_lora, lora_path, read_lora
from clipgraft.generation.prompt_embeds import PromptEmbedCache
from clipgraft.generation.request_files import file_checksum
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig, Lora

Weighted = tuple[LoraFile, float]
"""A LoRA and its strength."""


class AdaptedUNets:
    """A base's U-Net with LoRAs, shared by its pipelines.

    The last one is kept.

    Args:
        copy_unet: Returns a copy of the base's U-Net in torch.
        engine: Runs it; None = torch as the base has it.
        inference: Its approximations.
    """

    def __init__(
        self, copy_unet: Callable[[], UNet2DConditionModel], engine: Engine | None, inference: InferenceConfig
    ) -> None:
        self._copy_unet, self._engine, self._inference = copy_unet, engine, inference
        self._kept: tuple[Hashable, nn.Module] | None = None

    def attach(self, pipeline: StableDiffusionPipeline, loras: Sequence[Weighted]) -> None:
        """Replace a pipeline's U-Net by one with LoRAs.

        Raises:
            CheckpointError: If a LoRA is for another base.
        """
        key = tuple((file_checksum(lora.path), strength) for lora, strength in loras)
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # first, so that memory holds one at a time
            self._kept = key, self._on_engine(loras, pipeline.tokenizer.model_max_length)
        pipeline.unet = self._kept[1]
        if self._engine:
            set_approximations(pipeline, self._inference)

    def _on_engine(self, loras: Sequence[Weighted], num_tokens: int) -> nn.Module:
        unet = self._fused(loras)
        if self._engine is None:
            return unet
        return engine_unet(
            unet,
            self._engine,
            lambda: self._fused(loras),
            num_tokens,
            has_feature_cache=self._inference.feature_cache > 1,
            name="the U-Net with LoRAs",
        )

    def _fused(self, loras: Sequence[Weighted]) -> UNet2DConditionModel:
        unet = self._copy_unet()
        dtype = unet.dtype
        unet.float()  # half a precision would lose small updates
        for lora, strength in loras:
            fuse_lora(unet, lora, strength, "unet")
        return unet.to(dtype=dtype)


def unet_copies(base: FrozenBase, engine: Engine | None) -> Callable[[], UNet2DConditionModel]:
    """Return a function that copies a base's U-Net in torch.

    Other engines than torch's do not keep it: it is loaded again.
    """
    unet = base.unet
    if engine is None or engine.name == "torch":
        return lambda: copy.deepcopy(unet)
    return unet_loader(base.origin, unet.dtype)


class Adapters:
    """A pipeline with LoRAs of a request; the last one is kept.

    Args:
        own: Prompt embeds of the pipeline without LoRAs.
        unets: Of the base; None where layers are offloaded.
    """

    def __init__(self, own: PromptEmbedCache, unets: AdaptedUNets | None) -> None:
        self.own, self._unets = own, unets
        self._kept: tuple[Hashable, PromptEmbedCache] | None = None

    def with_loras(self, loras: Sequence[Lora]) -> PromptEmbedCache:
        """Return prompt embeds of a pipeline with LoRAs, and so the pipeline.

        Raises:
            MissingFileError: If a LoRA's file does not exist.
            CheckpointError: If it is no LoRA, or for another base.
            UserError: If it changes a text encoder alone, and that is a graft's.
        """
        if not loras:
            return self.own
        if self._unets is None:
            raise UserError("LoRAs do not work with offload; leave one of them out")
        key = tuple((file_checksum(lora_path(Path(lora.file))), *lora.strengths.values()) for lora in loras)
        if self._kept is None or self._kept[0] != key:
            self._kept = None
            self._kept = key, PromptEmbedCache(self._adapted(self._unets, loras))
        return self._kept[1]

    def _adapted(self, unets: AdaptedUNets, loras: Sequence[Lora]) -> StableDiffusionPipeline:
        own = self.own.pipeline
        files = [(read_lora(Path(lora.file)), lora.strengths) for lora in loras]
        unet, text_encoder = (
            [(file, strengths[name]) for file, strengths in files if getattr(file, name) and strengths[name]]
            for name in ("unet", "text_encoder")
        )
        pipeline = StableDiffusionPipeline(
            **own.components, requires_safety_checker=own.safety_checker is not None
        )
        pipeline.set_progress_bar_config(disable=True)
        if text_encoder and isinstance(own.text_encoder, CLIPTextModel):
            pipeline.text_encoder = _fused_encoder(own.text_encoder, text_encoder)
        elif text_encoder:
            _say_unused(text_encoder)
        if unet:
            unets.attach(pipeline, unet)
        return pipeline


def _fused_encoder(text_encoder: CLIPTextModel, loras: Sequence[Weighted]) -> CLIPTextModel:
    fused = copy.deepcopy(text_encoder).float()
    for lora, strength in loras:
        fuse_lora(fused, lora, strength, "text_encoder")
    return fused.to(text_encoder.dtype)


def check_for_grafts(unet: UNet2DConditionModel, loras: Sequence[Lora]) -> None:
    """Refuse LoRAs that a base's grafts cannot use.

    Raises:
        MissingFileError: If a file does not exist.
        CheckpointError: If it is no LoRA, or for another base.
        UserError: If it changes a text encoder alone.
    """
    for lora in loras:
        file = read_lora(Path(lora.file))
        _refuse_text_alone(file)
        check_lora(unet, file, "unet")


def _refuse_text_alone(lora: LoraFile) -> None:
    if not lora.unet:
        raise UserError(
            f"{lora.path} changes the text encoder alone, and a graft has no such layers; use the base's own "
            "or a distilled text encoder, or leave the LoRA out"
        )


def _say_unused(loras: Sequence[Weighted]) -> None:
    """Say that a graft takes no part for a text encoder."""
    for lora, _ in loras:
        _refuse_text_alone(lora)
        say(
            f"{lora.path.name}: its part for the text encoder is left out, as a graft has no such layers; "
            "its part for the U-Net is used"
        )
