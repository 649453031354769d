"""A whole run: fine-tune, bridge, refine, generate, evaluate, report, each in a folder of its own."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from clipgraft.config import Recipe
from clipgraft.stages.bridge import bridge
from clipgraft.stages.evaluate import evaluate
from clipgraft.stages.finetune import finetune
from clipgraft.stages.folder import run_encoders, stage_folder
from clipgraft.stages.generate import DrawOptions, generate, jobs_of, speed_of
from clipgraft.stages.refine import refine
from clipgraft.stages.report import report
from clipgraft.stages.resources import recorded_resources


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
    tuned = recipe.clip.model_copy(update={"name": str(folder / "finetune" / "clip"), "revision": ""})
    stages: dict[str, tuple[Callable[..., Any], Recipe]] = {
        "finetune": (finetune, recipe),
        "bridge_before": (bridge, recipe),
        "bridge": (bridge, recipe.model_copy(update={"clip": tuned})),
    }
    if recipe.refine.num_epochs:
        stages["refine"] = (partial(_refine, folder / "bridge" / "graft"), recipe)
    for name, (stage, settings) in stages.items():
        if not (resume and (folder / name / "metrics.json").is_file()):
            with stage_folder(folder / name, settings, resume=resume, overwrite=True) as stage_dir:
                stage(settings, stage_dir, resume=resume)
    encoders = run_encoders(folder)
    options = DrawOptions(
        device=recipe.device, batch_size=recipe.generate.batch_size, speed=speed_of(recipe.generate)
    )
    with recorded_resources(folder / "generate"):
        generate(jobs_of(recipe.generate), encoders, folder / "generate", options)
    if recipe.evaluate.num_prompts:
        clips = {"before": recipe.clip.name, "after": tuned.name}
        with recorded_resources(folder / "evaluate"):
            evaluate(recipe, encoders, folder / "evaluate", clips=clips)
    page = report(folder)
    Console().print(f"report: {page}", highlight=False)
    return page


def _refine(graft: Path, recipe: Recipe, folder: Path, *, resume: bool) -> dict[str, Any]:
    """The stage with its graft first, so that it is called as the others are."""
    return refine(recipe, graft, folder, resume=resume)
