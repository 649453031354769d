"""A run's folder as plain data: what its stages wrote, and what is missing or damaged, said in sentences.

Nothing here fails for lack of a file: a run that was stopped half way is read as far as it came.
"""

import json
import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipgraft.errors import MissingFileError, UserError

STAGES = ("finetune", "bridge_before", "bridge", "refine", "ladder", "generate", "evaluate")
MEASURED_STAGES = ("finetune", "bridge_before", "bridge", "refine", "ladder", "evaluate")
"""Stages that write a `metrics.json`."""
NESTED_STAGES = frozenset({"generate", "evaluate"})
"""Stages whose folders a single stage's folder may hold too: what its graft draws, and how good that is."""
RUN_FILES = ("recipe.toml", "metrics.json", "log.jsonl", "images.json", "evaluation.json")
"""Any of these makes a folder a run's or a stage's."""
EVALUATION_VERSION = 1
"""Newest `schema_version` of `evaluation.json` that is understood."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run's folder holds; an empty value stands for what is not there."""

    name: str
    """Name of the folder."""
    is_single_stage: bool
    """Whether the folder is one stage's, not a whole run's."""
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    data: dict[str, Any]
    """Counts of the captioned images."""
    log: list[dict[str, Any]]
    """Fine-tuning's optimizer steps."""
    evaluations: list[dict[str, Any]]
    """Rows of `evaluations.jsonl`: recall, loss and drift on the way."""
    finetune: dict[str, Any]
    bridge: dict[str, Any]
    refine: dict[str, Any]
    ladder: dict[str, Any]
    evaluate: dict[str, Any]
    """Prompt fidelity."""
    evaluation: dict[str, Any]
    """`evaluation.json` (docs/evaluation.md); its files have `path` as the pictures have."""
    resources: dict[str, dict[str, Any]]
    """Seconds and memory by stage, the whole run's under an empty name."""
    pictures: list[dict[str, Any]]
    """Rows of `images.json`, each with `path`: the file, or None where it lies outside the run."""
    begun: frozenset[str]
    """Stages that have a folder."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each file that is there but cannot be read whole."""


def read_run(run_dir: Path) -> Run:
    """Read the folder of a run, or of a single stage.

    Args:
        run_dir: Holds `finetune/`, `bridge/` or `generate/`, or what one of these holds.

    Returns:
        What was found; damaged files are named in `problems`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds nothing of a run's.
    """
    begun = _begun_stages(run_dir)
    is_single = begun <= NESTED_STAGES
    problems: list[str] = []
    folders = {stage: run_dir if is_single and stage not in begun else run_dir / stage for stage in STAGES}
    metrics = _stage_metrics(run_dir, problems)
    recipe_text = _read_text(run_dir / "recipe.toml", problems)
    return Run(
        name=run_dir.resolve().name,
        is_single_stage=is_single,
        recipe=_parse(run_dir / "recipe.toml", recipe_text, tomllib.loads, problems),
        recipe_text=recipe_text,
        environment=_read_object(run_dir / "environment.json", problems),
        data=_read_object(run_dir / "data.json", problems)
        or _read_object(folders["finetune"] / "data.json", problems),
        log=read_log(folders["finetune"] / "log.jsonl", problems),
        evaluations=_read_rows(folders["finetune"] / "evaluations.jsonl", problems),
        finetune=metrics.get("finetune", {}),
        bridge=metrics.get("bridge", {}),
        refine=metrics.get("refine", {}),
        ladder=metrics.get("ladder") or _top_ladder(run_dir),
        evaluate=metrics.get("evaluate", {}),
        evaluation=_read_evaluation(folders["evaluate"], run_dir, problems),
        resources={
            stage: used
            for stage in ("", *sorted(begun))
            if (used := _read_object(run_dir / stage / "resources.json", problems))
        },
        pictures=_read_pictures(folders["generate"], run_dir, problems),
        begun=begun,
        problems=list(dict.fromkeys(problems)),
    )


def _begun_stages(run_dir: Path) -> frozenset[str]:
    if not run_dir.is_dir():
        raise MissingFileError(f"run folder not found: {run_dir}")
    begun = _stage_folders(run_dir)
    if not begun and not any((run_dir / name).is_file() for name in RUN_FILES):
        raise UserError(
            f"{run_dir} is no run: it holds neither {', '.join(RUN_FILES[:-1])} nor a stage's folder; name a "
            "folder that clipgraft wrote"
        )
    return begun


def _stage_folders(run_dir: Path) -> frozenset[str]:
    return frozenset(stage for stage in STAGES if (run_dir / stage).is_dir())


def collect_metrics(run_dir: Path) -> dict[str, Any]:
    """Bring the stages' metrics together.

    Args:
        run_dir: Folder of a run, or of a single stage.

    Returns:
        Stage -> what its `metrics.json` holds, and for `generate` the number of pictures and of failed ones;
        a stage that did not end is left out. A single stage's metrics are returned as they are.
    """
    problems: list[str] = []
    if _stage_folders(run_dir) <= NESTED_STAGES:
        return _read_object(run_dir / "metrics.json", problems)
    metrics = _stage_metrics(run_dir, problems)
    pictures = _read_pictures(run_dir / "generate", run_dir, problems)
    if pictures:
        num_failed = sum(row.get("status", "ok") != "ok" for row in pictures)
        metrics["generate"] = {"num_images": len(pictures), "num_failed": num_failed}
    return metrics


def has_own_metrics(run_dir: Path) -> bool:
    """Whether a folder's `metrics.json` is a stage's own: not to be written over by all stages' together."""
    return not set(_read_object(run_dir / "metrics.json", [])) <= set(STAGES)


def read_log(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Read `log.jsonl`; a line that a stopped run left unfinished is left out.

    Args:
        path: The file; an absent one gives no rows.
        problems: Gets a sentence if a line cannot be read.

    Returns:
        One row an optimizer step: at least `step` (from 1), `epoch` (from 0) and `loss` (None for NaN).
    """
    rows, num_bad = [], 0
    for line in _read_text(path, problems).splitlines():
        try:
            row = json.loads(line)
            rows.append({**row, "step": int(row["step"]), "epoch": int(row["epoch"]), "loss": row["loss"]})
        except (ValueError, KeyError, TypeError):
            num_bad += 1
    if num_bad:
        problems.append(f"{path.name}: {num_bad} of {num_bad + len(rows)} lines cannot be read.")
    return rows


def _read_rows(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Read a file of JSON objects, one a line; a file with anything else in it gives none."""
    lines = _read_text(path, problems).splitlines()
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError:
        rows = [None]
    if all(isinstance(row, dict) for row in rows):
        return rows
    problems.append(f"{path.name} cannot be read.")
    return []


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _stage_metrics(run_dir: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Metrics of the stages that ended; a single stage's are told apart by their keys."""
    begun, found = _stage_folders(run_dir), {}
    if begun <= NESTED_STAGES:
        metrics = _read_object(run_dir / "metrics.json", problems)
        told_by = {"linear": "bridge", "scores": "evaluate", "rungs": "ladder"}
        told_by |= {"num_epochs": "finetune", "num_train_images": "refine"}  # the first has both keys
        found = {next((stage for key, stage in told_by.items() if key in metrics), "finetune"): metrics}
    found |= {
        stage: _read_object(run_dir / stage / "metrics.json", problems)
        for stage in MEASURED_STAGES
        if stage in begun
    }
    return {stage: metrics for stage, metrics in found.items() if metrics}


def _top_ladder(run_dir: Path) -> dict[str, Any]:
    """The ladder where the folder is a ladder's own: it has a stage's folders, and its figures at the top."""
    metrics = _read_object(run_dir / "metrics.json", [])
    return metrics if isinstance(metrics.get("rungs"), dict) else {}


def _read_evaluation(folder: Path, run_dir: Path, problems: list[str]) -> dict[str, Any]:
    """Read `evaluation.json`; one of a later version is named and left out."""
    evaluation = _read_object(folder / "evaluation.json", problems)
    version = evaluation.get("schema_version", 0)
    if version not in range(EVALUATION_VERSION + 1):
        problems.append(
            f"evaluation.json is of version {version}, this clipgraft reads up to {EVALUATION_VERSION}; "
            "take a newer clipgraft to see it."
        )
        return {}
    for key, name in (
        ("pictures", "file"),
        ("nearest_training_images", "file"),
        ("nearest_training_images", "training_file"),
    ):
        rows = evaluation.get(key)
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and isinstance(row.get(name), str):
                row[name.replace("file", "path")] = _inside(folder / row[name], run_dir)
    return evaluation


def _inside(file: Path, run_dir: Path) -> Path | None:
    """The file; None where it lies outside the run."""
    resolved = file.resolve()
    return resolved if resolved.is_relative_to(run_dir.resolve()) else None


def _read_pictures(folder: Path, run_dir: Path, problems: list[str]) -> list[dict[str, Any]]:
    path = folder / "images.json"
    rows = _parse(path, _read_text(path, problems), json.loads, problems, kind=list)
    pictures = []
    for row in rows:
        if isinstance(row, dict) and isinstance(row.get("file"), str):
            pictures.append({**row, "path": _inside(folder / row["file"], run_dir)})
        else:
            problems.append(f"{path.name}: a row names no file and is left out.")
    return pictures


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    return _parse(path, _read_text(path, problems), json.loads, problems)


def _read_text(path: Path, problems: list[str]) -> str:
    if not path.is_file():
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error}.")
        return ""


def _parse(
    path: Path, text: str, parse: Callable[[str], Any], problems: list[str], *, kind: type = dict
) -> Any:
    if not text:
        return kind()
    try:
        value = parse(text)
    except ValueError as error:
        problems.append(f"{path.name} is damaged: {error}.")
        return kind()
    if not isinstance(value, kind):
        problems.append(f"{path.name} holds no {'list' if kind is list else 'object'}.")
        return kind()
    return value
