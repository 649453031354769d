"""Draw pictures from prompts with a graft; write a graft and its base as one diffusers folder."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console
from transformers import CLIPTokenizer

from clipgraft.config import Recipe
from clipgraft.generation.pipeline import build_pipeline, picture_file_name
from clipgraft.generation.pipeline import generate as draw
from clipgraft.models.base import FrozenBase
from clipgraft.models.encoder import load_graft
from clipgraft.models.tokenizer import unknown_words
from clipgraft.progress import track
from clipgraft.runtime import choose_device, inference_dtype, quiet_libraries, write_json


def generate(recipe: Recipe, graft: Path, out_dir: Path, *, base: str = "") -> list[dict[str, Any]]:
    """Draw the prompts of `recipe.generate`.

    Args:
        recipe: Its device and generate settings are read.
        graft: Graft folder.
        out_dir: Gets a PNG a picture, named after its prompt and seed, and `images.json`.
        base: Where not empty, the base in place of the one that the graft names.

    Returns:
        The rows of `images.json`.
    """
    settings, device = recipe.generate, choose_device(recipe.device)
    pipeline = load_pipeline(graft, base=base, dtype=inference_dtype(device)).to(device)
    out_dir.mkdir(parents=True, exist_ok=True)
    notes = {prompt: prompt_notes(prompt, pipeline.tokenizer) for prompt in settings.prompts}
    for prompt, lines in notes.items():
        for line in lines:
            Console(stderr=True).print(f"note: {prompt[:60]!r}: {line}", highlight=False, markup=False)
    num_batches = -(-len(settings.prompts) * settings.num_images_per_prompt // settings.batch_size)
    rows: list[dict[str, Any]] = []
    with track("drawing", num_batches * settings.num_inference_steps) as update:
        pictures = draw(
            pipeline,
            settings.prompts,
            seed=settings.seed,
            num_images_per_prompt=settings.num_images_per_prompt,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            height=settings.height,
            width=settings.width,
            batch_size=settings.batch_size,
            on_step=lambda done, total: update(done, "steps"),
        )
        for picture in pictures:
            name = picture_file_name(picture.prompt, picture.seed)
            _save_png(picture.image, out_dir / name)
            rows.append(
                {
                    "file": name,
                    "prompt": picture.prompt,
                    "seed": picture.seed,
                    "status": picture.status,
                    "notes": notes[picture.prompt],
                    "negative_prompt": settings.negative_prompt,
                    "num_inference_steps": settings.num_inference_steps,
                    "guidance_scale": settings.guidance_scale,
                    "height": picture.image.height,
                    "width": picture.image.width,
                }
            )
    write_json(out_dir / "images.json", rows)
    for row in rows:
        Console().print(f"{row['status']}  {out_dir / str(row['file'])}", highlight=False, soft_wrap=True)
    return rows


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


def load_pipeline(graft: Path, *, base: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    """Load a graft and its base as one pipeline.

    Args:
        graft: Graft folder.
        base: Where not empty, the base in place of the one that the graft names.
        dtype: Of all weights.

    Raises:
        CheckpointError: If the graft was made for another base.
    """
    quiet_libraries()
    loaded = load_graft(graft)
    frozen = FrozenBase.load(
        base or loaded.base["name"],
        revision=None if base else loaded.base["revision"] or None,
        components=("vae", "unet", "scheduler", "tokenizer"),
        dtype=dtype,
        tokenizer=loaded.tokenizer,
    )
    return build_pipeline(frozen, loaded.text_encoder.to(dtype))


def export(graft: Path, out_dir: Path, *, base: str = "") -> None:
    """Write graft and base as one folder that diffusers loads after `import clipgraft`.

    Raises:
        ValueError: If the folder holds something already.
    """
    if out_dir.exists() and any(out_dir.iterdir()):
        raise ValueError(f"{out_dir} already holds files; name an empty or new folder with --out")
    load_pipeline(graft, base=base, dtype=torch.float32).save_pretrained(out_dir)
    Console().print(f"pipeline: {out_dir}", highlight=False, soft_wrap=True)


def _save_png(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    image.save(temporary, format="PNG")
    temporary.replace(path)
