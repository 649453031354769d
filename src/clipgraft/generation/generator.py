"""`clipgraft.load(...)`: a graft or a base, ready to draw. The command line draws through it too."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, StableDiffusionPipeline

from clipgraft.cache import cache_dir
from clipgraft.device import choose_device, inference_dtype, quiet_libraries
from clipgraft.errors import UserError
from clipgraft.generation.engines.attach import prepare_base, set_shortcuts
from clipgraft.generation.engines.engine import choose_engine
from clipgraft.generation.engines.options import DEFAULT_SPEED, SpeedOptions
from clipgraft.generation.metadata import describe_models, describe_picture
from clipgraft.generation.params import Job, make_jobs
from clipgraft.generation.pipeline import Picture, build_pipeline, draw
from clipgraft.generation.prompt_embeds import PromptStates, all_notes
from clipgraft.models.base import COMPONENTS, FrozenBase, check_vocabularies
from clipgraft.models.defaults import DrawingDefaults
from clipgraft.models.graft import BASE_RECORD, Graft

OFFLOADS = ("none", "model", "sequential")


def load(
    graft_or_base: str | Path,
    *,
    base: str = "",
    device: str = "auto",
    offload: str = "none",
    speed: SpeedOptions = DEFAULT_SPEED,
) -> "ImageGenerator":
    """Load a graft with its base, or a base with its own text encoder.

    Args:
        graft_or_base: Folder of a graft; or a base: folder, hub id, `.safetensors` file or `flatland`.
        base: For a graft, the base in place of the one that it names.
        device: `auto`, `cpu`, `cuda` or `mps`.
        offload: What is moved to a GPU only while it works: `none`, `model` (a component at a time) or
            `sequential` (a layer at a time, slower, least memory).
        speed: What runs the base's networks, and what is left out of the work.

    Raises:
        FileNotFoundError: If there is no such graft or base.
        CheckpointError: If it is damaged, or the graft was made for another base.
        ValueError: If the device or engine is not there, or `offload` is asked for without a CUDA GPU.
    """
    is_graft = (Path(graft_or_base) / BASE_RECORD).is_file()
    encoders = {"graft": Path(graft_or_base) if is_graft else None}
    name = base if is_graft else str(graft_or_base)
    return next(load_generators(encoders, base=name, device=device, offload=offload, speed=speed))[1]


def load_generators(
    encoders: Mapping[str, Graft | Path | None],
    *,
    base: FrozenBase | str = "",
    revision: str = "",
    device: str = "auto",
    offload: str = "none",
    speed: SpeedOptions = DEFAULT_SPEED,
) -> Iterator[tuple[str, "ImageGenerator"]]:
    """Give a generator for each text encoder; the base is loaded once, for the first of them.

    Args:
        encoders: By name a graft, its folder, or None for the base's own text encoder.
        base: A base, used as it is, without an engine; or its name; empty = the one that grafts name.
        revision: Commit of `base` on the hub; empty as in `FrozenBase.load`.
        device: As `load`.
        offload: As `load`.
        speed: As `load`.

    Raises:
        ValueError: If neither a graft nor `base` says which base is meant; else as `load`.
        FileNotFoundError: As `load`.
        CheckpointError: As `load`.
    """
    quiet_libraries()
    place = choose_device(device)
    _check_offload(offload, place)
    if offload != "none" and speed != DEFAULT_SPEED:
        raise UserError("engines and shortcuts do not work with offload; leave one of them out")
    is_loaded = isinstance(base, FrozenBase)
    engine = None
    if offload == "none" and not is_loaded:
        engine = choose_engine(speed, place, cache_dir() / "openvino")
    grafts = {
        name: Graft.from_pretrained(own) if isinstance(own, Path) else own
        for name, own in encoders.items()
        if own
    }
    if not grafts and not base:
        raise UserError("no graft and no base; name one of them, e.g. --base flatland")
    frozen = load_base(
        list(grafts.values()),
        base,
        torch.float32 if engine else inference_dtype(place),
        revision=revision,
        unet_dtype=engine.dtype if engine else None,
        with_teacher=None in encoders.values(),
    )
    sums = frozen.weight_sums()
    if engine:
        prepare_base(frozen, engine, speed)
    for name in encoders:
        if name in grafts:
            check_vocabularies(grafts[name].tokenizer, frozen)
        encoder = grafts[name].text_encoder if name in grafts else frozen.text_encoder
        pipeline = build_pipeline(frozen, encoder.to(frozen.unet.dtype))  # type: ignore[union-attr]
        models = describe_models(pipeline, frozen.origin, sums)
        _place(pipeline, place, offload)
        if engine:
            set_shortcuts(pipeline, speed)
            models |= speed.as_record(engine.name, engine.dtype)
        yield (
            name,
            ImageGenerator(pipeline, frozen.scheduler, models, PromptStates(pipeline), frozen.defaults),
        )


def load_base(
    grafts: Sequence[Graft],
    base: FrozenBase | str,
    dtype: torch.dtype,
    *,
    revision: str = "",
    unet_dtype: torch.dtype | None = None,
    with_teacher: bool,
) -> FrozenBase:
    """Load the base that grafts were made for.

    Args:
        grafts: The first names the base, and its tokenizer serves one that has none.
        base: Where not empty, where the base is now, or the loaded base.
        dtype: Of the weights.
        revision: Commit of `base` on the hub; empty as in `FrozenBase.load`.
        unet_dtype: Of the U-Net's, where they have another.
        with_teacher: Whether its own text encoder is needed too.

    Raises:
        CheckpointError: If it is not the base that each of the grafts was made for.
    """
    if isinstance(base, FrozenBase):
        for graft in grafts:
            base.check_record(graft.base)
        return base
    name = base
    if grafts and not base:
        name, revision = grafts[0].base.name, grafts[0].base.revision

    def load_parts(components: Sequence[str], dtype: torch.dtype) -> FrozenBase:
        return FrozenBase.load(
            name,
            revision=revision or None,
            components=components,
            dtype=dtype,
            tokenizer=grafts[0].tokenizer if grafts else None,
        )

    parts = [part for part in (*COMPONENTS, "safety_checker") if with_teacher or part != "text_encoder"]
    if unet_dtype in (None, dtype):
        frozen = load_parts(parts, dtype)
    else:
        frozen = load_parts([part for part in parts if part != "unet"], dtype)
        frozen.unet = load_parts(["unet"], unet_dtype).unet
    for graft in grafts:
        frozen.check_record(graft.base)
    return frozen


@dataclass(frozen=True)
class ImageGenerator:
    """A text encoder and a base, ready to draw. Made by `load`."""

    pipeline: StableDiffusionPipeline
    base_scheduler: SchedulerMixin
    """The base's own; each job's is made from it."""
    models: dict[str, Any]
    """From `describe_models`."""
    states: PromptStates
    """Of the prompts drawn before."""
    defaults: DrawingDefaults
    """Of the base: what holds where a job names nothing else."""

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str = "",
        seed: int = 0,
        num_images: int = 1,
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str = "dpm++",
        height: int = 0,
        width: int = 0,
        init_image: str | Path | None = None,
        strength: float = 0.8,
        batch_size: int = 4,
    ) -> list[Picture]:
        """Draw pictures from prompts; the words are those of `clipgraft generate`.

        Args:
            prompts: What to draw.
            negative_prompt: What to lead away from.
            seed: Of each prompt's first picture; the next ones count up.
            num_images: Pictures a prompt.
            steps: Denoising steps; None = those that suit the base.
            guidance_scale: Weight of the prompt against the negative prompt; 1 = no guidance, None = the one
                that suits the base.
            scheduler: One of `clipgraft.generation.schedulers.SCHEDULERS`.
            height: Pixels, a multiple of 8; 0 = the base's own size.
            width: The same.
            init_image: Picture to start from, fitted to height and width.
            strength: Share of the steps that change `init_image`.
            batch_size: Pictures drawn at once.

        Returns:
            For each prompt its pictures; `.status` is "ok" where `.image` is one.

        Raises:
            ValueError: If a setting is not allowed; says what is.
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        settings: dict[str, Any] = {
            "negative_prompt": negative_prompt,
            "seed": seed,
            "num_images": num_images,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "scheduler": scheduler,
            "height": height,
            "width": width,
            "init_image": Path(init_image) if init_image else None,
            "strength": strength,
        }
        jobs = [job for text in texts for job in make_jobs(text, **settings)]
        return list(self.draw(jobs, batch_size=batch_size))

    def resolve(self, jobs: Iterable[Job]) -> list[Job]:
        """Give jobs the base's own values where they name none.

        Raises:
            UserError: If a scheduler cannot take so many steps on this base.
        """
        num_levels = self.base_scheduler.config.num_train_timesteps
        return [job.resolved(self.defaults, num_levels) for job in jobs]

    def draw(self, jobs: Sequence[Job], **options: Any) -> Iterator[Picture]:
        """Draw jobs one batch after another; `options` are those of `generation.pipeline.draw`.

        Yields:
            A picture for each job, in order, with notes on what the base cannot read of its prompts.
        """
        device = self.pipeline._execution_device.type
        for picture in draw(
            self.pipeline,
            jobs,
            base_scheduler=self.base_scheduler,
            defaults=self.defaults,
            states=self.states,
            **options,
        ):
            notes = all_notes(picture.prompt, picture.job.negative_prompt, self.pipeline.tokenizer)
            noted = replace(picture, notes=tuple(notes))
            scheduler = json.loads(self.pipeline.scheduler.to_json_string())
            yield replace(noted, metadata=describe_picture(noted, self.models, scheduler, device))


def _place(pipeline: StableDiffusionPipeline, device: torch.device, offload: str) -> None:
    if offload == "model":
        pipeline.enable_model_cpu_offload()
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload()
    else:
        pipeline.to(device)


def _check_offload(offload: str, device: torch.device) -> None:
    if offload not in OFFLOADS:
        raise UserError(f"offload must be one of {', '.join(OFFLOADS)}; got {offload!r}")
    if offload != "none" and device.type != "cuda":
        raise UserError(
            f"offload {offload!r} moves weights to a CUDA GPU while they work; this is {device.type}: "
            "leave --offload out"
        )
