"""Headline metrics of an evaluation as console tables."""

from collections.abc import Iterator

from rich import box
from rich.table import Table

from clipgraft.evaluation.results import Evaluation, Measure, PromptSet

HEADLINES = {
    "prompt_fidelity": "prompt fidelity",
    "clip_score_raw": "CLIPScore, raw",
    "clip_r_precision": "R-precision",
    "same_seed_cosine": "cosine to teacher",
    "text_to_image_recall@1": "text to image recall@1",
    "image_to_text_recall@1": "image to text recall@1",
}
"""Metric -> its heading."""


def headline_tables(evaluation: Evaluation, prompt_set: str = "") -> Iterator[Table]:
    """Yield a table per whole prompt set, or that of one set alone: variants down, metrics across."""
    for each in evaluation.prompt_sets:
        if each.name == prompt_set or not (prompt_set or each.part_of):
            table = _table(evaluation, each)
            if table.row_count:
                yield table


def _table(evaluation: Evaluation, prompt_set: PromptSet) -> Table:
    rows: dict[str, dict[str, Measure]] = {variant.name: {} for variant in evaluation.variants}
    for figure in evaluation.figures:
        if figure.prompt_set == prompt_set.name and figure.metric in HEADLINES:
            rows.setdefault(figure.variant, {})[figure.metric] = figure
    for row in evaluation.differences:
        if row.prompt_set == prompt_set.name and row.metric in HEADLINES:
            rows.setdefault(f"{row.variant} - {row.baseline}", {})[row.metric] = row
    shown = [metric for metric in HEADLINES if any(metric in row for row in rows.values())]
    title = f"{prompt_set.title} ({prompt_set.num_prompts})"
    heads = [HEADLINES[metric] for metric in shown]
    table = Table("", *heads, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = {variant.name for variant in evaluation.variants}
    for name, own in rows.items():
        if own:
            table.add_row(name, *(_cell(own.get(metric), "" if name in names else "+") for metric in shown))
    return table


def _cell(measure: Measure | None, sign: str) -> str:
    if measure is None or measure.value is None:
        return "-"
    text = f"{measure.value:{sign}.3f}"
    if not measure.interval:
        return text + (f"\n[dim]{measure.note}[/dim]" if measure.note else "")
    low, high = measure.interval
    return f"{text}\n[dim]{low:{sign}.2f} to {high:{sign}.2f}[/dim]"
