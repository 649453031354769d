"""What is told of an evaluation in short: the tables that are printed, and `metrics.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from clipgraft.console import print_line
from clipgraft.evaluation.prompt_sets import PLAIN
from clipgraft.evaluation.variants import REAL
from clipgraft.flatland import ATTRIBUTES
from clipgraft.reporting.evidence import evidence_settings

HEADLINES = {
    "prompt_fidelity": "prompt fidelity",
    "clip_score_raw": "CLIPScore, raw",
    "picture_to_caption_recall@1": "finds its caption",
    "same_seed_cosine": "as the teacher's",
    "text_to_image_recall@1": "text to image recall@1",
    "image_to_text_recall@1": "image to text recall@1",
}
"""Metric -> its heading."""


def short_metrics(record: Mapping[str, Any]) -> dict[str, Any]:
    """Prompt fidelity of flatland's prompts alone: what `metrics.json` holds."""
    plain = {
        (row["metric"], row["prompt_set"], row["column"]): row
        for row in record["figures"]
        if row["metric"].startswith("prompt_fidelity")
    }

    def value(metric: str, prompt_set: str, column: str) -> float | None:
        return plain.get((metric, prompt_set, column), {}).get("value")

    scores = {
        column: {
            "mean": row["value"],
            "interval": row["interval"],
            "all_at_once": value("prompt_fidelity_all_at_once", PLAIN, column),
            "by_attribute": {
                name: found
                for name in ATTRIBUTES
                if (found := value(f"prompt_fidelity_{name}", PLAIN, column)) is not None
            },
            "held_out": value("prompt_fidelity", "plain/held_out_combinations", column),
            "seen": value("prompt_fidelity", "plain/seen_combinations", column),
            "num_prompts": row["num"],
        }
        for (metric, prompt_set, column), row in plain.items()
        if metric == "prompt_fidelity" and prompt_set == PLAIN
    }
    accuracy = scores.get(REAL, {}).get("by_attribute", {})
    return {"scores": scores, "probe_accuracy": accuracy, "settings": record["settings"]}


def print_record(record: Mapping[str, Any], folder: Path) -> None:
    """Print a table a prompt set, the notes, how it was drawn and scored, and where the rest is."""
    console = Console()
    figures = {(row["metric"], row["prompt_set"], row["column"]): row for row in record["figures"]}
    for each in record["prompt_sets"]:
        shown = [metric for metric in HEADLINES if any(key[:2] == (metric, each["name"]) for key in figures)]
        if each["part_of"] or not shown:
            continue
        heads = [HEADLINES[metric] for metric in shown]
        title = f"{each['title']} ({each['num_prompts']})"
        table = Table("", *heads, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column in record["columns"]:
            cells = [figures.get((metric, each["name"], column["name"])) for metric in shown]
            if any(cells):
                table.add_row(column["name"], *map(_cell, cells))
        for pair, by_metric in _differences(record, each["name"]).items():
            table.add_row(f"{pair[1]} - {pair[0]}", *(_cell(by_metric.get(metric), "+") for metric in shown))
        console.print(table)
    for note in record["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
    print_line(f"drawn and scored: {evidence_settings(dict(record))}")
    print_line(f"evaluation: {folder / 'evaluation.json'}")


def _differences(record: Mapping[str, Any], prompt_set: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Pair of columns -> metric -> its paired difference."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in record["differences"]:
        if row["prompt_set"] == prompt_set:
            found.setdefault((row["from"], row["to"]), {})[row["metric"]] = row
    return found


def _cell(row: Mapping[str, Any] | None, sign: str = "") -> str:
    if row is None or row["value"] is None:
        return "-"
    if not row["interval"]:
        return f"{row['value']:{sign}.3f}" + (f"\n[dim]{row['note']}[/dim]" if row["note"] else "")
    low, high = row["interval"]
    return f"{row['value']:{sign}.3f}\n[dim]{low:{sign}.2f} to {high:{sign}.2f}[/dim]"
