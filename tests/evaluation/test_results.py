"""Evaluation.json: its keys, and rows that name only what there is."""

import json

import pytest
from evaluated import (
    EXAMPLE,
)

from clipgraft.evaluation.figures import METRICS
from clipgraft.evaluation.results import Evaluation


def test_written_evaluation_has_the_keys_of_the_example(record, run_dir):
    written = json.loads((run_dir / "evaluate" / "evaluation.json").read_text())
    assert written.keys() == record.keys() == EXAMPLE.keys()
    for name in ("settings", "data"):
        assert written[name].keys() >= EXAMPLE[name].keys()
    for rows in ("variants", "prompt_sets", "prompts", "figures", "differences", "counts", "images"):
        assert written[rows][0].keys() == EXAMPLE[rows][0].keys(), rows
    assert written["nearest_training_images"][0].keys() == EXAMPLE["nearest_training_images"][0].keys()
    for name, metric in (written["metrics"] | EXAMPLE["metrics"]).items():
        assert metric.keys() == EXAMPLE["metrics"]["cmmd"].keys()
        assert name in METRICS


def test_table_has_names_in_brackets_as_they_are():
    named = json.loads(json.dumps(EXAMPLE).replace('"after"', '"[/after]"'))
    assert "[/after]" in Evaluation(**named).table()


@pytest.mark.parametrize("which", ["written", "example"])
def test_rows_name_known_variants_sets_and_metrics(record, which):
    found = record if which == "written" else EXAMPLE
    columns = {column["name"] for column in found["variants"]}
    sets = {each["name"] for each in found["prompt_sets"]}
    ids = {prompt["id"] for prompt in found["prompts"]}
    assert {row["metric"] for row in found["figures"]} <= found["metrics"].keys()
    assert {row["variant"] for row in found["figures"] + found["counts"] + found["images"]} <= columns
    assert {row["prompt_set"] for row in found["figures"] + found["differences"] + found["counts"]} <= sets
    assert {row["prompt_id"] for row in found["images"]} <= ids
    assert {row[end] for row in found["differences"] for end in ("baseline", "variant")} <= columns
