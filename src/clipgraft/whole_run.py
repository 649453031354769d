"""A whole run: fine-tune, bridge, refine, distill, generate, evaluate, report."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from clipgraft.bridging.corpus import load_captions
from clipgraft.bridging.fit import bridge_recipe
from clipgraft.bridging.pairs import load_towers
from clipgraft.bridging.refine import check_prediction, check_settings, refine_recipe
from clipgraft.config import ModelSettings, Recipe
from clipgraft.console import announce, print_line, say
from clipgraft.device import choose_device, choose_mixed_precision
from clipgraft.distilling.distill import distill_recipe, load_marked_captions
from clipgraft.distilling.new_words import WORDS_NAME, words_stage
from clipgraft.download import needed_models
from clipgraft.evaluation.evaluate import evaluate_recipe
from clipgraft.finetuning.finetune import FinetuneResult, finetune, load_inputs
from clipgraft.generation.adapters import check_for_grafts
from clipgraft.generation.generate import GenerateOptions, generate
from clipgraft.generation.kinds import check_channels
from clipgraft.generation.prompt_files import read_prompts
from clipgraft.generation.requests import ImageRequest, image_requests
from clipgraft.models.base import FrozenBase
from clipgraft.models.hub import resolve_model
from clipgraft.models.weights import MANIFEST_NAME
from clipgraft.reporting.report import report
from clipgraft.runs.resources import recorded_resources
from clipgraft.runs.run import METRICS_NAME, STAGES, Run, ended_with
from clipgraft.training.optim import check_last_layers

STARTS_FROM = {
    "new_words": frozenset({"finetune"}),
    "bridge_before": frozenset({"new_words"}),
    "bridge": frozenset({"finetune", "new_words"}),
    "refine": frozenset({"finetune", "new_words", "bridge"}),
    "distill": frozenset({"finetune", "new_words", "bridge", "refine"}),
}
"""Stage -> those whose weights it starts from."""
PURPOSES = {
    "finetune": "fine-tune CLIP on the captioned images",
    "new_words": "find words that CLIP has learned and the base does not use",
    "bridge_before": "fit a bridge from CLIP before fine-tuning to the base, to compare with",
    "bridge": "fit a bridge from the fine-tuned CLIP to the base",
    "refine": "refine the graft through the frozen U-Net",
    "distill": "teach a copy of the base's own text encoder the new words",
    "generate": "generate the recipe's prompts with each text encoder, from the same seeds",
    "evaluate": "generate and measure further prompts, between floors and ceilings",
}
"""Stage -> what it is for, as a run announces it."""
Stages = dict[str, tuple[str, Callable[..., Any], Recipe]]
"""Folder -> the stage's name, its work, its recipe."""


def run_all(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Run every stage of a recipe; return the path of the report.

    Args:
        recipe: Two bridges are fitted, for CLIP before and after fine-tuning. With epochs under `[refine]`
            the second one is refined, under `[distill]` it is distilled; with prompts under `[evaluate]`
            images are measured.
        folder: Gets a folder for each of `STAGES`, `metrics.json`, `loss.png` and `report.html`.
        resume: Keep finished stages and continue the one that was at work.
    """
    run = Run(folder)
    if not (folder / "finetune" / METRICS_NAME).is_file():
        check(recipe)
    names = stages_of(recipe)
    _train(recipe, folder, resume, names)
    variants = run.variants()
    requests = image_requests(recipe.generate.prompts, recipe.generate)
    options = GenerateOptions(
        device=recipe.device,
        batch_size=recipe.generate.batch_size,
        image_format=recipe.generate.image_format,
        inference=recipe.generate,
    )
    _announce("generate", names)
    with recorded_resources(folder / "generate"):
        generate(requests, variants, folder / "generate", options)
    if recipe.evaluate.num_prompts:
        _announce("evaluate", names)
        evaluate_recipe(recipe, variants, folder / "evaluate", clips=run.clips())
    page = report(folder)
    print_line(f"report: {page}")
    return page


def _train(recipe: Recipe, folder: Path, resume: bool, names: Sequence[str]) -> None:
    """Run the training stages that are unfinished or whose inputs changed."""
    changed = set[str]()
    tuned = ModelSettings(name=str((folder / "finetune" / "clip").absolute()))
    stages: Stages = {"finetune": ("finetune", _finetune, recipe)}
    if finds_words(recipe):
        stages["new_words"] = ("new_words", words_stage, recipe.model_copy(update={"clip": tuned}))
    _run_stages(stages, folder, resume, changed, names)
    if finds_words(recipe) and not (folder / "new_words" / WORDS_NAME).is_file():
        say("the run goes on without distilling, as no new word was found; distill.new_words can name some")
        without = recipe.distill.model_copy(update={"num_epochs": 0})
        recipe = recipe.model_copy(update={"distill": without})
    if recipe.distill.num_epochs:
        recipe = _with_words(recipe, folder)
    of_tuned = recipe.model_copy(update={"clip": tuned})
    stages = {
        "bridge_before": ("bridge", bridge_recipe, recipe),
        "bridge": ("bridge", bridge_recipe, of_tuned),
    }
    if recipe.refine.num_epochs:
        stages["refine"] = ("refine", partial(refine_recipe, graft_dir=folder / "bridge" / "graft"), of_tuned)
    if recipe.distill.num_epochs:
        graft_dir = folder / ("refine" if recipe.refine.num_epochs else "bridge") / "graft"
        stages["distill"] = ("distill", partial(distill_recipe, graft_dir=graft_dir), of_tuned)
    _run_stages(stages, folder, resume, changed, names)


def _run_stages(stages: Stages, folder: Path, resume: bool, changed: set[str], names: Sequence[str]) -> None:
    """Run stages in order; add to `changed` the finished ones with new weights."""
    for name, (stage, work, settings) in stages.items():
        place = folder / name
        was_finished = resume and (place / METRICS_NAME).is_file()
        is_stale = bool(changed & STARTS_FROM.get(name, frozenset()))
        if was_finished and not is_stale and ended_with(place, settings, stage):
            continue
        weights = _weights(place)
        _announce(name, names)
        work(recipe=settings, output_dir=place, resume=resume and not is_stale, overwrite=True)
        if was_finished and _weights(place) != weights:
            changed.add(name)


def stages_of(recipe: Recipe) -> list[str]:
    """Return a run's stages, in the order of work."""
    left_out = {
        "new_words": not finds_words(recipe),
        "refine": not recipe.refine.num_epochs,
        "distill": not recipe.distill.num_epochs,
        "evaluate": not recipe.evaluate.num_prompts,
    }
    return [name for name in STAGES if not left_out.get(name)]


def _announce(stage: str, stages: Sequence[str]) -> None:
    """Print a stage's number and purpose."""
    announce(f"[{stages.index(stage) + 1}/{len(stages)}] {PURPOSES[stage]}")


def finds_words(recipe: Recipe) -> bool:
    """Whether a run finds its new words itself."""
    return bool(recipe.distill.num_epochs) and recipe.distill.new_words == "auto"


def _with_words(recipe: Recipe, folder: Path) -> Recipe:
    """Name the new words found, and fit bridges without them.

    The recipe's own `bridge.exclude_words` come first.
    """
    words: Any = recipe.distill.new_words
    if words == "auto":
        words = str((folder / "new_words" / WORDS_NAME).absolute())
    return recipe.model_copy(
        update={
            "distill": recipe.distill.model_copy(update={"new_words": words}),
            "bridge": recipe.bridge.model_copy(
                update={"exclude_words": recipe.bridge.exclude_words or words}
            ),
        }
    )


def _weights(place: Path) -> list[bytes]:
    """Manifests of a stage's weights, with their checksums; or words found."""
    manifests = (place / part / MANIFEST_NAME for part in ("clip", "graft", "text_encoder"))
    return [file.read_bytes() for file in (*manifests, place / WORDS_NAME) if file.is_file()]


def check(recipe: Recipe) -> None:
    """Check all stages and fetch their models before fine-tuning takes hours."""
    device = choose_device(recipe.device)
    for settings in (recipe.finetune, recipe.bridge):
        choose_mixed_precision(settings.mixed_precision, device)
    requests = image_requests(recipe.generate.prompts, recipe.generate)
    requests += [ImageRequest("")] * bool(recipe.evaluate.num_prompts)
    if recipe.evaluate.num_prompts and recipe.evaluate.prompts:
        read_prompts(Path(recipe.evaluate.prompts))
    if recipe.refine.num_epochs:
        choose_mixed_precision(recipe.refine.mixed_precision, device)
        check_settings(recipe.refine)
    if recipe.distill.num_epochs and not finds_words(recipe):
        recipe = _with_words(recipe, Path())
    load_captions(recipe)
    if recipe.distill.num_epochs:
        choose_mixed_precision(recipe.distill.mixed_precision, device)
        if not finds_words(recipe):
            load_marked_captions(recipe)
    for part, (model, needed) in zip(("clip", "base", "clip"), needed_models(recipe), strict=False):
        resolve_model(model.name, part=part, needed=needed, revision=model.revision)
    towers = load_towers(recipe)
    check_last_layers(recipe.distill.text_layers, len(towers.teacher.encoder.layers))
    parts = ("scheduler", "unet") if recipe.generate.loras else ("scheduler",)
    base = FrozenBase.load(recipe.base.name, revision=recipe.base.revision, components=parts)
    check_channels(base.in_channels, requests)
    if base.unet is not None:
        check_for_grafts(base.unet, recipe.generate.loras)
    if recipe.refine.num_epochs:
        check_last_layers(recipe.refine.text_layers, len(towers.text_model.encoder.layers))
    if recipe.refine.num_epochs or finds_words(recipe):
        check_prediction(base)


def _finetune(recipe: Recipe, **options: Any) -> FinetuneResult:
    return finetune(*load_inputs(recipe), recipe=recipe, **options)
