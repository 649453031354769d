"""95 % intervals of means and distances over prompts, by resampling.

They cover the choice of prompts, not the training seed: for that, train again.
"""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np

NUM_RESAMPLES = 2000
RESAMPLING_SEED = 0
DRAWS_PER_CHUNK = 2**22
"""Random numbers per chunk: 32 MiB of int64."""
NUM_GROUPS = 20
"""Of the grouped jackknife; a guess between cost and noise."""
NORMAL = NormalDist()
Z = NORMAL.inv_cdf(0.975)


def bootstrap_interval(values: np.ndarray, weights: np.ndarray | None = None) -> list[float] | None:
    """Return the bootstrap 95 % interval of the mean of values (N,).

    Corrected for bias and skew (BCa, Efron 1987), and widened for few values, as Student's t is against the
    normal (Hesterberg 2015, "expanded"). The seed is fixed: equal values give equal intervals.

    Args:
        values: One per prompt, resampled with replacement.
        weights: (N,), positive, for a weighted mean. Five captions of a photograph are not five samples, so
            recall has one value per photograph, weighted by its number of captions.

    Returns:
        Lower and upper bound; None for fewer than two values, non-finite values, or all values equal (a
        resample then has no spread, though the population may).
    """
    values = np.asarray(values, dtype=np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return None
    mean = (values * weights).sum() / weights.sum()
    resampled = _resampled_means(values, weights)
    z = np.sqrt(len(values) / (len(values) - 1)) * t_quantile(len(values) - 1)
    # Influence of each value on the mean; for the plain mean it equals the jackknife's.
    influence = (values - mean) * weights
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    below = (resampled < mean).mean() + (resampled == mean).mean() / 2
    bias = NORMAL.inv_cdf(float(np.clip(below, 1 / NUM_RESAMPLES, 1 - 1 / NUM_RESAMPLES)))
    corrected = [bias + sign * z for sign in (-1, 1)]
    shares = np.array([NORMAL.cdf(bias + c / (1 - acceleration * c)) for c in corrected])
    return [float(bound) for bound in np.quantile(resampled, shares)]


def jackknife_interval(statistic: Callable[[np.ndarray], float], num_prompts: int) -> list[float] | None:
    """Return the 95 % interval of any statistic, such as a distance.

    Leaves out each of 20 groups of prompts in turn. A bootstrap repeats images, which a kernel distance would
    take for similarity.

    Args:
        statistic: Indices of prompts -> the figure over them.

    Returns:
        The figure over all prompts, plus and minus its standard error times Student's t; None for fewer than
        two prompts per group, a non-finite figure, or one that no group changes.
    """
    if num_prompts < 2 * NUM_GROUPS:
        return None
    order = np.random.default_rng(RESAMPLING_SEED).permutation(num_prompts)
    whole = statistic(np.arange(num_prompts))
    parts = [np.sort(np.setdiff1d(order, group)) for group in np.array_split(order, NUM_GROUPS)]
    left = np.array([statistic(rows) for rows in parts])
    if not np.isfinite([whole, *left]).all() or np.ptp(left) == 0:
        return None
    error = np.sqrt((NUM_GROUPS - 1) * ((left - left.mean()) ** 2).mean())
    reach = t_quantile(NUM_GROUPS - 1) * error
    return [float(whole - reach), float(whole + reach)]


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t; within 0.5 % from 4 degrees.

    Source:
        Abramowitz and Stegun 1964, 26.7.5.
    """
    z, n = Z, degrees
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / n ** (power + 1) for power, term in enumerate(terms))


def _resampled_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    random = np.random.default_rng(RESAMPLING_SEED)
    products, means, size = values * weights, [], max(1, DRAWS_PER_CHUNK // len(values))
    for start in range(0, NUM_RESAMPLES, size):
        rows = min(size, NUM_RESAMPLES - start)
        chosen = random.integers(0, len(values), size=(rows, len(values)))
        means.append(products[chosen].sum(1) / weights[chosen].sum(1))
    return np.concatenate(means)
