"""95 % intervals of shares, and of paired differences of shares.

A bootstrap of 20 hits in 20 is a point; these intervals come from the binomial model and keep a width there.
Scores of one prompt (its images, named attributes or captions) are not independent: the interval is over
prompt means, and the number of prompts is replaced by the number of independent 0/1 scores with the same
variance (Korn and Graubard 1998).
"""

import math
from collections.abc import Callable

import numpy as np

from clipgraft.evaluation.metrics.intervals import Z, t_quantile

NUM_BISECTIONS = 40
"""Halvings of [-1, 1]: to 2e-12."""


def share_interval(values: np.ndarray, weights: np.ndarray | None = None) -> list[float] | None:
    """Return the 95 % interval of a mean share, in [0, 1].

    Wilson's score interval in the form of Agresti and Coull (1998), with Student's t for the normal quantile.
    Wilson's own covers 0.930 at p = 0.9 and N = 10, and down to 0.84 near p = 1; this one 0.943 to 0.987 for
    0/1 scores with p of 0.5 to 0.97 and N of 10 to 240. If all or none hit, the bound is exact (Clopper and
    Pearson 1934).

    Args:
        values: One share per prompt: 0 or 1, or the mean of several such scores.
        weights: (N,), positive, for a weighted mean.

    Returns:
        Lower and upper bound; None for fewer than two values.
    """
    if len(values) < 2:
        return None
    weights = _normalised(values, weights)
    mean = float(weights @ values)
    size = _effective_size(mean * (1 - mean), values - mean, weights)
    if (values == values[0]).all() and values[0] in (0, 1):
        exact = 0.025 ** (1 / size)
        return [exact, 1.0] if values[0] else [0.0, 1 - exact]
    quantile = t_quantile(len(values) - 1)
    centre = (size * mean + quantile**2 / 2) / (size + quantile**2)
    reach = quantile * math.sqrt(centre * (1 - centre) / (size + quantile**2))
    return [max(0.0, centre - reach), min(1.0, centre + reach)]


def paired_share_interval(differences: np.ndarray, weights: np.ndarray | None = None) -> list[float] | None:
    """Return a mean paired difference's 95 % interval, in [-1, 1].

    Tango's score interval (1998): all differences that the score test of two paired shares does not reject.
    If a difference is not -1, 0 or 1, the variance is estimated and Student's t replaces the normal quantile.
    If few prompts differ, it covers more than 95 %. None for fewer than two values.

    Args:
        differences: Second share minus the first, per prompt.
        weights: (N,), positive, for a weighted mean.
    """
    if len(differences) < 2:
        return None
    weights = _normalised(differences, weights)
    gained, lost = (float(weights @ np.maximum(sign * differences, 0)) for sign in (1, -1))
    mean = gained - lost
    size = _effective_size(gained + lost - mean**2, differences - mean, weights)
    is_whole = np.isin(differences, (-1, 0, 1)).all()
    quantile = Z if is_whole else t_quantile(len(differences) - 1)

    def is_inside(difference: float) -> bool:
        return _tango_score(gained, lost, size, difference) <= quantile

    return [_edge(is_inside, mean, -1.0), _edge(is_inside, mean, 1.0)]


def _tango_score(gained: float, lost: float, size: float, difference: float) -> float:
    """Absolute score statistic of the hypothesis `gained - lost = difference`."""
    linear = (2 - gained + lost) * difference - gained - lost
    constant = lost * difference * (1 - difference)
    lost_then = (math.sqrt(linear**2 + 8 * constant) - linear) / 4  # maximum likelihood under the hypothesis
    variance = (2 * lost_then + difference * (1 - difference)) / size
    return abs(gained - lost - difference) / math.sqrt(variance) if variance > 0 else math.inf


def _edge(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Bisect for the interval's bound."""
    for _ in range(NUM_BISECTIONS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside


def _normalised(values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    return weights / weights.sum()


def _effective_size(variance: float, residuals: np.ndarray, weights: np.ndarray) -> float:
    """Number of independent 0/1 scores with an equally variable mean.

    Unequal weights are worth fewer prompts (Kish). If all values are equal, each prompt counts as one score.
    """
    num_prompts, found = 1 / float((weights**2).sum()), float(weights @ residuals**2)
    # Below is rounding: one of a million prompts that differs by 1/1,000 varies more.
    return num_prompts * (variance / found if found > 1e-13 else 1)
