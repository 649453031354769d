"""A whole run: fine-tune, bridge, generate, report, each in a folder of its own."""

from pathlib import Path

from rich.console import Console

from clipgraft.config import Recipe
from clipgraft.presets import PRETRAIN_NAME
from clipgraft.stages.bridge import bridge
from clipgraft.stages.finetune import finetune
from clipgraft.stages.folder import stage_folder
from clipgraft.stages.generate import generate
from clipgraft.stages.pretrain import pretrain
from clipgraft.stages.report import report


def run_all(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Run every stage of a recipe.

    Args:
        recipe: All of its settings are read; the bridge takes the CLIP that was fine-tuned here. A base
            within the folder itself is trained first.
        folder: Gets `finetune/`, `bridge/`, `generate/`, `metrics.json`, `loss.png`, `report.html`.
        resume: Take finished stages as they are, and go on within the one that was at work.

    Returns:
        Path of the report.
    """
    trained = folder / PRETRAIN_NAME
    if recipe.base.name == str(trained / "base") and not (resume and (trained / "metrics.json").is_file()):
        with stage_folder(trained, recipe, resume=resume, overwrite=True) as stage_dir:
            pretrain(recipe, stage_dir, resume=resume)
    tuned = recipe.clip.model_copy(update={"name": str(folder / "finetune" / "clip"), "revision": ""})
    stages = {
        "finetune": (finetune, recipe),
        "bridge": (bridge, recipe.model_copy(update={"clip": tuned})),
    }
    for name, (stage, settings) in stages.items():
        if not (resume and (folder / name / "metrics.json").is_file()):
            with stage_folder(folder / name, settings, resume=resume, overwrite=True) as stage_dir:
                stage(settings, stage_dir, resume=resume)
    generate(recipe, folder / "bridge" / "graft", folder / "generate")
    page = report(folder)
    Console().print(f"report: {page}", highlight=False)
    return page
