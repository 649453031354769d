"""Tables of an evaluation: figures between floors and ceilings, paired differences, failed images."""

from collections.abc import Sequence

from clipgraft.evaluation.results import STATUSES, Difference, Evaluation, Figure, Measure, Metric, Variant
from clipgraft.reporting.format import NO_NUMBER, Table, count

FIRST_METRICS = ("prompt_fidelity", "clip_score_raw", "cmmd", "kid", "fid")
FIRST_BY_PARTS = ("prompt_fidelity",)
"""Metrics shown for parts of prompt sets too: combinations present in training, and absent from it."""
FIRST_DIFFERENCES = (
    "prompt_fidelity",
    "clip_score_raw",
    "clip_r_precision",
    "text_to_image_recall@1",
    "image_to_text_recall@1",
)
BETTER = {True: "Higher is better.", False: "Lower is better.", None: ""}
UNKNOWN = Metric(title="")


def metric_tables(evaluation: Evaluation) -> tuple[list[Table], list[Table]]:
    """Return a table per metric, variants down and prompt sets across: the main metrics, and the others."""
    whole = [each.name for each in evaluation.prompt_sets if each.part_of is None]
    parts = [each.name for each in evaluation.prompt_sets if each.part_of is not None]
    first: list[Table | None] = []
    others: list[Table | None] = []
    for name in evaluation.metrics:
        figures = [row for row in evaluation.figures if row.metric == name]
        is_first = name in FIRST_METRICS and any(row.value is not None for row in figures)
        if is_first and name not in FIRST_BY_PARTS:
            first.append(_metric_table(evaluation, name, figures, whole))
            others.append(_metric_table(evaluation, name, figures, parts))
        else:
            (first if is_first else others).append(_metric_table(evaluation, name, figures, whole + parts))
    return [table for table in first if table], [table for table in others if table]


def _metric_table(
    evaluation: Evaluation, name: str, figures: Sequence[Figure], prompt_sets: Sequence[str]
) -> Table | None:
    metric, titles = evaluation.metrics[name], _set_titles(evaluation)
    found = {(row.prompt_set, row.variant): row for row in figures if row.prompt_set in prompt_sets}
    shown = [each for each in prompt_sets if any(key[0] == each for key in found)]
    rows = [
        (_variant_title(variant), *(figure_text(cell, metric) for cell in cells))
        for variant in evaluation.variants
        if any(cells := [found.get((each, variant.name)) for each in shown])
    ]
    if not rows:
        return None
    head = ("", *(titles[each] for each in shown))
    return Table(head, rows, _metric_note(metric, list(found.values())), metric.title)


def differences_tables(evaluation: Evaluation) -> tuple[Table | None, Table | None]:
    """Return paired differences by metric.

    First the main metrics over whole prompt sets, from each graft to the next and from the teacher to the
    last; then all others. None where there are none.
    """
    whole = {each.name for each in evaluation.prompt_sets if each.part_of is None}
    floors = evaluation.names("floor")
    first: list[Difference] = []
    others: list[Difference] = []
    for row in evaluation.differences:
        is_main = row.metric in FIRST_DIFFERENCES and row.prompt_set in whole
        (first if is_main and row.baseline not in floors else others).append(row)
    first.sort(key=lambda row: FIRST_DIFFERENCES.index(row.metric))
    note = (
        "Both sides have the same prompts and seeds; shares are in percentage points. If the interval "
        "contains 0, no difference is shown. Intervals are 95 % over prompts: they cover other prompts of "
        "the same kind, not another training seed."
    )
    return _differences_table(evaluation, first, note), _differences_table(evaluation, others, "")


def _differences_table(evaluation: Evaluation, differences: Sequence[Difference], note: str) -> Table | None:
    titles, groups = _set_titles(evaluation), dict[str, list[tuple[str, ...]]]()
    for row in differences:
        metric = evaluation.metrics.get(row.metric, UNKNOWN)
        cells = (
            f"{titles.get(row.prompt_set, row.prompt_set)}, {row.baseline} → {row.variant}",
            _number(row.value, metric, signed=True),
            _interval(row, metric, signed=True) or row.note or "-",
            _up_and_down(row),
            verdict(row, metric),
        )
        groups.setdefault(metric.title or row.metric, []).append(cells)
    rows = [cells for title, group in groups.items() for cells in ((title,), *group)]
    return Table(("", "difference", "95 % interval", "better, worse", ""), rows, note) if rows else None


def _up_and_down(row: Difference) -> str:
    if row.num_better is None or row.num_worse is None:
        return ""
    return f"{row.num_better:,}, {row.num_worse:,} of {row.num:,}"


def verdict(row: Difference, metric: Metric) -> str:
    """Judge a paired difference: `better`, `worse`, `higher`, `lower` or `no difference shown`."""
    if not row.interval:
        return "no difference shown" if row.value == 0 else ""
    low, high = row.interval
    if low <= 0 <= high:
        return "no difference shown"
    if metric.higher_is_better is None:
        return "higher" if low > 0 else "lower"
    return "better" if (low > 0) == metric.higher_is_better else "worse"


def failures_table(evaluation: Evaluation) -> Table | None:
    """Return images of each variant, counted by status; None if nothing was counted."""
    whole = {each.name for each in evaluation.prompt_sets if each.part_of is None}
    rows: list[tuple[str, ...]] = []
    for variant in evaluation.variants:
        counts = [row for row in evaluation.counts if row.variant == variant.name and row.prompt_set in whole]
        if counts:
            sums = [sum(getattr(row, key) for row in counts) for key in ("num_images", *STATUSES)]
            rows.append((_variant_title(variant), *map(count, sums)))
    head = ("", "images", "ok", "NaN", "all black", "blocked")
    return Table(head, rows, "Only images that are ok are scored.") if rows else None


def _set_titles(evaluation: Evaluation) -> dict[str, str]:
    return {each.name: each.title or each.name for each in evaluation.prompt_sets}


def _variant_title(variant: Variant) -> str:
    title = variant.title or variant.name
    return title if variant.role == "measured" else f"{title} ({variant.role})"


def figure_text(figure: Measure | None, metric: Metric) -> str:
    """Write a figure with its interval in brackets."""
    if figure is None:
        return ""
    text, bounds = _number(figure.value, metric), _interval(figure, metric)
    return f"{text} [{bounds}]" if bounds else text


def _metric_note(metric: Metric, figures: Sequence[Figure]) -> str:
    parts = [metric.what, BETTER[metric.higher_is_better]]
    if metric.extractor:
        parts.append(f"Measured with {metric.extractor}.")
    parts.append(f"N = {' or '.join(map(count, sorted({row.num for row in figures})))}.")
    parts += [f"{note}." for note in dict.fromkeys(row.note.rstrip(".") for row in figures) if note]
    return " ".join(part for part in parts if part)


def _number(value: float | None, metric: Metric, *, signed: bool = False) -> str:
    if value is None:
        return NO_NUMBER
    is_share = metric.unit == "share"
    digits = 1 if metric.unit in ("share", "dB") else 3
    number = f"{100 * value if is_share else value:{'+' if signed else ''}.{digits}f}"
    return number + (" %" if is_share and not signed else "")


def _interval(row: Measure, metric: Metric, *, signed: bool = False) -> str:
    bounds = row.interval or ()
    return " to ".join(_number(bound, metric, signed=signed).removesuffix(" %") for bound in bounds)
