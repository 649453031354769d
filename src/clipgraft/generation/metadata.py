"""Metadata of images: A1111's `parameters`, and a record to reproduce them."""

import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers import StableDiffusionPipeline
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from clipgraft.errors import DataError, UserError, explain
from clipgraft.files import parse_json, to_json
from clipgraft.generation.image_encoding import PARAMETERS_KEY, RECORD_KEY, SUFFIXES, write_image
from clipgraft.generation.pipeline import GeneratedImage
from clipgraft.generation.request_adapters import adapters_of
from clipgraft.generation.request_files import files_of
from clipgraft.generation.request_guides import guides_of
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.base import Origin
from clipgraft.models.weights import module_sha256
from clipgraft.sampling_params import DEFAULT_SAMPLING, SamplingParams
from clipgraft.scheduler_recipes import SCHEDULERS
from clipgraft.section import FLATLAND

FORMAT = 1
LOCAL = "local"
"""Name of a base that is a local folder or file: its path is private."""
MAX_BATCH = 4096
"""Images generated at once, in a record; more than any machine here could (a guess)."""
VERSIONED = ("clipgraft", "torch", "diffusers", "transformers", "pillow")


class _Models(BaseModel):
    """What is read of `describe_models` and `describe_inference`."""

    model_config = ConfigDict(strict=True)

    base: str
    revision: str
    vae_sha256: str
    unet_sha256: str
    text_encoder: Literal["graft", "teacher"]
    text_encoder_sha256: str
    dtype: str
    safety_checker: bool = False
    engine: str = ""
    compile: bool = False
    guidance_interval: Annotated[list[float], Field(min_length=2, max_length=2)] = [0.0, 1.0]
    feature_cache: int = 1
    quantize: Literal["none", "int8"] = "none"
    calibration: str = ""
    lora_sha256: str = ""
    vae: str = ""


class _Batch(BaseModel):
    size: Annotated[int, Field(ge=1, le=MAX_BATCH)]
    index: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _index_is_within(self) -> "_Batch":
        if self.index >= self.size:
            raise ValueError(f"index {self.index} of {self.size}")
        return self


class _Record(BaseModel):
    """What is read of `describe_image`."""

    format: Literal[1]
    job: dict[str, Any]
    batch: _Batch
    models: _Models
    machine: dict[str, Any]
    versions: dict[str, Any]


def describe_models(
    pipeline: StableDiffusionPipeline,
    origin: Origin | None,
    base_checksums: dict[str, str],
    *,
    is_graft: bool,
    vae: str = "",
) -> dict[str, Any]:
    """Identify a pipeline's models without naming a path.

    Args:
        pipeline: Holds them.
        origin: Where the base was loaded from; a local folder or file is left out.
        base_checksums: sha256 of the weights of VAE and U-Net.
        is_graft: Whether its text encoder is a graft's, not the base's own.
        vae: Name of the VAE in place of the base's own, without its folder.
    """
    name, revision = (origin.name, origin.revision) if origin else ("", "")
    is_public = name == FLATLAND or bool(revision)
    return {
        "base": name if is_public else LOCAL,
        "revision": revision,
        "vae_sha256": base_checksums["vae"],
        "unet_sha256": base_checksums["unet"],
        "text_encoder": "graft" if is_graft else "teacher",
        "text_encoder_sha256": module_sha256(pipeline.text_encoder),
        "safety_checker": pipeline.safety_checker is not None,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        **({"vae": vae} if vae else {}),
    }


def describe_image(
    image: GeneratedImage, models: dict[str, Any], scheduler: dict[str, Any], device: str
) -> dict[str, Any]:
    """Record all that reproduces an image to the bit.

    Args:
        image: From `pipeline.sample`.
        models: From `describe_models`.
        scheduler: Configuration of the scheduler that it was made with.
        device: Where it was made: "cpu", "cuda" or "mps".
    """
    size = {"height": image.image.height, "width": image.image.width}
    return {
        "format": FORMAT,
        "job": image.request.as_record() | size,
        "batch": {"size": image.batch[0], "index": image.batch[1]},
        "notes": list(image.notes),
        "models": models,
        "scheduler": scheduler,
        "machine": {"device": device, "num_threads": torch.get_num_threads()},
        "versions": versions(models.get("engine", "")),
    }


@cache
def versions(engine: str) -> dict[str, str]:
    """Return the versions that decide an image's bits on an engine."""
    return {name: version(name) for name in (*VERSIONED, *(["openvino"] if engine == "openvino" else []))}


def texts_of(record: dict[str, Any]) -> dict[str, str]:
    """Return the texts that a file holds of a record from `describe_image`."""
    return {PARAMETERS_KEY: parameters_text(record), RECORD_KEY: to_json(record)}


def save_image(image: GeneratedImage, path: str | Path) -> None:
    """Write an image with its settings inside, as `clipgraft generate` does.

    Args:
        image: From `ImageGenerator.generate`.
        path: Its suffix decides the format: .png, .jpg, .jpeg or .webp.

    Raises:
        UserError: If it has another suffix, or the settings do not fit into a JPEG.
    """
    path = Path(path).expanduser()
    suffix = path.suffix.lower().replace("jpeg", "jpg")
    image_format = next((name for name, each in SUFFIXES.items() if each == suffix), "")
    if not image_format:
        raise UserError(f"{path} ends in none of .png, .jpg, .jpeg and .webp; name it so")
    write_image(image.image, path, image_format, texts_of(image.metadata) if image.metadata else None)


def parameters_text(record: dict[str, Any]) -> str:
    """Format a record as A1111's `parameters` text."""
    job, models = record["job"], record["models"]
    scheduler = SCHEDULERS[job["scheduler"]]
    values = {
        "Steps": job["num_inference_steps"],
        "Sampler": scheduler.sampler,
        "Schedule type": scheduler.schedule,
        "CFG scale": job["guidance_scale"],
        "Seed": job["seed"],
        "Size": f"{job['width']}x{job['height']}",
        "Model hash": models["unet_sha256"][:10],
        "Model": models["base"].rpartition("/")[2],
        "VAE": models.get("vae", ""),
        "Denoising strength": job.get("strength", ""),
        "Version": f"clipgraft {record['versions']['clipgraft']}",
    }
    lines = [job["prompt"] + "".join(map(_tag, job.get("loras", ())))]
    if job["negative_prompt"]:
        lines.append(f"Negative prompt: {job['negative_prompt']}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in values.items() if value != ""))
    return "\n".join(lines)


def parse_record(text: str, path: Path) -> dict[str, Any]:
    """Parse the record of the image at `path` (DataError if damaged)."""
    if not text:
        raise DataError(
            f"{path}: holds no record of its generation; only images that clipgraft wrote without "
            "--no-metadata do"
        )
    record: dict[str, Any] = parse_json(text, f"{path}: the record")
    try:
        _Record.model_validate(record)
    except ValidationError as error:
        reason = explain(error, _Record, "entry")
        raise DataError(f"{path}: the record of its generation is damaged: {reason}") from None
    return record


def request_of(record: dict[str, Any], given: SamplingParams = DEFAULT_SAMPLING) -> ImageRequest:
    """Return the request that a record holds.

    Args:
        record: From `parse_record`.
        given: Names the files that it was made with.

    Raises:
        DataError: If the record is damaged, or a file is missing, another or one too many.
        UserError: If a file cannot be read.
    """
    job = record["job"]
    if older := record["models"].get("lora_sha256"):  # of the first version: one, for the U-Net alone
        job = job | {"loras": [{"name": "", "sha256": older, "strength": 1.0, "text_strength": 0.0}]}
    files = files_of(job, given) | guides_of(job, given) | adapters_of(job, given)
    try:
        return ImageRequest.from_record(job, files)
    except UserError as error:
        raise DataError(f"the image's record is damaged: {error}") from error


def _tag(lora: dict[str, Any]) -> str:
    """Write a LoRA as A1111 does: the text encoder's strength first."""
    text, unet = (f"{lora[name]:g}" for name in ("text_strength", "strength"))
    return f" <lora:{lora['name']}:{text}{f':{unet}' if unet != text else ''}>"


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
