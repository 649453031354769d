"""Evaluation.json: its keys, and rows that name only what there is."""

import io
import json

import pytest
from evaluated import (
    EXAMPLE,
)
from rich.console import Console

from clipgraft.evaluation.figures import METRICS, headline_tables
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


def test_table_has_shares_in_percent_and_whole_names():
    long = "a_variant_with_quite_a_long_name"
    named = json.loads(json.dumps(EXAMPLE).replace('"after"', f'"{long}"'))
    figure = {"metric": "clip_r_precision", "prompt_set": "plain", "num": 8, "interval": [0.11, 0.2149]}
    named["figures"] = [{**figure, "variant": long, "value": 0.125}]
    named["differences"] = [{**figure, "baseline": "before", "variant": long, "value": -0.1}]
    (table,) = headline_tables(Evaluation(**named))
    console = Console(file=io.StringIO(), width=60)
    console.print(table)
    cells = " ".join(console.file.getvalue().split())
    assert f"{long} 12.5 % 11.0 to 21.5" in cells
    assert "-10.0 points" in cells
    assert "+11.0 to +21.5" in cells


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
