"""Prompt fidelity of a base with each of several text encoders, between its floors and its ceiling."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clipgraft.config import EvaluateSettings, Recipe
from clipgraft.data.flatland import ATTRIBUTES, Prompt, draw_scenes, fidelity_prompts
from clipgraft.data.flatland.writer import IMAGE_SIZE
from clipgraft.evaluation.fidelity import prompt_fidelity
from clipgraft.evaluation.probe import load_probe, probe_accuracy, read_attributes
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.generation.jobs import Job
from clipgraft.models.hub import embedded_models
from clipgraft.progress import track
from clipgraft.runtime import write_json

CEILING = "drawn by flatland's code"
EMPTY_FLOOR = "empty prompt"
SHUFFLED_FLOOR = "shuffled prompts"


def evaluate(
    recipe: Recipe, encoders: Mapping[str, Path | None], folder: Path, *, base: str = ""
) -> dict[str, Any]:
    """Measure prompt fidelity over the first `recipe.evaluate.num_prompts` fixed prompts.

    Args:
        recipe: Its device and evaluate settings are read.
        encoders: By name a graft folder, or None for the base's own text encoder.
        folder: Gets `metrics.json`.
        base: Where not empty, the base in place of the one that a graft names.

    Returns:
        The metrics that were written: `scores`, by name what `prompt_fidelity` gives, with two floors of the
        first encoder (empty prompt; pictures scored against the next one's prompt) and the ceiling (fresh
        drawings of the prompts' scenes); `probe_accuracy` on those drawings; the settings.

    Raises:
        ValueError: If the base draws another size than flatland's.
    """
    settings = recipe.evaluate
    prompts = fidelity_prompts()[: settings.num_prompts]
    scenes = [prompt.scene for prompt in prompts]
    probe = load_probe(embedded_models() / "probe.safetensors")
    scores: dict[str, Any] = {}
    for name, generator in load_generators(encoders, base=base, device=recipe.device):
        _refuse_other_sizes(generator)
        read = read_attributes(probe, _draw(generator, [prompt.text for prompt in prompts], settings, name))
        if not scores:
            scores[SHUFFLED_FLOOR] = prompt_fidelity(read.roll(1, 0), scenes)
            empty = _draw(generator, [""] * len(prompts), settings, EMPTY_FLOOR)
            scores[EMPTY_FLOOR] = prompt_fidelity(read_attributes(probe, empty), scenes)
        scores[name] = prompt_fidelity(read, scenes)
    fresh = read_attributes(probe, torch.from_numpy(draw_scenes(_fresh(prompts))))
    scores[CEILING] = prompt_fidelity(fresh, scenes)
    accuracy = probe_accuracy(fresh, torch.tensor([scene.labels for scene in scenes]))
    metrics = {"scores": scores, "probe_accuracy": accuracy, "settings": settings.model_dump()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", metrics)
    for table in _tables(metrics):
        Console().print(table)
    return metrics


def _draw(generator: ImageGenerator, texts: Sequence[str], settings: EvaluateSettings, name: str) -> Tensor:
    """Pictures of the texts, (N, 3, 128, 128) uint8, the seed counting up from one to the next."""
    jobs = [
        Job(
            text,
            settings.seed + index,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
        for index, text in enumerate(texts)
    ]
    with track(f"drawing for {name}", len(jobs) * settings.num_inference_steps) as update:
        pictures = generator.draw(
            jobs, batch_size=settings.batch_size, on_step=lambda done, _total: update(done, "steps")
        )
        arrays = [np.asarray(picture.image).transpose(2, 0, 1) for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def _fresh(prompts: Sequence[Prompt]) -> list:
    """The prompts' scenes as other pictures than any in a data set."""
    return [replace(prompt.scene, look=f"{prompt.scene.look}/fresh") for prompt in prompts]


def _refuse_other_sizes(generator: ImageGenerator) -> None:
    pipeline = generator.pipeline
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    if size != IMAGE_SIZE:
        raise ValueError(
            f"prompt fidelity is read by a probe that knows flatland's pictures of {IMAGE_SIZE} pixels; this "
            f"base draws {size}: set evaluate.num_prompts=0"
        )


def _tables(metrics: dict[str, Any]) -> tuple[Table, Table]:
    """Means, and shares by attribute: two tables, each at home in 80 columns."""
    heads = ("mean", "95 %", "held out", "seen", "all at once")
    means, attributes = Table("", *heads, title="prompt fidelity"), Table("", *ATTRIBUTES)
    for name, score in metrics["scores"].items():
        low, high = score["interval"]
        shares = [score[key] for key in ("held_out", "seen", "all_at_once")]
        means.add_row(name, f"{score['mean']:.3f}", f"{low:.2f}-{high:.2f}", *map(_share, shares))
        attributes.add_row(name, *(_share(score["by_attribute"].get(key)) for key in ATTRIBUTES))
    accuracy = metrics["probe_accuracy"]
    attributes.add_row("the probe's accuracy", *(_share(accuracy.get(key)) for key in ATTRIBUTES))
    return means, attributes


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
