"""Evaluation on the page: figures, paired differences, ranked prompts, failed images."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from clipgraft.evaluation.results import (
    COMPOSED,
    FIXED,
    STATUSES,
    TEACHER,
    Difference,
    Evaluation,
    Figure,
    Measure,
    Metric,
    ScoredImage,
    Variant,
)
from clipgraft.generation.contact_sheet import FAILURES
from clipgraft.reporting.embedded_images import PageImage, PromptImages, group_images
from clipgraft.reporting.format import NO_NUMBER, Table, count, decimal
from clipgraft.reporting.run_data import RunData

FIRST_METRICS = ("prompt_fidelity", "clip_score_raw", "cmmd", "kid", "fid")
FIRST_BY_PARTS = ("prompt_fidelity",)
"""Metrics also shown for parts of prompt sets (combinations seen in training, and unseen ones)."""
FIRST_DIFFERENCES = (
    "prompt_fidelity",
    "clip_score_raw",
    "clip_r_precision",
    "text_to_image_recall@1",
    "image_to_text_recall@1",
)
NUM_RANKED = 3
"""Number of best and of worst prompts shown."""
NUM_NEAREST = 4
MAX_FAILED = 12
RANKED_BY = ("prompt_fidelity", "clip_score_raw", "clip_score_2.5")
"""Prompts are ranked by the first metric measured; the others break ties."""
RANKED_BYTES = 500_000
NEAREST_BYTES = 200_000
BETTER = {True: "Higher is better.", False: "Lower is better.", None: ""}
UNITS = {"share": "percentage points", "dB": "dB"}
"""Unit of a metric -> unit of its differences."""
UNKNOWN = Metric(title="")
VERDICTS = {
    frozenset({"better"}): "helped",
    frozenset({"worse"}): "did harm",
    frozenset({"better", "worse"}): "helped in part",
    frozenset[str](): "shows no certain effect",
}
"""Certain differences over all prompt sets -> how they read as a sentence."""
JUDGED_BY = {"Images": FIRST_DIFFERENCES[:3], "Retrieval": FIRST_DIFFERENCES[3:]}
"""What is judged -> its metrics; the first one measured decides."""


def metric_tables(evaluation: Evaluation) -> tuple[list[Table], list[Table]]:
    """Return tables (variants x prompt sets) of main and of other metrics."""
    whole = [each.name for each in evaluation.prompt_sets if each.part_of is None]
    parts = [each.name for each in evaluation.prompt_sets if each.part_of is not None]
    composed = [each.name for each in evaluation.prompt_sets if each.part_of == COMPOSED]
    first: list[Table | None] = []
    others: list[Table | None] = []
    for name in evaluation.metrics:
        figures = [row for row in evaluation.figures if row.metric == name]
        is_first = name in FIRST_METRICS and any(row.value is not None for row in figures)
        if is_first and name not in FIRST_BY_PARTS:
            first.append(_metric_table(evaluation, name, figures, whole))
            others.append(_metric_table(evaluation, name, figures, parts))
        elif is_first:
            simple = [each for each in parts if each not in composed]
            first += [_metric_table(evaluation, name, figures, own) for own in (whole + simple, composed)]
        else:
            others.append(_metric_table(evaluation, name, figures, whole + parts))
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
    parents = {each.part_of for each in evaluation.prompt_sets if each.name in shown}
    title = f"{metric.title}: {titles[COMPOSED]}" if parents == {COMPOSED} else metric.title
    return Table(head, rows, _metric_note(metric, list(found.values())), title)


def differences_tables(evaluation: Evaluation) -> tuple[Table | None, Table | None]:
    """Return paired differences by metric.

    The first table has the main metrics over whole prompt sets, simple and composed prompts, between
    consecutive grafts and from the teacher to the last graft; the second has all others. None if there are
    none.
    """
    whole = {each.name for each in evaluation.prompt_sets if each.part_of in (None, FIXED)}
    floors = evaluation.names("floor")
    first: list[Difference] = []
    others: list[Difference] = []
    for row in evaluation.differences:
        is_main = row.metric in FIRST_DIFFERENCES and row.prompt_set in whole
        (first if is_main and row.baseline not in floors else others).append(row)
    first.sort(key=lambda row: FIRST_DIFFERENCES.index(row.metric))
    note = (
        "Both sides have the same prompts and seeds. If the interval "
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
        title = ", ".join(filter(None, (metric.title or row.metric, UNITS.get(metric.unit))))
        groups.setdefault(title, []).append(cells)
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


def fine_tuning_verdict(evaluation: Evaluation) -> list[str]:
    """Say in a sentence each whether fine-tuning helped images and retrieval."""
    whole = {each.name for each in evaluation.prompt_sets if each.part_of is None}
    pairs = [
        row for row in evaluation.difference("before", "after") if row.prompt_set in whole and row.interval
    ]
    sentences = []
    for subject, names in JUDGED_BY.items():
        name = next((name for name in names if any(row.metric == name for row in pairs)), "")
        if name:
            rows = [row for row in pairs if row.metric == name]
            sentences.append(_judge(evaluation, subject, evaluation.metrics.get(name, UNKNOWN), rows))
    return sentences


def _judge(evaluation: Evaluation, subject: str, metric: Metric, rows: Sequence[Difference]) -> str:
    judged = VERDICTS[frozenset(verdict(row, metric) for row in rows) & {"better", "worse"}]
    points, titles = " points" * (metric.unit == "share"), _set_titles(evaluation)
    changes = [
        f"{_number(row.value, metric, signed=True)}{points} (95 % interval "
        f"{_interval(row, metric, signed=True)}) on {titles[row.prompt_set]}"
        for row in rows
    ]
    title = (metric.title or rows[0].metric).lower()
    return f"{subject}: fine-tuning {judged}. {title.capitalize()} changed by {', '.join(changes)}."


def failures_table(evaluation: Evaluation) -> Table | None:
    """Count images by variant and status; None if none were counted."""
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


class Ranking(NamedTuple):
    """Best and worst prompts of the last measured variant."""

    groups: Mapping[str, Sequence[PromptImages]] = MappingProxyType({})
    note: str = ""
    """Ranking method."""


def rank_prompts(run: RunData) -> Ranking:
    """Rank the prompts of the last measured variant by score."""
    evaluation, variant = run.evaluation, last_variant(run.evaluation)
    own = [row for row in evaluation.images if row.variant == variant and row.status == "ok"]
    metric = next((name for name in RANKED_BY if any(name in row.scores for row in own)), "")
    if not metric:
        return Ranking()
    by_prompt: dict[int, list[ScoredImage]] = defaultdict(list)
    for row in own:
        if metric in row.scores:
            by_prompt[row.prompt_id].append(row)
    ranked = sorted(by_prompt, key=lambda prompt_id: _sort_key(prompt_id, by_prompt[prompt_id], metric))
    num = min(NUM_RANKED, len(ranked) // 2) or len(ranked)
    ends = {"Best": ranked[-num:][::-1], "Worst": ranked[:num]}
    groups = {
        title: [_group(run, prompt_id, metric) for prompt_id in ends[title]]
        for title in (ends if len(ranked) > 1 else {"Best": ends["Best"]})
    }
    title = evaluation.metrics[metric].title if metric in evaluation.metrics else metric
    note = (
        f"Of {len(ranked):,} prompts, ranked by {title} of the variant '{variant}'; ties are broken by the "
        "next score, then by prompt number. Below each image is its own score."
    )
    return Ranking(groups, note)


def last_variant(evaluation: Evaluation) -> str:
    """Return the last measured variant, the run's main one, or ""."""
    return (evaluation.names() or [""])[-1]


def failed_images(run: RunData) -> tuple[list[tuple[str, str, str]], int]:
    """Return the first failures (prompt, variant, fault), and their number."""
    texts = _prompts(run.evaluation)
    failed = [
        (texts.get(row.prompt_id, "unknown prompt"), row.variant, FAILURES.get(row.status, row.status))
        for row in run.evaluation.images
        if row.status != "ok"
    ]
    failed += [
        (image.prompt, image.variant, FAILURES.get(image.status, image.status))
        for image in run.images
        if image.status != "ok"
    ]
    return failed[:MAX_FAILED], len(failed)


def nearest_training_images(run: RunData) -> list[PromptImages]:
    """Pair images with their nearest training photographs, nearest first."""
    texts, groups = _prompts(run.evaluation), []
    for row in run.evaluation.nearest_training_images[:NUM_NEAREST]:
        prompt, photograph = texts.get(row.prompt_id, ""), row.training_file
        pair = [
            PageImage(prompt, row.file, run.evaluation_file(row.file), variant="generated"),
            PageImage(
                prompt,
                photograph,
                run.evaluation_file(photograph),
                variant="nearest photograph",
                caption=f"cosine {decimal(row.cosine)}",
            ),
        ]
        groups += group_images(pair, NEAREST_BYTES // NUM_NEAREST)[0]
    return groups


def _prompts(evaluation: Evaluation) -> dict[int, str]:
    return {prompt.id: prompt.prompt for prompt in evaluation.prompts}


def _sort_key(prompt_id: int, rows: Sequence[ScoredImage], metric: str) -> tuple[float, ...]:
    means = []
    for name in (metric, *(name for name in RANKED_BY if name != metric)):
        scores = [row.scores[name] for row in rows if name in row.scores]
        means.append(sum(scores) / len(scores) if scores else 0.0)
    return (*means, -prompt_id)


def _group(run: RunData, prompt_id: int, metric: str) -> PromptImages:
    """Images of a prompt's first seed: teacher, then grafts."""
    evaluation = run.evaluation
    order = {name: index for index, name in enumerate((TEACHER, *evaluation.names()))}
    rows = [row for row in evaluation.images if row.prompt_id == prompt_id and row.variant in order]
    seed = min(row.seed for row in rows)
    prompt = _prompts(evaluation).get(prompt_id, "")
    shown = [
        PageImage(
            prompt,
            row.file,
            run.evaluation_file(row.file),
            seed=row.seed,
            variant=row.variant,
            status=row.status,
            caption=_number(row.scores[metric], evaluation.metrics.get(metric, UNKNOWN))
            if metric in row.scores
            else "",
        )
        for row in sorted(rows, key=lambda row: order[row.variant])
        if row.seed == seed
    ]
    return group_images(shown, RANKED_BYTES // (2 * NUM_RANKED))[0][0]
