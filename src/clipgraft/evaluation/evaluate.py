"""Measure text encoders' images between floors and ceilings (docs/evaluation.md)."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from accelerate import PartialState
from torch import nn

from clipgraft.cache import cache_dir
from clipgraft.config import DataSettings, EvaluateSettings, ModelSettings, Recipe, load_recipe
from clipgraft.console import print_line, print_table
from clipgraft.data.dataset import CaptionDataset, merge_duplicates
from clipgraft.device import choose_device, describe_environment, num_processes, put_back, quiet_libraries
from clipgraft.errors import UserError
from clipgraft.evaluation.features import ClipFeatures, FeatureStore, ProbeFeatures
from clipgraft.evaluation.figures import headline_tables
from clipgraft.evaluation.metrics.probe import load_probe
from clipgraft.evaluation.results import CHANCE, EMPTY, RANDOM, REAL, SHUFFLED, TEACHER, Evaluation
from clipgraft.evaluation.scores import score_by_clip, score_fidelity, score_likeness
from clipgraft.evaluation.summarize import Measured, compare_distributions, summarize_evaluation
from clipgraft.evaluation.variants import Variants, real_images
from clipgraft.files import write_bytes
from clipgraft.generation.generator import load_generators
from clipgraft.memory import release_memory
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import ClipParts, load_clip
from clipgraft.models.graft import Graft, read_base_record
from clipgraft.models.hub import embedded_models
from clipgraft.models.lineage import read_lineage
from clipgraft.runs.folder import RECIPE_NAME
from clipgraft.runs.run import GRAFT_NAMES, Run
from clipgraft.section import FLATLAND, GIVEN

RESULT_NAME = "evaluation.json"
RESERVED = (TEACHER, REAL, EMPTY, SHUFFLED, RANDOM, CHANCE)
"""Names of floors and ceilings, which no graft may have."""
OTHER_RUNS = ("log.jsonl", "clip", "graft", "finetune", "bridge")
"""Top-level names in the folders of other kinds of runs."""


def evaluate(
    variants: Mapping[str, Graft | str | Path | None],
    base: FrozenBase | str = "",
    data: CaptionDataset | DataSettings | None = None,
    *,
    output_dir: str | Path | None = None,
    scorer: ClipParts | ModelSettings | None = None,
    clips: Mapping[str, ClipParts | ModelSettings] = MappingProxyType({}),
    device: str = "auto",
    settings: EvaluateSettings | None = None,
    **overrides: Any,
) -> Evaluation:
    """Generate and measure several text encoders' images of equal prompts and seeds.

    Args:
        variants: Name -> graft, its folder, or None for the base's own text encoder, named "teacher".
        base: A base, or its name; empty = the grafts' base.
        data: Its test captions are the prompts, its train images are searched for copies. None = flatland8k
            for a base of its image size, else only `prompts` of the settings.
        output_dir: Receives `evaluation.json`, `metrics.json`, `variants/`, `features/` and `nearest/`, and
            reuses what is valid of them; None = write nothing.
        scorer: The CLIP that scores images; None = the settings' scorer, or flatland's for its base.
        clips: Variant -> CLIP, or its name, to measure retrieval with on the test split.
        device: "auto", "cpu", "cuda" or "mps".
        settings: None = `EvaluateSettings(num_prompts=240)`.
        **overrides: Fields of `EvaluateSettings`.

    Raises:
        UserError: If a setting is unknown or out of range, a name is reserved, or there is no prompt.
        CheckpointError: If a graft is damaged or made for another base.
    """
    quiet_libraries()
    settings = (settings or EvaluateSettings(num_prompts=240)).updated(overrides)
    _refuse_no_prompts(settings)
    given = _teacher_first(variants)
    if not scorer and not settings.scorer:
        _refuse_flatlands_scorer(base or next((_base_of(own) for own in given.values() if own), FLATLAND))
    begun = time.monotonic()
    place, processes = _start_processes(device)
    with ExitStack() as stack, put_back(*_models(base, scorer, *clips.values())):
        folder = Path(output_dir or stack.enter_context(TemporaryDirectory(prefix="clipgraft-"))).expanduser()
        caches = (folder, cache_dir() if output_dir else folder)
        store, shared = (FeatureStore(path / "features", processes) for path in caches)
        judge, scorer_name = _scorer(scorer, settings, place)  # first: a missing one is reported at once
        features = ClipFeatures(judge, "scorer", store, shared)
        made = Variants(given, settings, data, folder, processes)
        # Copies, as their precision changes and one loses its bridge for a while.
        encoders = {name: deepcopy(own) if isinstance(own, Graft) else own for name, own in given.items()}
        made.generate(load_generators(encoders, base=base, device=place.type))
        release_memory()  # of the base
        tuned = [name for name, own in given.items() if _is_tuned_from(own, scorer, settings)]
        loaded = {name: _load(clip, place) for name, clip in clips.items()}
        judges = {name: ClipFeatures(own, f"CLIP {name}", store, shared) for name, own in loaded.items()}
        measured = _measure(made, features, scorer_name, tuned, judges, store, processes)
        how = {"environment": describe_environment(place), "seconds": time.monotonic() - begun}
        evaluation = summarize_evaluation(measured).model_copy(update=how)
    if output_dir and processes.is_main_process:
        write_bytes(folder / RESULT_NAME, evaluation.to_json().encode("utf-8"))
        evaluation.short_metrics().save(folder)
    return evaluation


def _models(*given: FrozenBase | ClipParts | ModelSettings | str | None) -> Iterator[nn.Module]:
    """Yield the models among what was given."""
    for each in given:
        if isinstance(each, FrozenBase):
            yield from each.modules.values()
        elif isinstance(each, ClipParts):
            yield each.model


def evaluate_run(
    run_dir: Path,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    *,
    out: Path | None = None,
) -> Evaluation:
    """Evaluate the folder of a run.

    Args:
        run_dir: Written by `clipgraft run`, `demo` or `bridge`.
        overrides: `section.key` -> value, replacing those of the run's recipe.
        out: Folder for the results; None = `evaluate/` within the run.

    Raises:
        MissingFileError: If there is no such folder.
        CheckpointError: If it is not a run, was written with other settings, or has no graft.
    """
    run = Run.open(run_dir)
    # An explicit evaluation is made even if the recipe leaves it out.
    number = {"evaluate.num_prompts": run.recipe.evaluate.num_prompts or 240}
    recipe = load_recipe(run_dir / RECIPE_NAME, number | dict(overrides))
    encoders = run.variants()
    clips = run.clips() if "after" in encoders else {}
    return evaluate_recipe(recipe, encoders, out or run_dir / "evaluate", clips=clips)


def evaluate_grafts(recipe: Recipe, grafts: Sequence[Path], out: Path, *, base: str = "") -> Evaluation:
    """Evaluate graft folders beside the base's own text encoder; see `evaluate_recipe`.

    Raises:
        UserError: If a folder has a reserved name, or no suitable CLIP is named as the scorer.
    """
    encoders = name_grafts(grafts)
    if not recipe.evaluate.scorer and recipe.clip.name in (FLATLAND, GIVEN):
        _refuse_flatlands_scorer(base or next(map(_base_of, grafts), FLATLAND))
    return evaluate_recipe(recipe, {TEACHER: None, **encoders}, out, base=base)


def _base_of(graft: Graft | Path) -> str:
    if isinstance(graft, Graft):
        return graft.base.name
    record = read_base_record(graft)
    return record.name if record else FLATLAND  # what is not a graft is reported later


def _refuse_no_prompts(settings: EvaluateSettings) -> None:
    if not settings.num_prompts:
        raise UserError("evaluate.num_prompts must be 1 or more to evaluate; got 0")


def _refuse_flatlands_scorer(base: FrozenBase | str) -> None:
    if (base if isinstance(base, str) else base.origin and base.origin.name) != FLATLAND:
        raise UserError(
            "no CLIP is named to score images with, and flatland's only knows flatland's images; add "
            "--scorer with a folder or a hub id, e.g. --scorer openai/clip-vit-base-patch16"
        )


def _teacher_first(variants: Mapping[str, Graft | str | Path | None]) -> dict[str, Graft | Path | None]:
    """Return variants, the teacher first: others' states are compared with its own.

    Raises:
        UserError: If another one has its name, or that of a floor or a ceiling.
    """
    for name, own in variants.items():
        if own is None and name != TEACHER:
            raise UserError(f"the base's own text encoder is the variant {TEACHER!r}; got {name!r}")
        if own is not None and name in RESERVED:
            raise UserError(f"variant {name!r}: that name is reserved for a floor or ceiling; choose another")
    encoders = {
        name: Path(own).expanduser() if isinstance(own, str | Path) else own for name, own in variants.items()
    }
    return dict(sorted(encoders.items(), key=lambda variant: variant[1] is not None))


def name_grafts(folders: Sequence[Path]) -> dict[str, Path]:
    """Name variants after their folders, or the parents of `graft` and `text_encoder`.

    Equal names are numbered.

    Raises:
        UserError: If a folder has the name of a floor or a ceiling.
    """
    named: dict[str, Path] = {}
    for folder in folders:
        whole = folder.resolve()
        name = variant = whole.parent.name if whole.name in GRAFT_NAMES else whole.name
        if name in RESERVED:
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
    """Evaluate graft folders as a recipe says, and print the result.

    Args:
        recipe: Its device, data, clip and evaluate settings are used.
        encoders: Variant -> graft folder, or None for the base's own text encoder.
        folder: Receives the results of `evaluate`, `recipe.toml` and `environment.json`.
        base: Name of the base; empty = the grafts' base.
        clips: CLIP before and after fine-tuning, to measure retrieval with.

    Raises:
        UserError: If `num_prompts` is 0, or the folder holds another kind of run or an input.
    """
    _refuse_no_prompts(recipe.evaluate)
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
            scorer=None if recipe.evaluate.scorer or recipe.clip.name == GIVEN else recipe.clip,
            clips=clips,
            device=recipe.device,
            settings=recipe.evaluate,
        )
    if PartialState().is_main_process:
        _print(evaluation, folder)
    return evaluation


def _print(evaluation: Evaluation, folder: Path) -> None:
    for table in headline_tables(evaluation):
        print_table(table)
    for note in evaluation.notes:
        print_line(f"note: {note}")
    print_line(f"generated and scored: {evaluation.describe_settings()}")
    print_line(f"evaluation: {folder / RESULT_NAME}")


def _start_processes(device: str) -> tuple[torch.device, PartialState]:
    place = choose_device(device)
    num_processes()  # reports clearly what PartialState would fail at
    processes = PartialState(cpu=place.type == "cpu")
    return (processes.device if processes.num_processes > 1 else place), processes


def _measure(
    variants: Variants,
    scorer: ClipFeatures,
    scorer_name: str,
    tuned_from_scorer: list[str],
    judges: Mapping[str, ClipFeatures],
    store: FeatureStore,
    processes: PartialState,
) -> Measured:
    prompts, paths, gallery = variants.prompts, dict(variants.paths), merge_duplicates(variants.images.test)
    real = real_images(prompts, variants.folder, processes)
    if any(path for own in real for path in own):
        paths[REAL] = real
    scores, embeds, nearest = score_by_clip(scorer, prompts, paths, variants.images.train, variants.last)
    if TEACHER in paths:
        compared = [name for name in variants.paths if name != TEACHER]
        scores |= score_likeness(prompts, paths, embeds, compared)
    probe = None
    if any(prompt.scene for prompt in prompts):
        probe = ProbeFeatures(load_probe(embedded_models() / "probe.safetensors"), store)
        scores |= score_fidelity(probe, prompts, paths, variants.last)
    scores |= variants.state_errors
    captions = [caption for image in gallery for caption in image.captions]
    return Measured(
        variants=variants,
        paths=paths,
        scores=scores,
        nearest=nearest,
        scorer=scorer,
        scorer_name=scorer_name,
        tuned_from_scorer=tuned_from_scorer,
        extractor=ProbeFeatures.name if probe else f"{scorer_name}'s embeds",
        distributions=compare_distributions(variants, paths, scorer, probe),
        gallery=gallery,
        retrieval={
            name: (judge.of_texts(captions), judge.of_images(gallery))
            for name, judge in judges.items()
            if gallery
        },
    )


def _scorer(
    given: ClipParts | ModelSettings | None, settings: EvaluateSettings, device: torch.device
) -> tuple[ClipParts, str]:
    chosen = given or ModelSettings(name=settings.scorer or FLATLAND, revision=settings.scorer_revision)
    name = chosen.name if isinstance(chosen, ModelSettings) else str(chosen.model.config._name_or_path)
    # Without parent folders, which may name the user.
    return _load(chosen, device), Path(name).name if Path(name).is_dir() else name or "the given CLIP"


def _load(clip: ClipParts | ModelSettings, device: torch.device) -> ClipParts:
    parts = load_clip(clip.name, revision=clip.revision) if isinstance(clip, ModelSettings) else clip
    parts.model.eval().to(device)
    return parts


def _is_tuned_from(
    graft: Graft | Path | None, scorer: ClipParts | ModelSettings | None, settings: EvaluateSettings
) -> bool:
    """Whether a graft's CLIP is or descends from the scorer (by name)."""
    named = scorer or ModelSettings(name=settings.scorer or FLATLAND)
    if graft is None or not isinstance(named, ModelSettings):
        return False
    lineage = graft.lineage if isinstance(graft, Graft) else read_lineage(graft)
    names = [clip.name for clip in lineage.clips]
    return any(name == named.name or Path(name).resolve() == Path(named.name).resolve() for name in names)
