"""Evaluations as their files say them, and the settings that these tests share."""

import json
from pathlib import Path

from clipgraft.evaluation import evaluate as evaluating
from clipgraft.evaluation.results import Evaluation

EXAMPLE = json.loads((Path(__file__).parent / "example_evaluation.json").read_text())
BRIDGES = {"before": "bridge_before", "after": "bridge"}
SETTINGS = {
    "evaluate.num_prompts": 4,
    "evaluate.num_inference_steps": 2,
    "evaluate.num_images_per_prompt": 2,
}
OPTIONS = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


def as_json(evaluation: Evaluation) -> dict:
    return json.loads(evaluation.to_json())


def evaluate_run(*args, **options) -> dict:
    return as_json(evaluating.evaluate_run(*args, **options))


def evaluate_grafts(*args, **options) -> dict:
    return as_json(evaluating.evaluate_grafts(*args, **options))


def evaluate_recipe(*args, **options) -> dict:
    return as_json(evaluating.evaluate_recipe(*args, **options))


def drawn_rows(folder: Path) -> int:
    logs = folder.glob("images-*.jsonl")
    return sum(bool(line.strip()) for log in logs for line in log.read_text().splitlines())


def without_time(record: dict) -> dict:
    return {key: value for key, value in record.items() if key not in ("environment", "seconds")}
