"""`clipgraft.load(...)`: a graft or a base, ready to generate."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline
from transformers import CLIPTokenizer

from clipgraft.cache import cache_dir
from clipgraft.device import choose_device, inference_dtype, quiet_libraries
from clipgraft.errors import UserError
from clipgraft.generation.adapters import AdaptedUNets, Adapters, unet_copies
from clipgraft.generation.engines.attach import put_on_engine, set_approximations, unet_loader
from clipgraft.generation.engines.choice import choose_engine
from clipgraft.generation.engines.engine import describe_inference, engines_at_hand
from clipgraft.generation.kinds import resolve
from clipgraft.generation.metadata import describe_image, describe_models
from clipgraft.generation.pipeline import GeneratedImage, build_pipeline, sample
from clipgraft.generation.prompt_embeds import PromptEmbedCache, request_notes
from clipgraft.generation.requests import ImageRequest, idle_settings, image_requests, with_changes
from clipgraft.models.base import COMPONENTS, FrozenBase, check_vocabularies
from clipgraft.models.defaults import SamplingDefaults
from clipgraft.models.graft import BASE_RECORD, Graft, load_verified_graft, verify_graft
from clipgraft.models.tokenizer import load_tokenizer
from clipgraft.models.vae import load_vae
from clipgraft.sampling_params import (
    DEFAULT_INFERENCE,
    DEFAULT_SAMPLING,
    InferenceConfig,
    SamplingParams,
)

OFFLOADS = ("none", "model", "sequential")


def load(
    graft_or_base: str | Path,
    *,
    base: str = "",
    device: str = "auto",
    offload: str = "none",
    inference: InferenceConfig = DEFAULT_INFERENCE,
) -> "ImageGenerator":
    """Load a graft with its base, or a base by itself.

    Args:
        graft_or_base: Folder of a graft; or a base: folder, hub id, `.safetensors` file or `flatland`.
        base: For a graft, the base in place of the one that it names.
        device: `auto`, `cpu`, `cuda` or `mps`.
        offload: What is moved to a GPU only while it works: `none`, `model` (a component at a time) or
            `sequential` (a layer at a time, slower, least memory).
        inference: Engine and approximations.

    Raises:
        FileNotFoundError: If there is no such graft or base.
        CheckpointError: If it is damaged, or the graft was made for another base.
        UserError: If the device or engine is not there, or `offload` is asked for without a CUDA GPU.
    """
    folder = Path(graft_or_base).expanduser()
    is_graft = (folder / BASE_RECORD).is_file()
    encoders = {"graft": folder if is_graft else None}
    name = base if is_graft else str(graft_or_base)
    return next(load_generators(encoders, base=name, device=device, offload=offload, inference=inference))[1]


def load_generators(
    encoders: Mapping[str, Graft | Path | None],
    *,
    base: FrozenBase | str = "",
    revision: str = "",
    device: str = "auto",
    offload: str = "none",
    inference: InferenceConfig = DEFAULT_INFERENCE,
) -> Iterator[tuple[str, "ImageGenerator"]]:
    """Yield a generator for each text encoder; the base is loaded once.

    Folders are verified before the first; each is loaded when its turn comes.

    Args:
        encoders: By name a graft, its folder, or None for the base's own text encoder.
        base: A base, used as it is, without an engine; or its name; empty = the one that grafts name.
        revision: Commit of `base` on the hub; empty as in `FrozenBase.load`.
        device: As in `load`, like the rest and the errors.
        offload: See there.
        inference: See there.
    """
    quiet_libraries()
    place = choose_device(device)
    inference = InferenceConfig.of(inference)  # of settings that inherit from it, its own fields
    _check_offload(offload, place, inference)
    has_engine = offload == "none" and not isinstance(base, FrozenBase)
    engines = engines_at_hand(inference, place, cache_dir() / "openvino") if has_engine else []
    frozen = load_base(
        encoders.values(),
        base,
        torch.float32 if engines else inference_dtype(place),
        revision=revision,
        with_unet=not engines,
        inference=inference,
    )
    engine = None
    if engines:
        engine = choose_engine(engines, frozen, can_measure=inference.feature_cache == 1)
        frozen.unet = unet_loader(frozen.origin, engine.dtype)()
    sums = frozen.weight_checksums()
    unets = AdaptedUNets(unet_copies(frozen, engine), engine, inference) if offload == "none" else None
    if engine:
        put_on_engine(frozen, engine, has_feature_cache=inference.feature_cache > 1)
    for name, own in encoders.items():
        graft = load_verified_graft(own) if isinstance(own, Path) else own  # `load_base` verified it
        if graft:
            check_vocabularies(graft.tokenizer, frozen)
        encoder = graft.text_encoder if graft else frozen.text_encoder
        pipeline = build_pipeline(frozen, encoder.to(frozen.unet.dtype))
        models = describe_models(
            pipeline, frozen.origin, sums, is_graft=graft is not None, vae=Path(inference.vae).name
        )
        _place(pipeline, place, offload)
        if engine:
            set_approximations(pipeline, inference)
            models |= describe_inference(inference, engine)
        adapters = Adapters(PromptEmbedCache(pipeline), unets)
        yield name, ImageGenerator(pipeline, frozen.scheduler, models, adapters, frozen.defaults)


def load_base(
    encoders: Collection[Graft | Path | None],
    base: FrozenBase | str,
    dtype: torch.dtype,
    *,
    revision: str = "",
    with_unet: bool = True,
    inference: InferenceConfig = DEFAULT_INFERENCE,
) -> FrozenBase:
    """Load the base that text encoders share.

    Args:
        encoders: Grafts, their folders, and None for the base's own. The first graft names the base, and its
            tokenizer serves one that has none.
        base: If not empty, where the base is now, or the loaded base.
        dtype: Of the weights.
        revision: Commit of `base` on the hub; empty as in `FrozenBase.load`.
        with_unet: Whether the U-Net is loaded too.
        inference: Its safety checker and its VAE.

    Raises:
        UserError: If nothing names a base; or if a safety checker is asked for, and the base brings none.
        CheckpointError: If it is not the base that each of the grafts was made for, or not the VAE's, or a
            graft is damaged.
    """
    grafts = [own for own in encoders if own]
    if not grafts and not base:
        raise UserError("no graft and no base; name one of them, e.g. --base flatland")
    records = [verify_graft(own) if isinstance(own, Path) else own.base for own in grafts]
    if isinstance(base, FrozenBase):
        frozen = base
    else:
        name = base
        if not base:
            name, revision = records[0].name, records[0].revision
        kinds = [*COMPONENTS, *(["safety_checker"] if inference.safety_checker != "off" else [])]
        left_out = {"unet": not with_unet, "text_encoder": None not in encoders}
        frozen = FrozenBase.load(
            name,
            revision=revision,
            components=[part for part in kinds if not left_out.get(part)],
            dtype=dtype,
            tokenizer=_tokenizer_of(grafts[0]) if grafts else None,
        )
    for record in records:
        frozen.check_record(record)
    return _adjusted(frozen, inference)


def _tokenizer_of(graft: Graft | Path) -> CLIPTokenizer:
    return load_tokenizer(graft) if isinstance(graft, Path) else graft.tokenizer


def _adjusted(frozen: FrozenBase, inference: InferenceConfig) -> FrozenBase:
    """Return the base with the safety checker and VAE to use."""
    if inference.safety_checker == "on" and frozen.safety_checker is None:
        raise UserError("safety_checker is 'on', but this base brings none; name another base, or 'auto'")
    checker = None if inference.safety_checker == "off" else frozen.safety_checker
    vae = load_vae(inference.vae, frozen.vae) if inference.vae else frozen.vae
    return replace(frozen, safety_checker=checker, vae=vae)


@dataclass(frozen=True)
class ImageGenerator:
    """A text encoder and a base, from `load`, ready to generate."""

    pipeline: StableDiffusionPipeline
    base_scheduler: SchedulerMixin
    """The base's own; each request's is made from it."""
    models: dict[str, Any]
    """From `describe_models`."""
    adapters: Adapters
    """LoRAs of requests, and caches of prompt embeds with and without them."""
    defaults: SamplingDefaults
    """Of the base; hold where a request has None."""

    @property
    def prompt_embeds(self) -> PromptEmbedCache:
        """Cache of prompt embeds without LoRAs."""
        return self.adapters.own

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams = DEFAULT_SAMPLING,
        *,
        batch_size: int = 4,
        **changes: Any,
    ) -> list[GeneratedImage]:
        """Generate images from prompts.

        Args:
            prompts: What to generate.
            params: How; settings that inherit from it will do.
            batch_size: Images generated at once.
            **changes: Fields of `SamplingParams` that differ from `params`, such as `guidance_scale=3.0`.

        Returns:
            Each prompt's images in turn; `.status` is "ok" unless generation failed.

        Raises:
            UserError: If a name is unknown (says the nearest) or a value is not allowed.
        """
        texts = list(prompts) if isinstance(prompts, Iterable) and not isinstance(prompts, str) else [prompts]
        requests = image_requests(texts, with_changes(params, changes))
        return list(self.sample(requests, batch_size=batch_size))

    def resolve(self, requests: Iterable[ImageRequest]) -> list[ImageRequest]:
        """Replace None in requests by the base's own values.

        Raises:
            UserError: If a scheduler cannot take so many steps on this base, or a request is of a kind that
                this base cannot make.
        """
        return resolve(self.pipeline, requests, self.base_scheduler, self.defaults)

    def sample(self, requests: Sequence[ImageRequest], **options: Any) -> Iterator[GeneratedImage]:
        """Generate requested images batch by batch; `options` are those of `generation.pipeline.sample`.

        Yields:
            An image for each request, in order, with notes and metadata.
        """
        device = self.pipeline._execution_device.type
        for image in sample(
            self.pipeline,
            requests,
            base_scheduler=self.base_scheduler,
            defaults=self.defaults,
            adapters=self.adapters,
            **options,
        ):
            noted = replace(image, notes=tuple(self._notes(image.request)))
            scheduler = json.loads(self.pipeline.scheduler.to_json_string())
            models = self.models | self._calibration(image.request)
            yield replace(noted, metadata=describe_image(noted, models, scheduler, device))

    def _calibration(self, request: ImageRequest) -> dict[str, str]:
        """What decides an image's bits beside its models: a quantized U-Net's calibration."""
        found = getattr(self.adapters.with_loras(request.params.loras).pipeline.unet, "calibration", "")
        return {"calibration": found} if found else {}

    def _notes(self, request: ImageRequest) -> list[str]:
        """Parts of the prompts that the base cannot read, and idle settings."""
        tokenizer, negative = self.pipeline.tokenizer, request.params.negative_prompt
        notes = request_notes(request.prompt, tokenizer, request.params)
        if negative.strip():
            notes += [
                f"negative prompt: {note}" for note in request_notes(negative, tokenizer, request.params)
            ]
        return notes + idle_settings(request)


def _place(pipeline: StableDiffusionPipeline, device: torch.device, offload: str) -> None:
    if offload == "model":
        pipeline.enable_model_cpu_offload()
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload()
    else:
        pipeline.to(device)


def _check_offload(offload: str, device: torch.device, inference: InferenceConfig) -> None:
    if offload not in OFFLOADS:
        raise UserError(f"offload must be one of {', '.join(OFFLOADS)}; got {offload!r}")
    if offload != "none" and device.type != "cuda":
        raise UserError(
            f"offload {offload!r} moves weights to a CUDA GPU while they work; this is {device.type}: "
            "leave --offload out"
        )
    if offload != "none" and inference.updated({"safety_checker": "auto", "vae": ""}) != DEFAULT_INFERENCE:
        raise UserError("engines and approximations do not work with offload; leave one of them out")
