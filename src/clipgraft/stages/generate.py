"""Draw pictures from prompts with a graft; write a graft and its base as one diffusers folder."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console

from clipgraft.config import GenerateSettings, Recipe
from clipgraft.generation.generator import ImageGenerator, load_base, load_generators
from clipgraft.generation.jobs import Job, expand_seeds, picture_file_name
from clipgraft.generation.pipeline import Picture, build_pipeline
from clipgraft.models.encoder import load_graft
from clipgraft.progress import track
from clipgraft.runtime import quiet_libraries, write_json


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
    jobs = _jobs(settings)
    rows: list[dict[str, Any]] = []
    for column, generator in load_generators(encoders, base=base, device=recipe.device):
        column = column if len(encoders) > 1 else ""
        folder = out_dir / column
        folder.mkdir(parents=True, exist_ok=True)
        for picture in _draw(generator, jobs, settings, f"drawing {column}".strip()):
            path = folder / picture_file_name(picture.prompt, picture.seed)
            _save_png(picture.image, path)
            row = {"file": path.relative_to(out_dir).as_posix(), "column": column}
            rows.append(row | _record(picture, settings) | {"notes": picture.notes})
    write_json(out_dir / "images.json", rows)
    for row in rows:
        Console().print(f"{row['status']}  {out_dir / str(row['file'])}", highlight=False, soft_wrap=True)
    return rows


def _jobs(settings: GenerateSettings) -> list[Job]:
    jobs = []
    for prompt in settings.prompts:
        job = Job(
            prompt,
            settings.seed,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
        )
        jobs += expand_seeds(job, settings.num_images_per_prompt)
    return jobs


def _draw(
    generator: ImageGenerator, jobs: Sequence[Job], settings: GenerateSettings, description: str
) -> Iterator[Picture]:
    with track(description, sum(job.num_steps for job in jobs)) as update:
        yield from generator.draw(
            jobs, batch_size=settings.batch_size, on_step=lambda done, _total: update(done, "steps")
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


def export(graft: Path, out_dir: Path, *, base: str = "") -> None:
    """Write graft and base as one folder that diffusers loads after `import clipgraft`.

    Raises:
        ValueError: If the folder holds something already.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} already holds files; name an empty or new folder with --out")
    quiet_libraries()
    loaded = load_graft(graft)
    frozen = load_base(loaded, base, torch.float32, with_teacher=False)
    build_pipeline(frozen, loaded.text_encoder).save_pretrained(out_dir)
    Console().print(f"pipeline: {out_dir}", highlight=False, soft_wrap=True)


def _save_png(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    image.save(temporary, format="PNG")
    temporary.replace(path)
