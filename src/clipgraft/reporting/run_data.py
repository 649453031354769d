"""Files of a run as data (missing: empty; damaged: in `problems`)."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from clipgraft.errors import UserError, one_line
from clipgraft.evaluation.results import Evaluation
from clipgraft.files import MAX_BYTES, inside, parse_json, parse_toml, read_text
from clipgraft.reporting.embedded_images import PageImage
from clipgraft.runs.run import METRICS_NAME, STAGES, Run

T = TypeVar("T")

MEASURED_STAGES = ("finetune", "bridge_before", "bridge", "refine", "distill", "evaluate")
"""Stages that write metrics."""
KEY_OF_STAGE = {
    "linear": "bridge",
    "scores": "evaluate",
    "num_epochs": "finetune",
    "num_train_images": "refine",
}
"""Key of metrics.json -> stage, for runs older than its `stage` key; the first key present counts."""
MAX_COUNT = 2**53
"""Limit of steps and epochs: float64, so also a browser's numbers, is exact up to here."""


@dataclass(frozen=True, slots=True)
class RunData:
    """Contents of a run's folder; an empty value means a missing file."""

    folder: Path
    is_single_stage: bool
    """Whether the folder is one stage's, not a whole run's."""
    begun: frozenset[str]
    """Stages that have a folder."""
    recipe: dict[str, Any]
    recipe_text: str
    environment: dict[str, Any]
    data: dict[str, Any]
    """Counts of the captioned images."""
    log: list[dict[str, Any]]
    """Optimizer steps of fine-tuning."""
    validation: list[dict[str, Any]]
    """Recall, loss and drift on the validation split after each epoch."""
    metrics: dict[str, dict[str, Any]]
    """`metrics.json` by completed stage."""
    evaluation: Evaluation
    resources: dict[str, dict[str, Any]]
    """Seconds and memory by stage; "" = the whole run."""
    image_rows: list[dict[str, Any]]
    """Rows of `images.json`."""
    images: list[PageImage]
    """The same, for the page."""
    evaluation_dir: Path
    top_metrics: dict[str, Any]
    """The folder's own `metrics.json`."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each damaged file."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def finetune(self) -> dict[str, Any]:
        """Metrics of fine-tuning."""
        return self.metrics.get("finetune", {})

    @property
    def bridge(self) -> dict[str, Any]:
        """Metrics of the bridge of CLIP after fine-tuning."""
        return self.metrics.get("bridge", {})

    @property
    def refine(self) -> dict[str, Any]:
        """Metrics of the refinement."""
        return self.metrics.get("refine", {})

    @property
    def distill(self) -> dict[str, Any]:
        """Metrics of the distillation."""
        return self.metrics.get("distill", {})

    @property
    def has_own_metrics(self) -> bool:
        """Whether metrics.json is one stage's, not all stages' together."""
        return self.is_single_stage or not set(self.top_metrics) <= set(STAGES)

    def evaluation_file(self, name: str) -> Path | None:
        """Return a file named by the evaluation; None if outside the run."""
        return _contained(self.evaluation_dir / name, self.folder)

    def all_metrics(self) -> dict[str, dict[str, Any]]:
        """Return all stages' metrics, with numbers of generated and failed images."""
        if not self.image_rows:
            return self.metrics
        num_failed = sum(image.status != "ok" for image in self.images)
        return self.metrics | {"generate": {"num_images": len(self.images), "num_failed": num_failed}}


def read_run(run_dir: Path, *, max_bytes: int = MAX_BYTES) -> RunData:
    """Read the folder of a run or single stage, finished or not.

    Files larger than `max_bytes` are not read.

    Raises:
        MissingFileError: If there is no such folder.
        CheckpointError: If it is not the folder of a run.
    """
    run = Run.open(run_dir)
    read = _Reader(run_dir, max_bytes=max_bytes)
    tuning, generating, evaluating = (run.stage(name).path for name in ("finetune", "generate", "evaluate"))
    data = read.object(run_dir / "data.json") or read.object(tuning / "data.json")
    if "left_out" in data:  # the name before `excluded`
        data["excluded"] = data.pop("left_out")
    rows = read.images(generating)
    return RunData(
        folder=run_dir,
        is_single_stage=run.is_single_stage,
        begun=frozenset(run.stages),
        recipe=read.toml(run_dir / "recipe.toml"),
        recipe_text=read.text(run_dir / "recipe.toml"),
        environment=read.object(run_dir / "environment.json"),
        data=data,
        log=read.log(tuning / "log.jsonl"),
        validation=read.rows(tuning / "evaluations.jsonl"),
        metrics=_stage_metrics(run, read),
        evaluation=read.evaluation(evaluating / "evaluation.json"),
        resources={
            stage: used
            for stage in ("", *run.stages)
            if (used := read.object(run_dir / stage / "resources.json"))
        },
        image_rows=rows,
        images=[_page_image(row, generating, run_dir) for row in rows],
        evaluation_dir=evaluating,
        top_metrics=read.object(run_dir / METRICS_NAME),
        problems=list(dict.fromkeys(read.problems)),
    )


@dataclass
class _Reader:
    """Reader of a run's files; unreadable ones are empty, with a problem."""

    run_dir: Path
    problems: list[str] = field(default_factory=list)
    max_bytes: int = MAX_BYTES

    def text(self, path: Path) -> str:
        """Read a text file within the run."""
        return self._tried(path, lambda text: text, "")

    def toml(self, path: Path) -> dict[str, Any]:
        """Read a TOML file."""
        return self._tried(path, lambda text: parse_toml(text, path.name), {})

    def object(self, path: Path) -> dict[str, Any]:
        """Read a JSON object."""
        return self._tried(path, lambda text: parse_json(text, path.name), {})

    def array(self, path: Path) -> list[Any]:
        """Read a JSON list."""
        return self._tried(path, lambda text: parse_json(text, path.name, list), [])

    def rows(self, path: Path) -> list[dict[str, Any]]:
        """Read JSON lines; empty if any is damaged."""
        return self._tried(path, lambda text: [parse_json(line, path.name) for line in text.splitlines()], [])

    def log(self, path: Path) -> list[dict[str, Any]]:
        """Read `log.jsonl` as `read_log` does."""
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
        """Read an evaluation of this version or an older one."""
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

    def images(self, folder: Path) -> list[dict[str, Any]]:
        """Read the rows of `images.json` that name a file."""
        path = folder / "images.json"
        rows = self.array(path)
        named = [row for row in rows if isinstance(row, dict) and isinstance(row.get("file"), str)]
        if len(named) < len(rows):
            self.problems.append(f"{path.name}: a row names no file and is left out.")
        return named


def read_log(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Read `log.jsonl`, without a last line left unfinished by a stopped run.

    Args:
        path: A missing file has no rows.
        problems: Receives a sentence if a line cannot be read.

    Returns:
        A row per optimizer step with at least `step` (from 1), `epoch` (from 0) and `loss` (None for NaN).
    """
    return _Reader(path.parent, problems).log(path)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number within float's range."""
    is_one = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_one and abs(value) <= sys.float_info.max


def _whole(value: Any) -> int:
    """Return a count as an int; TypeError if it is not one."""
    if not is_number(value) or not 0 <= value <= MAX_COUNT:
        raise TypeError(value)
    return int(value)


def _stage_metrics(run: Run, read: _Reader) -> dict[str, dict[str, Any]]:
    found = {}
    if run.is_single_stage:
        own = read.object(run.path / METRICS_NAME)
        guess = next((stage for key, stage in KEY_OF_STAGE.items() if key in own), "finetune")
        found[str(own.get("stage") or guess)] = own
    for stage in MEASURED_STAGES:
        if stage in run.stages:
            found[stage] = read.object(run.path / stage / METRICS_NAME)
    return {stage: metrics for stage, metrics in found.items() if metrics}


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
    """Return the file, resolved; None if outside the run."""
    try:
        return inside(path, run_dir).resolve()
    except (UserError, OSError):
        return None
