"""Rows of evaluation.json: figures with intervals, and paired differences; see docs/evaluation.md."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from clipgraft.evaluation.metrics.intervals import NUM_GROUPS, bootstrap_interval, jackknife_interval
from clipgraft.evaluation.metrics.shares import paired_share_interval, share_interval

SCHEMA, SCHEMA_VERSION = "clipgraft.evaluation", 1
SHARE = "share"
"""Unit of metrics whose scores lie in [0, 1] and count hits; their intervals are those of shares."""

NO_SPREAD = "no prompt differs from another"

Interval = Callable[[np.ndarray, np.ndarray | None], list[float] | None]
METHODS: dict[Interval, str] = {
    bootstrap_interval: "bca",
    share_interval: "agresti_coull",
    paired_share_interval: "tango",
}


class Metric(NamedTuple):
    """What a reader has to know of a metric."""

    title: str
    what: str
    unit: str
    higher_is_better: bool | None
    kind: Literal["mean", "distribution"] = "mean"


METRICS = {
    "prompt_fidelity": Metric(
        "Prompt fidelity", "Share of what a prompt names that the probe finds in the picture.", SHARE, True
    ),
    "prompt_fidelity_all_at_once": Metric(
        "Prompt fidelity, all at once",
        "Share of pictures that show everything their prompt names.",
        SHARE,
        True,
    ),
    **{
        f"prompt_fidelity_{name}": Metric(
            f"Prompt fidelity: {name}",
            f"Share of prompts naming a {name} whose picture shows it.",
            SHARE,
            True,
        )
        for name in ("place", "time", "subject", "colour", "action")
    },
    "clip_score_raw": Metric(
        "CLIPScore, raw cosine", "Cosine of picture and prompt in the scorer's joint space.", "cosine", True
    ),
    "clip_score_2.5": Metric(
        "CLIPScore, 2.5 max(cosine, 0)", "Hessel et al. 2021, without its prefix.", "", True
    ),
    "picture_to_caption_recall@1": Metric(
        "Picture to caption recall@1",
        "Share of pictures to which, of all prompts of the set, the scorer finds their own the nearest.",
        SHARE,
        True,
    ),
    "same_seed_psnr": Metric(
        "PSNR to the teacher's picture",
        "Of the same prompt and seed; at most 100, for equal pictures.",
        "dB",
        True,
    ),
    "same_seed_ssim": Metric("SSIM to the teacher's picture", "Of the same prompt and seed.", "", True),
    "same_seed_cosine": Metric(
        "Cosine to the teacher's picture", "Of the scorer's embeds, same prompt and seed.", "cosine", True
    ),
    **{
        f"state_error_{name}": Metric(
            f"Error of token states: {name}",
            "Root of the squared distance to the teacher's states, over their power; 0 = equal.",
            "",
            False,
        )
        for name in ("words", "eos", "padding")
    },
    "seed_diversity": Metric(
        "Diversity between seeds", "Mean of 1 - cosine over pairs of one prompt's pictures.", "", None
    ),
    "nearest_training_cosine": Metric(
        "Cosine to the nearest training picture",
        "High where a picture is a copy; photographs that were held out are the measure.",
        "cosine",
        None,
    ),
    "cmmd": Metric(
        "CMMD",
        "1000 x squared MMD of the scorer's embeds, Gaussian kernel of sigma 10.",
        "",
        False,
        "distribution",
    ),
    "kid": Metric("KID", "Squared MMD of features, cubic kernel, unbiased.", "", False, "distribution"),
    "fid": Metric(
        "FID", "Frechet distance of features as Gaussians; biased by N.", "", False, "distribution"
    ),
    **{
        f"{direction}_recall@{k}": Metric(
            f"{direction.replace('_', ' ').capitalize()} recall@{k}",
            f"Share of the test split's queries with a right answer among the first {k}.",
            SHARE,
            True,
        )
        for direction in ("text_to_image", "image_to_text")
        for k in (1, 5, 10)
    },
    **{
        f"{direction}_map": Metric(
            f"{direction.replace('_', ' ').capitalize()} mAP",
            "Mean over queries of the mean precision at each right answer.",
            "",
            True,
        )
        for direction in ("text_to_image", "image_to_text")
    },
    **{
        f"{direction}_median_rank": Metric(
            f"{direction.replace('_', ' ').capitalize()} median rank",
            "Of the first right answer; 1 = best.",
            "",
            False,
        )
        for direction in ("text_to_image", "image_to_text")
    },
}


def mean_row(
    metric: str, prompt_set: str, column: str, values: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, Any]:
    """Return the figure of a mean over prompts.

    Args:
        metric: One of METRICS.
        prompt_set: Name of the set.
        column: What was measured.
        values: (P, K): of each prompt its pictures' scores, NaN where there is none.
        weights: (P,), where prompts count unequally.
    """
    per_prompt = prompt_means(values)
    has_score = np.isfinite(per_prompt)
    kept = None if weights is None else weights[has_score]
    interval = share_interval if METRICS[metric].unit == SHARE else bootstrap_interval
    return _row(metric, prompt_set, column) | _summary(per_prompt[has_score], kept, interval)


def difference_row(
    metric: str,
    prompt_set: str,
    columns: tuple[str, str],
    values: tuple[np.ndarray, np.ndarray],
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the second column's mean less the first's, over the prompts and seeds that both have.

    Args:
        metric: One of METRICS.
        prompt_set: Name of the set.
        columns: Names of both.
        values: (P, K) of both.
        weights: (P,), where prompts count unequally.
    """
    per_prompt = prompt_means(values[1] - values[0])
    has_both = np.isfinite(per_prompt)
    differences = per_prompt[has_both]
    kept = None if weights is None else weights[has_both]
    better = METRICS[metric].higher_is_better
    won = None if better is None else int((differences > 0).sum() if better else (differences < 0).sum())
    lost = None if better is None else int((differences < 0).sum() if better else (differences > 0).sum())
    interval = paired_share_interval if METRICS[metric].unit == SHARE else bootstrap_interval
    return (
        {"metric": metric, "prompt_set": prompt_set, "from": columns[0], "to": columns[1]}
        | _summary(differences, kept, interval)
        | {"num_better": won, "num_worse": lost}
    )


def distribution_rows(
    metric: str,
    prompt_set: str,
    features: dict[str, list[Any]],
    distance: Callable[[list[Any]], float],
    pairs: list[tuple[str, str]],
    notes: Mapping[str, str],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return figures and differences of a distance between distributions, with jackknife intervals.

    Args:
        metric: One of METRICS.
        prompt_set: Name of the set.
        features: By column, for each prompt the features (k, D) of its pictures; k may be 0.
        distance: Of a list of such features from the reference.
        pairs: Columns to take differences of; both have the same prompts, of which those count that have
            pictures in both.
        notes: By column, what a reader has to know of its figure.

    Returns:
        Figures, whose `num` is of the column's pictures, and differences, whose `num` is of the prompts.
    """
    drawn = {column: {row for row, one in enumerate(own) if len(one)} for column, own in features.items()}

    def at(column: str, rows: np.ndarray) -> float:
        return distance([features[column][row] for row in rows])

    def summary(statistic: Callable[[np.ndarray], float], prompts: set[int]) -> dict[str, Any]:
        places = np.array(sorted(prompts))
        interval = jackknife_interval(lambda rows: statistic(places[rows]), len(places))
        return {
            "value": statistic(places),
            "interval": interval,
            "interval_method": "jackknife" if interval else None,
            "note": "" if interval else _why_no_interval(places, 2 * NUM_GROUPS),
        }

    figures = []
    for column, own in features.items():
        row = summary(lambda rows, column=column: at(column, rows), drawn[column])  # type: ignore[misc]
        note = "; ".join(filter(None, [notes.get(column, ""), row["note"]]))
        figures.append(_row(metric, prompt_set, column) | row | {"num": sum(map(len, own)), "note": note})
    differences = [
        {"metric": metric, "prompt_set": prompt_set, "from": first, "to": second}
        | summary(lambda rows, a=first, b=second: at(b, rows) - at(a, rows), both)  # type: ignore[misc]
        | {"num": len(both), "num_better": None, "num_worse": None}
        for first, second in pairs
        if first in features and second in features and len(both := drawn[first] & drawn[second]) > 1
    ]
    return figures, differences


def absent_row(metric: str, prompt_set: str, column: str, num: int, note: str) -> dict[str, Any]:
    """Return the figure of what was not measured, with the reason."""
    empty = {"value": None, "interval": None, "interval_method": None, "num": num, "note": note}
    return _row(metric, prompt_set, column) | empty


def prompt_means(values: np.ndarray) -> np.ndarray:
    """Mean of each row (P, K) over what is finite; NaN where nothing is."""
    is_finite = np.isfinite(values)
    total, count = np.where(is_finite, values, 0).sum(1), is_finite.sum(1)
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _row(metric: str, prompt_set: str, column: str) -> dict[str, Any]:
    assert metric in METRICS, metric
    return {"metric": metric, "prompt_set": prompt_set, "column": column}


def _summary(values: np.ndarray, weights: np.ndarray | None, take: Interval) -> dict[str, Any]:
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
