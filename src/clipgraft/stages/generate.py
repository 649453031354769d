"""Draw pictures from prompts with a graft; write a graft and its base as one diffusers folder."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console
from transformers import CLIPTokenizer

from clipgraft.config import GenerateSettings, Recipe
from clipgraft.generation.engines import choose_engine, openvino_advice
from clipgraft.generation.pipeline import Job, Picture, build_pipeline, draw, picture_file_name
from clipgraft.generation.preparation import DEFAULT_OPTIONS, SpeedOptions, prepare_base, set_shortcuts
from clipgraft.models.base import COMPONENTS, FrozenBase
from clipgraft.models.encoder import Graft, load_graft
from clipgraft.models.tokenizer import unknown_words
from clipgraft.progress import track
from clipgraft.runtime import cache_dir, choose_device, quiet_libraries, write_json


def generate(
    recipe: Recipe, encoders: Mapping[str, Path | None], out_dir: Path, *, base: str = ""
) -> list[dict[str, Any]]:
    """Draw the prompts of `recipe.generate`, from the same seeds with each text encoder.

    Args:
        recipe: Its device and generate settings are read.
        encoders: For each column of pictures a graft folder, or None for the base's own text encoder.
        out_dir: Gets a PNG a picture, named after its prompt and seed, and `images.json`; of several columns
            each has a folder of its own for its pictures.
        base: Where not empty, the base in place of the one that a graft names.

    Returns:
        The rows of `images.json`.
    """
    settings = recipe.generate
    jobs = [
        Job(prompt, settings.seed + index)
        for prompt in settings.prompts
        for index in range(settings.num_images_per_prompt)
    ]
    device = choose_device(recipe.device)
    options = speed_options(settings)
    _say_options(options, device)
    rows: list[dict[str, Any]] = []
    for column, pipeline in load_pipelines(encoders, base=base, device=device, options=options):
        if not rows:
            notes = _say_notes(settings.prompts, pipeline.tokenizer)
        column = column if len(encoders) > 1 else ""
        folder = out_dir / column
        folder.mkdir(parents=True, exist_ok=True)
        for picture in _draw(pipeline, jobs, settings, f"drawing {column}".strip()):
            path = folder / picture_file_name(picture.prompt, picture.seed)
            _save_png(picture.image, path)
            row = {"file": path.relative_to(out_dir).as_posix(), "column": column}
            rows.append(row | _record(picture, settings) | {"notes": notes[picture.prompt]})
    write_json(out_dir / "images.json", rows)
    for row in rows:
        Console().print(f"{row['status']}  {out_dir / str(row['file'])}", highlight=False, soft_wrap=True)
    return rows


def load_pipelines(
    encoders: Mapping[str, Path | None],
    *,
    base: str,
    device: torch.device,
    options: SpeedOptions = DEFAULT_OPTIONS,
) -> Iterator[tuple[str, StableDiffusionPipeline]]:
    """Give each text encoder in a pipeline; the base is loaded once, for the first of them.

    Args:
        encoders: By name a graft folder, or None for the base's own text encoder.
        base: Where not empty, the base in place of the one that a graft names.
        device: Where to draw.
        options: What runs the base's networks.

    Raises:
        ValueError: If neither a graft nor `base` says which base is meant.
        CheckpointError: If a graft was made for another base.
    """
    quiet_libraries()
    engine = choose_engine(options.engine, device, cache_dir() / "openvino", is_compiled=options.compile)
    grafts = {name: load_graft(folder) for name, folder in encoders.items() if folder}
    if not grafts and not base:
        raise ValueError("no graft and no base; name one of them, e.g. --base flatland")
    frozen = _load_base(
        next(iter(grafts.values()), None), base, engine.dtype, with_teacher=None in encoders.values()
    )
    prepare_base(frozen, engine, options)
    for name in encoders:
        encoder = grafts[name].text_encoder.float() if name in grafts else frozen.text_encoder
        pipeline = build_pipeline(frozen, encoder, scheduler=options.scheduler).to(device)
        set_shortcuts(pipeline, options)
        yield name, pipeline


def speed_options(settings: GenerateSettings) -> SpeedOptions:
    """Read from settings how a base is run."""
    return SpeedOptions(**{field.name: getattr(settings, field.name) for field in fields(SpeedOptions)})


def _say_options(options: SpeedOptions, device: torch.device) -> None:
    notes = [f"{what} (class C: another picture)" for what in options.shortcuts()]
    advice = openvino_advice(device)
    for note in [*notes, *([advice] if advice and options.engine == "auto" else [])]:
        Console(stderr=True).print(f"note: {note}", highlight=False, markup=False)


def _load_base(graft: Graft | None, base: str, unet_dtype: torch.dtype, *, with_teacher: bool) -> FrozenBase:
    name, revision = base, None
    if graft and not base:
        name, revision = graft.base["name"], graft.base["revision"] or None

    def load(components: Sequence[str], dtype: torch.dtype) -> FrozenBase:
        return FrozenBase.load(
            name,
            revision=revision,
            components=components,
            dtype=dtype,
            tokenizer=graft.tokenizer if graft else None,
        )

    light = [part for part in COMPONENTS if part != "unet" and (with_teacher or part != "text_encoder")]
    return replace(load(light, torch.float32), unet=load(("unet",), unet_dtype).unet)


def _draw(
    pipeline: StableDiffusionPipeline, jobs: Sequence[Job], settings: GenerateSettings, description: str
) -> Iterator[Picture]:
    with track(description, len(jobs) * settings.num_inference_steps) as update:
        yield from draw(
            pipeline,
            jobs,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
            batch_size=settings.batch_size,
            on_step=lambda done, _total: update(done, "steps"),
        )


def _record(picture: Picture, settings: GenerateSettings) -> dict[str, Any]:
    return {
        "prompt": picture.prompt,
        "seed": picture.seed,
        "status": picture.status,
        "negative_prompt": settings.negative_prompt,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "height": picture.image.height,
        "width": picture.image.width,
    }


def _say_notes(prompts: Sequence[str], tokenizer: CLIPTokenizer) -> dict[str, list[str]]:
    notes = {prompt: prompt_notes(prompt, tokenizer) for prompt in prompts}
    for prompt, lines in notes.items():
        for line in lines:
            Console(stderr=True).print(f"note: {prompt[:60]!r}: {line}", highlight=False, markup=False)
    return notes


def prompt_notes(prompt: str, tokenizer: CLIPTokenizer) -> list[str]:
    """Say what a base cannot read of a prompt: what lies behind its last position, and unknown words.

    Args:
        prompt: What is to be drawn.
        tokenizer: The base's.

    Returns:
        A sentence for each; empty where all is read.
    """
    ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
    length = tokenizer.model_max_length
    notes = []
    if len(ids) > length:
        notes.append(
            f"{len(ids)} tokens, {length} are read; cut off: {tokenizer.decode(ids[length - 1 : -1])!r}"
        )
    unknown = unknown_words(prompt, tokenizer)
    if unknown:
        notes.append(f"not in the vocabulary, so read in pieces: {', '.join(unknown)}")
    return notes


def export(graft: Path, out_dir: Path, *, base: str = "") -> None:
    """Write graft and base as one folder that diffusers loads after `import clipgraft`.

    Raises:
        ValueError: If the folder holds something already.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} already holds files; name an empty or new folder with --out")
    quiet_libraries()
    loaded = load_graft(graft)
    frozen = _load_base(loaded, base, torch.float32, with_teacher=False)
    build_pipeline(frozen, loaded.text_encoder).save_pretrained(out_dir)
    Console().print(f"pipeline: {out_dir}", highlight=False, soft_wrap=True)


def _save_png(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    image.save(temporary, format="PNG")
    temporary.replace(path)
