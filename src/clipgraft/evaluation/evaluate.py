"""How good pictures are with each text encoder of a run, between floors and ceilings; docs/evaluation.md."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState

from clipgraft.cache import cache_dir
from clipgraft.config import Recipe, load_recipe, named_paths, parse_overrides, to_toml
from clipgraft.data.dataset import CaptionedImage, merge_duplicates
from clipgraft.device import choose_device, describe_environment, num_processes, quiet_libraries
from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.evaluation.metrics.probe import load_probe
from clipgraft.evaluation.prompt_sets import next_prompts
from clipgraft.evaluation.results import Measured, build_record, compare_distributions
from clipgraft.evaluation.scores import (
    ClipFeatures,
    ProbeFeatures,
    score_by_clip,
    score_fidelity,
    score_likeness,
)
from clipgraft.evaluation.stores import FeatureStore
from clipgraft.evaluation.tables import print_record, short_metrics
from clipgraft.evaluation.variants import (
    CHANCE,
    EMPTY,
    RANDOM,
    REAL,
    SHUFFLED,
    TEACHER,
    draw_all,
    real_pictures,
)
from clipgraft.files import write_bytes, write_json
from clipgraft.models.clip import load_clip
from clipgraft.models.configs import BaseRecord, read_config
from clipgraft.models.graft import BASE_RECORD
from clipgraft.models.hub import embedded_models
from clipgraft.models.lineage import read_lineage
from clipgraft.models.weights import verify_folder
from clipgraft.runs.folder import RECIPE_NAME, refuse_inputs_within, run_folder
from clipgraft.runs.run import run_encoders

FLATLAND = "flatland"
"""Name of the embedded base and of its CLIP."""
OTHER_RUNS = ("log.jsonl", "clip", "graft", "finetune", "bridge")
"""What lies at the top of other runs."""


def evaluate_run(
    run_dir: Path,
    settings: Sequence[str] = (),
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the folder of a run.

    Args:
        run_dir: What `clipgraft run`, `clipgraft demo` or `clipgraft bridge` wrote.
        settings: Texts of the form `section.key=value` over the run's own recipe.
        given: Values by `section.key` over it, below `settings`.
        out: Folder for the results; None: `evaluate/` within the run.

    Returns:
        What evaluation.json holds; empty in other processes than the first.

    Raises:
        FileNotFoundError: If there is no such folder.
        CheckpointError: If it is no run's, of another version's settings, or has no graft.
    """
    if not run_dir.is_dir():
        raise MissingFileError(f"run folder not found: {run_dir}")
    path = run_dir / RECIPE_NAME
    if not path.is_file():
        raise CheckpointError(f"{run_dir} holds no run (no {RECIPE_NAME}); name what `clipgraft run` wrote")
    try:
        recipe = load_recipe(path)
    except ValueError as error:
        raise CheckpointError(
            f"{run_dir} was written by a version with other settings ({error}); mend its {RECIPE_NAME}, or "
            "run it again"
        ) from error
    # Who asks for an evaluation wants one, also of a run whose recipe left it out.
    number = {"evaluate.num_prompts": recipe.evaluate.num_prompts or 240}
    recipe = load_recipe(path, number | dict(given) | parse_overrides(settings))
    encoders = graft_folders(run_dir)
    clips = {"before": recipe.clip.name, "after": str(run_dir / "finetune" / "clip")}
    has_both = Path(clips["after"]).is_dir() and "after" in encoders
    return evaluate(recipe, encoders, out or run_dir / "evaluate", clips=clips if has_both else {})


def graft_folders(run_dir: Path) -> dict[str, Path | None]:
    """Text encoders that a run compares, by column; of a bridge stage's folder its one graft.

    Raises:
        CheckpointError: If it has none.
    """
    encoders = run_encoders(run_dir)
    if (run_dir / "graft").is_dir():
        encoders["graft"] = run_dir / "graft"
    if len(encoders) == 1:
        raise CheckpointError(
            f"{run_dir} has no weights to draw with (no bridge/graft); finish it with `clipgraft run "
            f"{run_dir / RECIPE_NAME} --out {run_dir} --resume`"
        )
    return encoders


def evaluate_grafts(recipe: Recipe, grafts: Sequence[Path], out: Path, *, base: str = "") -> dict[str, Any]:
    """Evaluate grafts that are no run's, beside the base's own text encoder.

    Args:
        recipe: As of `evaluate`.
        grafts: Folders.
        out: Folder for the results.
        base: Where not empty, the base in place of the one that a graft names.

    Returns:
        As `evaluate`.

    Raises:
        ValueError: If a folder has the name of another column, or no CLIP that could score is named.
    """
    encoders = name_grafts(grafts)
    base_name = base or next(map(_base_of, grafts), FLATLAND)
    if base_name != FLATLAND and not recipe.evaluate.scorer and recipe.clip.name == FLATLAND:
        raise UserError(
            "no CLIP is named to score pictures by, and flatland's knows flatland's pictures alone; add "
            "--scorer with a folder or a hub id, e.g. --scorer openai/clip-vit-base-patch16"
        )
    return evaluate(recipe, {TEACHER: None, **encoders}, out, base=base)


def _base_of(graft: Path) -> str:
    """Name of the base that a graft was made for; flatland where the folder is none, which is said later."""
    record = graft / BASE_RECORD
    if not record.is_file():
        return FLATLAND
    verify_folder(graft)
    return str(read_config(record, BaseRecord)["name"])


def name_grafts(folders: Sequence[Path]) -> dict[str, Path]:
    """Name columns after their folders: of a `graft` the one around it; numbered where equal.

    Raises:
        ValueError: If a folder has the name of a floor or a ceiling.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        whole = folder.resolve()
        name = column = whole.parent.name if whole.name == "graft" else whole.name
        if name in (TEACHER, REAL, EMPTY, SHUFFLED, RANDOM, CHANCE):
            raise UserError(
                f"the graft {folder} would be the column {name!r}, which is a floor's or ceiling's own; "
                "rename its folder"
            )
        number = 1
        while column in named:
            number += 1
            column = f"{name}-{number}"
        named[column] = folder
    return named


def evaluate(
    recipe: Recipe,
    encoders: Mapping[str, Path | None],
    folder: Path,
    *,
    base: str = "",
    clips: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Draw with several text encoders from the same prompts and seeds, and measure the pictures.

    In several processes (started by `accelerate launch`) pictures and features are shared out, and the first
    one writes.

    Args:
        recipe: Its device, data, clip and evaluate settings are read.
        encoders: By column a graft folder, or None for the base's own text encoder.
        folder: Gets `evaluation.json`, `pictures/`, `features/`, `nearest/`, `metrics.json`, `recipe.toml`
            and `environment.json`. What it holds of an earlier call is used where nothing that decides it
            changed.
        base: Where not empty, the base in place of the one that a graft names.
        clips: CLIP before and after fine-tuning, whose recall is measured on the test split.

    Returns:
        What evaluation.json holds; empty in other processes than the first.

    Raises:
        ValueError: If no prompt is asked for.
    """
    if not recipe.evaluate.num_prompts:
        raise UserError("evaluate.num_prompts must be 1 or more to evaluate; got 0")
    begun = time.monotonic()
    quiet_libraries()
    device = choose_device(recipe.device)
    grafts = {f"the graft of {column}": path for column, path in encoders.items()}
    refuse_inputs_within(folder, named_paths(recipe) | grafts | dict(clips or {}))
    num_processes()  # refuses what PartialState would fail at
    processes = PartialState(cpu=device.type == "cpu")
    device = processes.device if processes.num_processes > 1 else device
    if not processes.is_main_process:
        processes.wait_for_everyone()
        _measure(recipe, encoders, folder, base, clips or {}, device, processes)
        return {}
    _refuse_other_run(folder)
    with run_folder(folder, resume=True):
        write_bytes(folder / RECIPE_NAME, to_toml(recipe).encode("utf-8"))
        write_json(folder / "environment.json", describe_environment(device))
        processes.wait_for_everyone()
        measured = _measure(recipe, encoders, folder, base, clips or {}, device, processes)
        record = build_record(measured, recipe.evaluate)
        record |= {"environment": describe_environment(device), "seconds": time.monotonic() - begun}
        write_json(folder / "evaluation.json", record)
        write_json(folder / "metrics.json", short_metrics(record))
    print_record(record, folder)
    return record


def _refuse_other_run(folder: Path) -> None:
    """Keep the recipe and the figures of a run that is no evaluation from being replaced."""
    other = next((name for name in OTHER_RUNS if (folder / name).exists()), None)
    if other:
        raise UserError(f"{folder} holds a run that is no evaluation ({other}); name another with --out")


def _measure(
    recipe: Recipe,
    encoders: Mapping[str, Path | None],
    folder: Path,
    base: str,
    clips: Mapping[str, str],
    device: torch.device,
    processes: PartialState,
) -> Measured:
    """Everything that all processes take part in."""
    store, shared = (FeatureStore(path / "features", processes) for path in (folder, cache_dir()))
    settings = recipe.evaluate
    scorer_name = settings.scorer or recipe.clip.name
    revision = settings.scorer_revision if settings.scorer else recipe.clip.revision
    # Of a folder the name alone: a path would tell the user's to everyone the result is sent to.
    name = Path(scorer_name).name if Path(scorer_name).is_dir() else scorer_name
    # Before anything is drawn: a scorer that is not there is said at once.
    scorer = ClipFeatures(_clip(scorer_name, revision, device), "scorer", store, shared)
    drawn = draw_all(recipe, encoders, folder, base, device, processes)
    prompts, paths, gallery = drawn.prompts, dict(drawn.paths), merge_duplicates(drawn.images.test)
    real = real_pictures(prompts, folder, processes)
    if any(path for own in real for path in own):
        paths[REAL] = real
    shuffled = SHUFFLED, drawn.last
    scores, embeds, nearest = score_by_clip(scorer, prompts, paths, drawn.images.train, shuffled)
    if TEACHER in paths:
        compared = [column for column in drawn.paths if column != TEACHER]
        scores |= score_likeness(paths, embeds, TEACHER, compared, SHUFFLED, next_prompts(prompts))
    probe = None
    if any(prompt.scene for prompt in prompts):
        probe = ProbeFeatures(load_probe(embedded_models() / "probe.safetensors"), store)
        scores |= score_fidelity(probe, prompts, paths, shuffled)
    scores |= drawn.state_errors
    judges = {
        column: ClipFeatures(_clip(name, "", device), f"CLIP {column}", store, shared)
        for column, name in clips.items()
    }
    return Measured(
        drawn=drawn,
        paths=paths,
        scores=scores,
        nearest=nearest,
        scorer=scorer,
        scorer_name=name,
        tuned_from_scorer=[
            column for column, graft in encoders.items() if graft and _is_tuned_from(graft, scorer_name)
        ],
        extractor=ProbeFeatures.name if probe else f"{name}'s embeds",
        distributions=compare_distributions(drawn, paths, scorer, probe),
        gallery=gallery,
        retrieval={
            column: (judge.of_texts(_captions(gallery)), judge.of_images(gallery))
            for column, judge in judges.items()
            if gallery
        },
    )


def _is_tuned_from(graft: Path, clip_name: str) -> bool:
    """Whether a graft's CLIP is of that name, or was tuned from it."""
    names = [clip.name for clip in read_lineage(graft).clips]
    return any(name == clip_name or Path(name).resolve() == Path(clip_name).resolve() for name in names)


def _clip(name: str, revision: str, device: torch.device) -> Any:
    clip = load_clip(name, revision=revision or None)
    clip.model.eval().to(device)
    return clip


def _captions(images: Sequence[CaptionedImage]) -> list[str]:
    return [caption for image in images for caption in image.captions]
