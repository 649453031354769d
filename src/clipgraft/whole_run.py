"""A whole run: fine-tune, bridge, refine, generate, evaluate, report."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from clipgraft.bridging.captions import load_captions
from clipgraft.bridging.fit import bridge_recipe
from clipgraft.bridging.pairs import load_towers
from clipgraft.bridging.refine import check_prediction, check_settings, refine_recipe
from clipgraft.config import Recipe
from clipgraft.console import print_line
from clipgraft.data.formats import read_lines
from clipgraft.device import choose_device, choose_mixed_precision
from clipgraft.download import needed_models
from clipgraft.evaluation.evaluate import evaluate_recipe
from clipgraft.finetuning.finetune import finetune, load_inputs
from clipgraft.generation.engines.lora import read_lora
from clipgraft.generation.generate import GenerateOptions, generate
from clipgraft.generation.requests import image_requests
from clipgraft.models.base import FrozenBase
from clipgraft.models.hub import resolve_model
from clipgraft.models.weights import MANIFEST_NAME
from clipgraft.reporting.report import report
from clipgraft.runs.folder import recorded_resources
from clipgraft.runs.run import Run, ended_with, run_encoders
from clipgraft.training.optim import check_last_layers

STARTS_FROM = {"bridge": frozenset({"finetune"}), "refine": frozenset({"finetune", "bridge"})}
"""Stage -> those whose weights it starts from."""


def run_all(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Run every stage of a recipe.

    Args:
        recipe: All of its settings are read; two bridges are fitted, for CLIP as it was and as it became.
        folder: Gets `finetune/`, `bridge_before/`, `bridge/`, `refine/` where epochs of it are asked for,
            `generate/`, `evaluate/` where pictures are to be measured, `metrics.json`, `loss.png`,
            `report.html`.
        resume: Take finished stages as they are, and go on within the one that was at work.

    Returns:
        Path of the report.
    """
    if not (folder / "finetune" / "metrics.json").is_file():
        check(recipe)
    tuned_clip = str((folder / "finetune" / "clip").absolute())
    tuned = recipe.clip.model_copy(update={"name": tuned_clip, "revision": ""})
    _train(recipe, recipe.model_copy(update={"clip": tuned}), folder, resume)
    encoders = run_encoders(folder)
    requests = image_requests(recipe.generate.prompts, recipe.generate)
    options = GenerateOptions(
        device=recipe.device, batch_size=recipe.generate.batch_size, inference=recipe.generate
    )
    with recorded_resources(folder / "generate"):
        generate(requests, encoders, folder / "generate", options)
    if recipe.evaluate.num_prompts:
        evaluate_recipe(recipe, encoders, folder / "evaluate", clips=Run(folder).clips())
    page = report(folder)
    print_line(f"report: {page}")
    return page


def _train(recipe: Recipe, of_tuned: Recipe, folder: Path, resume: bool) -> None:
    """Run the training stages, and again those whose inputs changed.

    Args:
        recipe: The run's.
        of_tuned: The same with the fine-tuned CLIP.
        folder: The run's.
        resume: Take stages as they are that ended with equal settings, and go on within the others.
    """
    stages: dict[str, tuple[str, Callable[..., Any], Recipe]] = {
        "finetune": ("finetune", _finetune, recipe),
        "bridge_before": ("bridge", _bridge, recipe),
        "bridge": ("bridge", _bridge, of_tuned),
    }
    if recipe.refine.num_epochs:
        stages["refine"] = ("refine", partial(_refine, folder / "bridge" / "graft"), of_tuned)
    changed: set[str] = set()
    for name, (stage, work, settings) in stages.items():
        place = folder / name
        is_there = resume and (place / "metrics.json").is_file()
        is_stale = bool(changed & STARTS_FROM.get(name, frozenset()))
        if is_there and not is_stale and ended_with(place, settings, stage):
            continue
        goes_on, weights = resume and not is_stale, _weights(place)
        work(settings, place, resume=goes_on)
        if is_there and _weights(place) != weights:
            changed.add(name)


def _weights(place: Path) -> list[bytes]:
    """What names a stage's weights: the manifests with their sums."""
    manifests = (place / part / MANIFEST_NAME for part in ("clip", "graft"))
    return [manifest.read_bytes() for manifest in manifests if manifest.is_file()]


def check(recipe: Recipe) -> None:
    """Check all stages and fetch their models before fine-tuning takes hours.

    Raises:
        ValueError: As the stages.
        FileNotFoundError: As the stages.
        CheckpointError: As the stages.
    """
    device = choose_device(recipe.device)
    for settings in (recipe.finetune, recipe.bridge):
        choose_mixed_precision(settings.mixed_precision, device)
    image_requests(recipe.generate.prompts, recipe.generate)
    if recipe.generate.lora:
        read_lora(Path(recipe.generate.lora))
    if recipe.evaluate.num_prompts and recipe.evaluate.prompts:
        read_lines(Path(recipe.evaluate.prompts), "prompt")
    if recipe.refine.num_epochs:
        choose_mixed_precision(recipe.refine.mixed_precision, device)
        check_settings(recipe.refine)
    load_captions(recipe)
    for part, (model, needed) in zip(("clip", "base", "clip"), needed_models(recipe), strict=False):
        resolve_model(model.name, part=part, needed=needed, revision=model.revision or None)
    towers = load_towers(recipe)
    if recipe.refine.num_epochs:
        check_last_layers(recipe.refine.text_layers, len(towers.text_model.encoder.layers))
        revision = recipe.base.revision or None
        check_prediction(FrozenBase.load(recipe.base.name, revision=revision, components=("scheduler",)))


def _finetune(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    finetune(*load_inputs(recipe), output_dir=folder, resume=resume, overwrite=True, recipe=recipe)


def _bridge(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    bridge_recipe(recipe, folder, resume=resume, overwrite=True)


def _refine(graft: Path, recipe: Recipe, folder: Path, *, resume: bool) -> None:
    refine_recipe(recipe, graft, folder, resume=resume, overwrite=True)
