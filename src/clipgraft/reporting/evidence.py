"""What the page says of `evaluation.json`: figures between floors and ceilings, differences, failures."""

from typing import Any

from clipgraft.reporting.format import NO_NUMBER, Table, count, short_name, sub_dict, sub_rows
from clipgraft.reporting.run_data import Run, is_number

FIRST_METRICS = ("prompt_fidelity", "clip_score_raw", "cmmd", "kid", "fid")
FIRST_BY_PARTS = ("prompt_fidelity",)
"""Of these, parts of prompt sets stand beside the whole: combinations that train shows, and never shows."""
FIRST_DIFFERENCES = (
    "prompt_fidelity",
    "clip_score_raw",
    "picture_to_caption_recall@1",
    "text_to_image_recall@1",
    "image_to_text_recall@1",
)
ROLES = {"measured": "", "floor": "floor", "ceiling": "ceiling"}
STATUSES = ("ok", "failed_nan", "failed_black", "blocked")
UNITS = {"share": 100.0}
"""Units that are shown as percentages."""


def evidence_notes(run: Run) -> list[str]:
    """Sentences that a reader of the figures must see first, as the evaluation gives them."""
    notes = run.evaluation.get("notes")
    return [str(note) for note in notes] if isinstance(notes, list) else []


def evidence_settings(evaluation: dict[str, Any]) -> str:
    """Say what was drawn and scored, and how."""
    settings, data = sub_dict(evaluation, "settings"), sub_dict(evaluation, "data")
    if not settings:
        return ""
    scorer, extractor = sub_dict(settings, "scorer"), sub_dict(settings, "feature_extractor")
    parts = {
        "base": sub_dict(settings, "base").get("name"),
        "pictures drawn": count(len(sub_rows(evaluation, "pictures"))),
        "prompts": settings.get("num_prompts"),
        "pictures a prompt": settings.get("num_images_per_prompt"),
        "seed": settings.get("seed"),
        "steps": settings.get("num_inference_steps"),
        "guidance": settings.get("guidance_scale"),
        "scheduler": settings.get("scheduler"),
        "size": f"{settings.get('width')} x {settings.get('height')}" if settings.get("width") else None,
        "precision": settings.get("dtype"),
        "scorer": scorer.get("name"),
        "features": extractor.get("name"),
        "resizing": settings.get("resize_filter"),
        "data": f"{short_name(data['source'])}, {data.get('split')} split" if data.get("source") else None,
    }
    return ", ".join(f"{name}: {value}" for name, value in parts.items() if value is not None) + "."


def metric_tables(run: Run) -> tuple[list[Table], list[Table]]:
    """A table a metric: its columns between floors and ceilings down, its prompt sets across.

    Returns:
        The metrics to see first, and the others.
    """
    evaluation = run.evaluation
    figures = {
        (row.get("metric"), row.get("prompt_set"), row.get("column")): row
        for row in sub_rows(evaluation, "figures")
    }
    first: list[Table | None] = []
    others: list[Table | None] = []
    for name, metric in sub_dict(evaluation, "metrics").items():
        if not isinstance(metric, dict):
            continue
        own = {key[1:]: row for key, row in figures.items() if key[0] == name}
        is_first = name in FIRST_METRICS and any(is_number(row.get("value")) for row in own.values())
        whole = [row for row in _all_sets(run) if row.get("part_of") is None]
        parts = [row for row in _all_sets(run) if row.get("part_of") is not None]
        if is_first and name not in FIRST_BY_PARTS:
            first.append(_metric_table(run, name, metric, own, whole))
            others.append(_metric_table(run, name, metric, own, parts))
        else:
            (first if is_first else others).append(_metric_table(run, name, metric, own, whole + parts))
    return [table for table in first if table], [table for table in others if table]


def _metric_table(
    run: Run,
    name: str,
    metric: dict[str, Any],
    figures: dict[tuple[Any, Any], dict[str, Any]],
    prompt_sets: list[dict[str, Any]],
) -> Table | None:
    """Lay out a metric's figures, by prompt set and column, over those of the sets that have one."""
    sets = [row for row in prompt_sets if any(key[0] == row["name"] for key in figures)]
    shown = [row["name"] for row in sets]
    rows = [
        (_column_title(column), *(figure_text(found, metric) for found in cells))
        for column in sub_rows(run.evaluation, "columns")
        if any(cells := [figures.get((each, column.get("name")), {}) for each in shown])
    ]
    if not rows:
        return None
    head = ("", *(str(row.get("title", row["name"])) for row in sets))
    own = [row for key, row in figures.items() if key[0] in shown]
    return Table(head, rows, _metric_note(metric, own), str(metric.get("title", name)))


def differences_tables(run: Run) -> tuple[Table | None, Table | None]:
    """Paired differences with their intervals, by metric.

    Returns:
        What a reader asks first: the main metrics over whole prompt sets, from each graft to the next and
        from the teacher to the last. Then all others. None where there are none.
    """
    whole = {row["name"] for row in _all_sets(run) if row.get("part_of") is None}
    floors = {row.get("name") for row in sub_rows(run.evaluation, "columns") if row.get("role") == "floor"}
    first: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for row in sub_rows(run.evaluation, "differences"):
        is_first = (
            row.get("metric") in FIRST_DIFFERENCES
            and row.get("prompt_set") in whole
            and row.get("from") not in floors
        )
        (first if is_first else others).append(row)
    first.sort(key=lambda row: FIRST_DIFFERENCES.index(row["metric"]))
    note = (
        "The same prompts and seeds on both sides; shares in percentage points. An interval that holds 0 "
        "shows no difference. Intervals are of 95 % over prompts: with other prompts of the same kind. They "
        "say nothing about another training seed."
    )
    return _differences_table(run, first, note), _differences_table(run, others, "")


def _differences_table(run: Run, differences: list[dict[str, Any]], note: str) -> Table | None:
    metrics = sub_dict(run.evaluation, "metrics")
    titles = {row["name"]: str(row.get("title", row["name"])) for row in _all_sets(run)}
    groups: dict[str, list[tuple[str, ...]]] = {}
    for row in differences:
        metric = sub_dict(metrics, str(row.get("metric")))
        where = titles.get(str(row.get("prompt_set")), str(row.get("prompt_set")))
        cells = (
            f"{where}, {row.get('from')} → {row.get('to')}",
            _number(row.get("value"), metric, signed=True),
            _interval(row.get("interval"), metric, signed=True, otherwise=str(row.get("note") or "-")),
            _up_and_down(row),
            verdict(row, metric),
        )
        groups.setdefault(str(metric.get("title", row.get("metric"))), []).append(cells)
    rows = [cells for title, group in groups.items() for cells in ((title,), *group)]
    return Table(("", "difference", "95 % interval", "better, worse", ""), rows, note) if rows else None


def _up_and_down(row: dict[str, Any]) -> str:
    better, worse = row.get("num_better"), row.get("num_worse")
    if not (is_number(better) and is_number(worse) and is_number(row.get("num"))):
        return ""
    return f"{better:,}, {worse:,} of {row['num']:,}"


def verdict(row: dict[str, Any], metric: dict[str, Any]) -> str:
    """Say if a paired difference is one: `better`, `worse`, `higher`, `lower`, `no difference shown`."""
    bounds = row.get("interval")
    if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))):
        return "no difference shown" if row.get("value") == 0 else ""
    if bounds[0] <= 0 <= bounds[1]:
        return "no difference shown"
    is_up = bounds[0] > 0
    if metric.get("higher_is_better") is None:
        return "higher" if is_up else "lower"
    return "better" if is_up == metric["higher_is_better"] else "worse"


def failures_table(run: Run) -> Table | None:
    """Pictures of each column, counted by status; None where nothing was counted."""
    whole = {row["name"] for row in _all_sets(run) if row.get("part_of") is None}
    rows: list[tuple[str, ...]] = []
    for column in sub_rows(run.evaluation, "columns"):
        counts = [
            row
            for row in sub_rows(run.evaluation, "counts")
            if row.get("column") == column.get("name") and row.get("prompt_set") in whole
        ]
        if counts:
            keys = ("num_pictures", *STATUSES)
            sums = [sum(row[key] for row in counts if is_number(row.get(key))) for key in keys]
            rows.append((_column_title(column), *map(count, sums)))
    if not rows:
        return None
    head = ("", "pictures", "ok", "no numbers", "all black", "blocked")
    return Table(
        head, rows, "Only pictures that are ok are scored; the others are counted here and nowhere else."
    )


def _all_sets(run: Run) -> list[dict[str, Any]]:
    return [row for row in sub_rows(run.evaluation, "prompt_sets") if isinstance(row.get("name"), str)]


def _column_title(column: dict[str, Any]) -> str:
    role = ROLES.get(str(column.get("role")), "")
    title = str(column.get("title") or column.get("name"))
    return f"{title} ({role})" if role else title


def figure_text(row: dict[str, Any], metric: dict[str, Any]) -> str:
    """Write a figure with its interval in brackets."""
    if not row:
        return ""
    text = _number(row.get("value"), metric)
    bounds = _interval(row.get("interval"), metric)
    return f"{text} [{bounds}]" if bounds != "-" else text


def _metric_note(metric: dict[str, Any], figures: list[dict[str, Any]]) -> str:
    parts = [str(metric.get("what") or "")]
    better = {True: "Higher is better.", False: "Lower is better.", None: ""}
    parts.append(better.get(metric.get("higher_is_better"), ""))
    if metric.get("extractor"):
        parts.append(f"Read by: {metric['extractor']}.")
    numbers = sorted({row["num"] for row in figures if is_number(row.get("num"))})
    if numbers:
        parts.append(f"N = {' or '.join(map(count, numbers))}.")
    parts += [
        f"{note}."
        for note in dict.fromkeys(str(row.get("note") or "").rstrip(".") for row in figures)
        if note
    ]
    return " ".join(part for part in parts if part)


def _number(value: Any, metric: dict[str, Any], *, signed: bool = False) -> str:
    if not is_number(value):
        return NO_NUMBER
    value = value * UNITS.get(str(metric.get("unit")), 1.0)
    digits = 1 if metric.get("unit") in ("share", "dB") else 3
    if signed:
        return f"{value:+.{digits}f}"
    return f"{value:.{digits}f}{' %' if metric.get('unit') == 'share' else ''}"


def _interval(bounds: Any, metric: dict[str, Any], *, signed: bool = False, otherwise: str = "-") -> str:
    if not (isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))):
        return otherwise
    return " to ".join(_number(bound, metric, signed=signed).removesuffix(" %") for bound in bounds)
