"""Evaluate runs and graft folders as their recipes say; what `clipgraft evaluate` calls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate import PartialState
from rich.console import Console

from clipgraft.config import ModelSettings, Recipe, load_recipe
from clipgraft.console import print_line
from clipgraft.errors import UserError
from clipgraft.evaluation.evaluate import FLATLAND, RESULT_NAME, evaluate
from clipgraft.evaluation.results import CHANCE, EMPTY, RANDOM, REAL, SHUFFLED, TEACHER, Evaluation
from clipgraft.evaluation.tables import headline_tables
from clipgraft.models.configs import BaseRecord, read_config
from clipgraft.models.graft import BASE_RECORD
from clipgraft.models.weights import verify_folder
from clipgraft.runs.folder import RECIPE_NAME
from clipgraft.runs.run import Run

OTHER_RUNS = ("log.jsonl", "clip", "graft", "finetune", "bridge")
"""Names at the top of other runs' folders."""


def evaluate_run(
    run_dir: Path,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    *,
    out: Path | None = None,
) -> Evaluation:
    """Evaluate the folder of a run.

    Args:
        run_dir: What `clipgraft run`, `demo` or `bridge` wrote.
        overrides: Values by `section.key` over the run's own recipe.
        out: Folder for the results; None = `evaluate/` within the run.

    Raises:
        MissingFileError: If there is no such folder.
        CheckpointError: If it is not a run, was written with other settings, or has no graft.
    """
    run = Run.open(run_dir)
    # An evaluation that is asked for is made, also of a run whose recipe leaves it out.
    number = {"evaluate.num_prompts": run.recipe.evaluate.num_prompts or 240}
    recipe = load_recipe(run_dir / RECIPE_NAME, number | dict(overrides))
    encoders = run.variants()
    clips = run.clips() if "after" in encoders else {}
    return evaluate_recipe(recipe, encoders, out or run_dir / "evaluate", clips=clips)


def evaluate_grafts(recipe: Recipe, grafts: Sequence[Path], out: Path, *, base: str = "") -> Evaluation:
    """Evaluate graft folders beside the base's own text encoder.

    Args:
        recipe: As of `evaluate_recipe`.
        grafts: Folders.
        out: Folder for the results.
        base: Name of the base; empty = the one that a graft names.

    Raises:
        UserError: If a folder has a reserved name, or no suitable CLIP is named as the scorer.
    """
    encoders = name_grafts(grafts)
    base_name = base or next(map(_base_of, grafts), FLATLAND)
    if base_name != FLATLAND and not recipe.evaluate.scorer and recipe.clip.name == FLATLAND:
        raise UserError(
            "no CLIP is named to score images with, and flatland's only knows flatland's images; add "
            "--scorer with a folder or a hub id, e.g. --scorer openai/clip-vit-base-patch16"
        )
    return evaluate_recipe(recipe, {TEACHER: None, **encoders}, out, base=base)


def _base_of(graft: Path) -> str:
    """The base's name; flatland if the folder is not a graft, which is reported later."""
    record = graft / BASE_RECORD
    if not record.is_file():
        return FLATLAND
    verify_folder(graft)
    return str(read_config(record, BaseRecord)["name"])


def name_grafts(folders: Sequence[Path]) -> dict[str, Path]:
    """Name variants after their folders, or the one around a folder `graft`; numbered where equal.

    Raises:
        UserError: If a folder has the name of a floor or a ceiling.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        whole = folder.resolve()
        name = variant = whole.parent.name if whole.name == "graft" else whole.name
        if name in (TEACHER, REAL, EMPTY, SHUFFLED, RANDOM, CHANCE):
            raise UserError(
                f"the graft {folder} would be the variant {name!r}, a name reserved for a floor or ceiling; "
                "rename its folder"
            )
        number = 1
        while variant in named:
            number += 1
            variant = f"{name}-{number}"
        named[variant] = folder
    return named


def evaluate_recipe(
    recipe: Recipe,
    encoders: Mapping[str, Path | None],
    folder: Path,
    *,
    base: str = "",
    clips: Mapping[str, ModelSettings] = MappingProxyType({}),
) -> Evaluation:
    """Evaluate graft folders as a recipe says, in a folder of its own, and print the result.

    Args:
        recipe: Its device, data, clip and evaluate settings are read.
        encoders: By variant a graft folder, or None for the base's own text encoder.
        folder: Gets the results of `evaluate`, `recipe.toml` and `environment.json`.
        base: Name of the base; empty = the one that a graft names.
        clips: CLIP before and after fine-tuning, whose retrieval is measured.

    Raises:
        UserError: If no prompt is asked for, or the folder holds another kind of run or an input.
    """
    if not recipe.evaluate.num_prompts:
        raise UserError("evaluate.num_prompts must be 1 or more to evaluate; got 0")
    other = next((name for name in OTHER_RUNS if (folder / name).exists()), None)
    if other:
        raise UserError(f"{folder} holds another kind of run ({other}); choose another folder with --out")
    inputs: dict[str, str | Path | None] = {f"the graft of {name}": path for name, path in encoders.items()}
    inputs |= {f"CLIP {name}": clip.name for name, clip in clips.items()}
    with Run.begin(folder, recipe, stage="evaluate", inputs=inputs, resume=True, in_parallel=True):
        evaluation = evaluate(
            encoders,
            base,
            recipe.data,
            output_dir=folder,
            scorer=None if recipe.evaluate.scorer else recipe.clip,
            clips=clips,
            device=recipe.device,
            settings=recipe.evaluate,
        )
    if PartialState().is_main_process:
        _print(evaluation, folder)
    return evaluation


def _print(evaluation: Evaluation, folder: Path) -> None:
    console = Console()
    for table in headline_tables(evaluation):
        console.print(table)
    for note in evaluation.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    print_line(f"generated and scored: {evaluation.describe_settings()}")
    print_line(f"evaluation: {folder / RESULT_NAME}")
