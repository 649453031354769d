"""A run's folder as plain data: what its stages wrote, and what is missing or damaged, said in sentences.

Nothing here fails for lack of a file: a run that was stopped half way is read as far as it came.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from clipgraft.errors import MissingFileError, UserError, one_line
from clipgraft.evaluation.results import Evaluation
from clipgraft.files import MAX_BYTES, inside, parse_json, parse_toml, read_text
from clipgraft.reporting.embedded_images import PageImage

T = TypeVar("T")

STAGES = ("finetune", "bridge_before", "bridge", "refine", "generate", "evaluate")
MEASURED_STAGES = ("finetune", "bridge_before", "bridge", "refine", "evaluate")
"""Stages that write a `metrics.json`."""
NESTED_STAGES = frozenset({"generate", "evaluate"})
"""Stages whose folders a single stage's folder may hold too: what its graft draws, and how good that is."""
RUN_FILES = ("recipe.toml", "metrics.json", "log.jsonl", "images.json", "evaluation.json")
"""Any of these makes a folder a run's or a stage's."""
MAX_COUNT = 2**53
"""Of steps and epochs: beyond it a browser's numbers, and float64, are not exact."""


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
    evaluation: Evaluation
    """Of `evaluation.json`; empty without one."""
    resources: dict[str, dict[str, Any]]
    """Seconds and memory by stage, the whole run's under an empty name."""
    image_rows: list[dict[str, Any]]
    """Rows of `images.json`."""
    images: list[PageImage]
    """The same, to be shown."""
    begun: frozenset[str]
    """Stages that have a folder."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each file that is there but cannot be read whole."""
    folder: Path = Path()
    evaluation_dir: Path = Path()

    def evaluation_file(self, name: str) -> Path | None:
        """Return a file named by the evaluation; None if it lies outside the run."""
        return _contained(self.evaluation_dir / name, self.folder)


def read_run(run_dir: Path, *, max_bytes: int = MAX_BYTES) -> Run:
    """Read the folder of a run, or of a single stage.

    Args:
        run_dir: Holds `finetune/`, `bridge/` or `generate/`, or what one of these holds.
        max_bytes: Largest file that is read.

    Returns:
        What was found; damaged files are named in `problems`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds nothing of a run's.
    """
    begun = _begun_stages(run_dir)
    is_single = begun <= NESTED_STAGES
    read = _Reader(run_dir, max_bytes=max_bytes)
    folders = {stage: run_dir if is_single and stage not in begun else run_dir / stage for stage in STAGES}
    metrics = _stage_metrics(read)
    data = read.object(run_dir / "data.json") or read.object(folders["finetune"] / "data.json")
    if "left_out" in data:  # the name before `excluded`
        data["excluded"] = data.pop("left_out")
    rows = _read_images(folders["generate"], read)
    return Run(
        name=run_dir.resolve().name,
        is_single_stage=is_single,
        recipe=read.toml(run_dir / "recipe.toml"),
        recipe_text=read.text(run_dir / "recipe.toml"),
        environment=read.object(run_dir / "environment.json"),
        data=data,
        log=read.log(folders["finetune"] / "log.jsonl"),
        evaluations=read.rows(folders["finetune"] / "evaluations.jsonl"),
        finetune=metrics.get("finetune", {}),
        bridge=metrics.get("bridge", {}),
        refine=metrics.get("refine", {}),
        evaluation=read.evaluation(folders["evaluate"] / "evaluation.json"),
        resources={
            stage: used
            for stage in ("", *sorted(begun))
            if (used := read.object(run_dir / stage / "resources.json"))
        },
        image_rows=rows,
        images=[_page_image(row, folders["generate"], run_dir) for row in rows],
        begun=begun,
        problems=list(dict.fromkeys(read.problems)),
        folder=run_dir,
        evaluation_dir=folders["evaluate"],
    )


@dataclass
class _Reader:
    """Reads files of a run: what is absent is empty, what cannot be read is empty and named in `problems`."""

    run_dir: Path
    problems: list[str] = field(default_factory=list)
    max_bytes: int = MAX_BYTES

    def text(self, path: Path) -> str:
        """A text file that lies within the run."""
        return self._tried(path, lambda text: text, "")

    def toml(self, path: Path) -> dict[str, Any]:
        """A TOML file."""
        return self._tried(path, lambda text: parse_toml(text, path.name), {})

    def object(self, path: Path) -> dict[str, Any]:
        """A JSON file that holds an object."""
        return self._tried(path, lambda text: parse_json(text, path.name), {})

    def array(self, path: Path) -> list[Any]:
        """A JSON file that holds a list."""
        return self._tried(path, lambda text: parse_json(text, path.name, list), [])

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """A file of JSON objects, one a line; one with anything else in it gives none."""
        return self._tried(path, lambda text: [parse_json(line, path.name) for line in text.splitlines()], [])

    def log(self, path: Path) -> list[dict[str, Any]]:
        """As `read_log`."""
        rows, num_bad = [], 0
        for line in self.text(path).splitlines():
            try:
                row = parse_json(line, path.name)
                rows.append(
                    {**row, "step": _whole(row["step"]), "epoch": _whole(row["epoch"]), "loss": row["loss"]}
                )
            except (UserError, KeyError, TypeError):
                num_bad += 1
        if num_bad:
            self.problems.append(f"{path.name}: {num_bad} of {num_bad + len(rows)} lines cannot be read.")
        return rows

    def evaluation(self, path: Path) -> Evaluation:
        """An evaluation, of this version or an older one."""
        return self._tried(path, lambda text: Evaluation.from_json(text, path.name), Evaluation())

    def _tried(self, path: Path, parse: Callable[[str], T], empty: T) -> T:
        if not os.path.lexists(path):
            return empty
        try:
            text = read_text(inside(path, self.run_dir), max_bytes=self.max_bytes)
            return parse(text) if text else empty
        except (UserError, OSError) as error:
            reason = one_line(error).replace(str(path), path.name).removeprefix(path.name).lstrip(": ")
            self.problems.append(f"{path.name} cannot be read: {reason}.")
            return empty


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
        Stage -> what its `metrics.json` holds, and for `generate` the number of images and of failed ones;
        a stage that did not end is left out. A single stage's metrics are returned as they are.
    """
    read = _Reader(run_dir)
    if _stage_folders(run_dir) <= NESTED_STAGES:
        return read.object(run_dir / "metrics.json")
    metrics = _stage_metrics(read)
    rows = _read_images(run_dir / "generate", read)
    if rows:
        num_failed = sum(row.get("status", "ok") != "ok" for row in rows)
        metrics["generate"] = {"num_images": len(rows), "num_failed": num_failed}
    return metrics


def has_own_metrics(run_dir: Path) -> bool:
    """Whether a folder's `metrics.json` is a stage's own: not to be written over by all stages' together."""
    return not set(_Reader(run_dir).object(run_dir / "metrics.json")) <= set(STAGES)


def read_log(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Read `log.jsonl`; a line that a stopped run left unfinished is left out.

    Args:
        path: The file; an absent one gives no rows.
        problems: Gets a sentence if a line cannot be read.

    Returns:
        One row an optimizer step: at least `step` (from 1), `epoch` (from 0) and `loss` (None for NaN).
    """
    return _Reader(path.parent, problems).log(path)


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number that a float can hold."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and abs(value) <= sys.float_info.max


def _whole(value: Any) -> int:
    """A count as a whole number; a TypeError where it is none."""
    if not is_number(value) or not 0 <= value <= MAX_COUNT:
        raise TypeError(value)
    return int(value)


def _stage_metrics(read: _Reader) -> dict[str, dict[str, Any]]:
    """Metrics of the stages that ended; a single stage's are told apart by their keys."""
    begun, found = _stage_folders(read.run_dir), {}
    if begun <= NESTED_STAGES:
        metrics = read.object(read.run_dir / "metrics.json")
        told_by = {"linear": "bridge", "scores": "evaluate"}
        told_by |= {"num_epochs": "finetune", "num_train_images": "refine"}  # the first has both keys
        found = {next((stage for key, stage in told_by.items() if key in metrics), "finetune"): metrics}
    found |= {
        stage: read.object(read.run_dir / stage / "metrics.json")
        for stage in MEASURED_STAGES
        if stage in begun
    }
    return {stage: metrics for stage, metrics in found.items() if metrics}


def _read_images(folder: Path, read: _Reader) -> list[dict[str, Any]]:
    path = folder / "images.json"
    rows = read.array(path)
    named = [row for row in rows if isinstance(row, dict) and isinstance(row.get("file"), str)]
    if len(named) < len(rows):
        read.problems.append(f"{path.name}: a row names no file and is left out.")
    return named


def _page_image(row: dict[str, Any], folder: Path, run_dir: Path) -> PageImage:
    settings = []
    if row.get("num_inference_steps"):
        settings.append(f"{row['num_inference_steps']} steps")
    if row.get("guidance_scale"):
        settings.append(f"guidance {row['guidance_scale']}")
    if row.get("width") and row.get("height"):
        settings.append(f"{row['width']} x {row['height']} pixels")
    return PageImage(
        prompt=str(row.get("prompt", "")),
        file=row["file"],
        path=_contained(folder / row["file"], run_dir),
        negative_prompt=str(row.get("negative_prompt") or ""),
        seed=row.get("seed"),
        settings=", ".join(settings),
        variant=str(row.get("variant") or row.get("column") or ""),
        status=str(row.get("status", "ok")),
    )


def _contained(path: Path, run_dir: Path) -> Path | None:
    """Return the file, resolved; None if it lies outside the run."""
    try:
        return inside(path, run_dir).resolve()
    except (UserError, OSError):
        return None
