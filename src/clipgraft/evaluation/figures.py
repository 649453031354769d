"""Metrics by name; figures, paired differences, their intervals and tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from clipgraft.evaluation.metrics.intervals import NUM_GROUPS, bootstrap_interval, jackknife_interval
from clipgraft.evaluation.metrics.shares import paired_share_interval, share_interval
from clipgraft.evaluation.results import Difference, Evaluation, Figure, Measure, Metric, PromptSet
from clipgraft.flatland import ATTRIBUTES

COSINE, SHARE = "cosine", "share"
"""Units; shares count hits, lie in [0, 1] and have intervals of their own."""
NO_SPREAD = "every prompt has the same score"

Interval = Callable[[np.ndarray, np.ndarray | None], list[float] | None]
METHODS: dict[Interval, str] = {
    bootstrap_interval: "bca",
    share_interval: "agresti_coull",
    paired_share_interval: "tango",
}
DIRECTIONS = {"text_to_image": "Text to image", "image_to_text": "Image to text"}
UP, DOWN = True, False
"""Whether higher is better."""


def _metric(title: str, what: str, better: bool | None, unit: str = "") -> Metric:
    return Metric(title=title, what=what, unit=unit, higher_is_better=better)


def _distance(title: str, what: str) -> Metric:
    return Metric(title=title, what=what, higher_is_better=DOWN, kind="distribution")


def _fidelity(name: str, what: str) -> Metric:
    return _metric(f"Prompt fidelity{name}", what, UP, SHARE)


SAME_SEED = "Same prompt and seed"
STATE_ERROR = "Root of the squared distance to the teacher's hidden states over their power; 0 = equal."
METRICS = {
    "prompt_fidelity": _fidelity(
        "", "Share of attributes named by a prompt that the probe finds in the image."
    ),
    "prompt_fidelity_all_at_once": _fidelity(", all at once", "Share of images that show all of these."),
    **{
        f"prompt_fidelity_{name}": _fidelity(
            f": {title}", f"Share of images that show the {title} of their prompt."
        )
        for name in ATTRIBUTES
        for title in [name.replace("_", " ")]
    },
    "clip_score_raw": _metric(
        "CLIPScore, raw cosine", "Cosine of image and prompt to the scorer.", UP, COSINE
    ),
    "clip_score_2.5": _metric(
        "CLIPScore, 2.5 max(cosine, 0)", "As in Hessel et al. 2021, without its prefix.", UP
    ),
    "clip_r_precision": _metric(
        "CLIP R-precision",
        "Share of images whose own prompt is, to the scorer, the nearest of its set.",
        UP,
        SHARE,
    ),
    "same_seed_psnr": _metric(
        "PSNR to the teacher's image", f"{SAME_SEED}; at most 100, if equal.", UP, "dB"
    ),
    "same_seed_ssim": _metric("SSIM to the teacher's image", f"{SAME_SEED}.", UP),
    "same_seed_cosine": _metric("Cosine to the teacher's image", f"{SAME_SEED}; to the scorer.", UP, COSINE),
    **{
        f"state_error_{name}": _metric(f"Hidden state error: {name}", STATE_ERROR, DOWN)
        for name in ("words", "eos", "padding")
    },
    "seed_diversity": _metric(
        "Diversity between seeds", "Mean of 1 - cosine over pairs of a prompt's images.", None
    ),
    "nearest_training_cosine": _metric(
        "Cosine to the nearest training image",
        "High for copies; compare with held-out photographs.",
        None,
        COSINE,
    ),
    "cmmd": _distance("CMMD", "1000 x squared MMD of the scorer's embeds, Gaussian kernel with sigma 10."),
    "kid": _distance("KID", "Squared MMD of features, cubic kernel, unbiased."),
    "fid": _distance("FID", "Frechet distance between features as Gaussians; biased by N."),
    **{
        f"{direction}_recall@{k}": _metric(
            f"{title} recall@{k}",
            f"Share of test queries with a correct answer among the first {k}.",
            UP,
            SHARE,
        )
        for direction, title in DIRECTIONS.items()
        for k in (1, 5, 10)
    },
    **{
        f"{direction}_map": _metric(
            f"{title} mAP", "Mean over queries of the precision at each correct answer.", UP
        )
        for direction, title in DIRECTIONS.items()
    },
    **{
        f"{direction}_median_rank": _metric(
            f"{title} median rank", "Of the first correct answer; 1 = best.", DOWN
        )
        for direction, title in DIRECTIONS.items()
    },
}
HEADLINES = {
    "prompt_fidelity": "prompt fidelity",
    "clip_score_raw": "CLIPScore, raw",
    "clip_r_precision": "R-precision",
    "same_seed_cosine": "cosine to teacher",
    "text_to_image_recall@1": "text to image recall@1",
    "image_to_text_recall@1": "image to text recall@1",
}
"""Metric -> heading in console tables."""


def mean_figure(
    metric: str, prompt_set: str, variant: str, values: np.ndarray, weights: np.ndarray | None = None
) -> Figure:
    """Return the figure of a mean over prompts.

    Args:
        metric: One of METRICS.
        values: (P, K): scores of each prompt's images, NaN where missing.
        weights: (P,), for prompts of unequal weight.
    """
    per_prompt = prompt_means(values)
    has_score = np.isfinite(per_prompt)
    kept = None if weights is None else weights[has_score]
    interval = share_interval if METRICS[metric].unit == SHARE else bootstrap_interval
    measure = _measure(per_prompt[has_score], kept, interval)
    return Figure(metric=metric, prompt_set=prompt_set, variant=variant, **measure)


def paired_difference(
    metric: str,
    prompt_set: str,
    pair: tuple[str, str],
    values: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray | None = None,
) -> Difference:
    """Return the mean difference over the prompts and seeds of both variants.

    Args:
        metric: One of METRICS.
        pair: Names of baseline and variant; the difference is variant minus baseline.
        values: (P, K) of both.
        weights: (P,), for prompts of unequal weight.
    """
    per_prompt = prompt_means(values[1] - values[0])
    has_both = np.isfinite(per_prompt)
    differences = per_prompt[has_both]
    kept = None if weights is None else weights[has_both]
    num_up, num_down = int((differences > 0).sum()), int((differences < 0).sum())
    won, lost = {True: (num_up, num_down), False: (num_down, num_up), None: (None, None)}[
        METRICS[metric].higher_is_better
    ]
    interval = paired_share_interval if METRICS[metric].unit == SHARE else bootstrap_interval
    return Difference(
        metric=metric,
        prompt_set=prompt_set,
        baseline=pair[0],
        variant=pair[1],
        num_better=won,
        num_worse=lost,
        **_measure(differences, kept, interval),
    )


def distances(
    metric: str,
    prompt_set: str,
    features: Mapping[str, Sequence[Tensor]],
    distance: Callable[[Sequence[Tensor]], float],
    pairs: Sequence[tuple[str, str]],
    notes: Mapping[str, str],
) -> tuple[list[Figure], list[Difference]]:
    """Return figures and differences of a distribution distance, with jackknife intervals.

    Args:
        metric: One of METRICS.
        features: Variant -> features (k, D) of each prompt's images; k may be 0.
        distance: Such features -> their distance from the reference.
        pairs: Baselines and variants; prompts with images of both count.
        notes: Variant -> note to its figure.

    Returns:
        Figures, whose `num` counts images, and differences, whose `num` counts prompts.
    """
    there = {name: {row for row, one in enumerate(own) if len(one)} for name, own in features.items()}

    def at(variant: str, rows: np.ndarray) -> float:
        return distance([features[variant][row] for row in rows])

    def measure(statistic: Callable[[np.ndarray], float], prompts: set[int]) -> dict[str, Any]:
        places = np.array(sorted(prompts))
        interval = jackknife_interval(lambda rows: statistic(places[rows]), len(places))
        return {
            "value": statistic(places),
            "interval": interval,
            "interval_method": "jackknife" if interval else None,
            "note": "" if interval else _why_no_interval(places, 2 * NUM_GROUPS),
        }

    figures = []
    for variant, own in features.items():
        found = measure(lambda rows, variant=variant: at(variant, rows), there[variant])  # type: ignore[misc]
        note = "; ".join(filter(None, [notes.get(variant, ""), found["note"]]))
        found |= {"num": sum(map(len, own)), "note": note}
        figures.append(Figure(metric=metric, prompt_set=prompt_set, variant=variant, **found))
    differences = [
        Difference(
            metric=metric,
            prompt_set=prompt_set,
            baseline=first,
            variant=second,
            num=len(both),
            **measure(lambda rows, a=first, b=second: at(b, rows) - at(a, rows), both),  # type: ignore[misc]
        )
        for first, second in pairs
        if first in features and second in features and len(both := there[first] & there[second]) > 1
    ]
    return figures, differences


def prompt_means(values: np.ndarray) -> np.ndarray:
    """Return each row's mean (P,) over finite values, else NaN."""
    is_finite = np.isfinite(values)
    total, count = np.where(is_finite, values, 0).sum(1), is_finite.sum(1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _measure(values: np.ndarray, weights: np.ndarray | None, take: Interval) -> dict[str, Any]:
    interval = take(values, weights)
    return {
        "value": float(np.average(values, weights=weights)) if len(values) else None,
        "interval": interval,
        "interval_method": METHODS[take] if interval else None,
        "num": len(values),
        "note": "" if interval else _why_no_interval(values),
    }


def _why_no_interval(values: np.ndarray, least: int = 2) -> str:
    if not len(values):
        return "nothing to measure"
    return f"no interval: {NO_SPREAD if len(values) >= least else f'fewer than {least} prompts'}"


def headline_tables(evaluation: Evaluation, prompt_set: str = "") -> Iterator[Table]:
    """Yield a table (variants x metrics) per whole or named prompt set."""
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
    title = f"{prompt_set.title}, N = {prompt_set.num_prompts:,}"
    heads = [HEADLINES[metric] for metric in shown]
    table = Table("", *heads, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = {variant.name for variant in evaluation.variants}
    table.columns[0].min_width = max(map(len, names), default=0)  # of 80 columns too: no name is cut
    for name, own in rows.items():
        if own:
            table.add_row(name, *(_cell(own.get(metric), metric, name not in names) for metric in shown))
    return table


def _cell(measure: Measure | None, metric: str, is_difference: bool) -> Text:
    """Return a value over its interval; shares in percent or points."""
    if measure is None or measure.value is None:
        return Text("-")
    is_share, sign, below = METRICS[metric].unit == SHARE, "+" if is_difference else "", measure.note
    scale, unit = (100, " points" if is_difference else " %") if is_share else (1, "")
    if measure.interval:
        bounds = (f"{scale * bound:{sign}.{1 if is_share else 2}f}" for bound in measure.interval)
        below = " to ".join(bounds)
    value = f"{scale * measure.value:{sign}.{1 if is_share else 3}f}{unit}"
    return Text.assemble(value, (f"\n{below}", "dim")) if below else Text(value)
