"""Intervals: they cover a known truth as often as they say, and null differences as often as they should."""

import numpy as np
import pytest

from clipgraft.evaluation.metrics.distribution import kid
from clipgraft.evaluation.metrics.intervals import bootstrap_interval, jackknife_interval, t_quantile


def coverage(draw, truth, num_sets=1000) -> float:
    random = np.random.default_rng(1)
    intervals = (bootstrap_interval(draw(random)) for _ in range(num_sets))
    return sum(low <= truth <= high for low, high in intervals) / num_sets


@pytest.mark.integration
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda random: random.normal(0.3, 0.05, size=40), 0.3),
        (lambda random: random.binomial(5, 0.8, size=120) / 5, 0.8),
        (lambda random: random.gamma(4, 1, size=60), 4.0),
    ],
    ids=["cosines of 40 prompts", "shares of 120 prompts", "skewed errors of 60"],
)
def test_interval_covers_the_truth_in_93_to_97_percent(draw, truth):
    assert 0.93 <= coverage(draw, truth) <= 0.97


@pytest.mark.integration
def test_interval_of_two_seeds_of_one_recipe_contains_zero():
    """Prompts differ in how hard they are; two trainings of one recipe differ by luck, prompt by prompt."""

    def difference(random):
        ease = random.beta(8, 2, size=(1, 60))
        first, second = random.binomial(5, np.repeat(ease, 2, axis=0)) / 5
        return second - first

    assert coverage(difference, 0.0) >= 0.93


def test_photographs_with_several_captions_are_drawn_whole():
    """Five equal captions a photograph are worth one: single captions would make the interval too narrow."""

    def recall(random, by_photograph):
        found = random.binomial(1, 0.6, size=40)
        return found if by_photograph else np.repeat(found, 5)

    assert 0.91 <= coverage(lambda random: recall(random, True), 0.6, num_sets=300) <= 0.99
    assert coverage(lambda random: recall(random, False), 0.6, num_sets=100) < 0.75


def test_weights_are_those_of_the_mean():
    values, weights = np.array([0.0, 1.0, 0.5, 0.25]), np.array([1, 1000, 1, 1])
    low, high = bootstrap_interval(values, weights)
    assert high == pytest.approx(1.0, abs=0.002)
    assert low < 0.6


def test_equal_values_have_no_bootstrap_interval():
    assert bootstrap_interval(np.full(10, 0.5)) is None
    assert jackknife_interval(lambda rows: 0.5, 100) is None


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [1.0, np.inf]])
def test_values_without_an_interval_have_none(values):
    assert bootstrap_interval(np.array(values)) is None


def test_interval_does_not_depend_on_the_chunk_size(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("clipgraft.evaluation.metrics.intervals.DRAWS_PER_CHUNK", 333)
    assert bootstrap_interval(values) == pytest.approx(whole)


@pytest.mark.parametrize(("degrees", "quantile"), [(5, 2.5706), (10, 2.2281), (19, 2.0930), (100, 1.9840)])
def test_t_quantile_is_the_tables(degrees, quantile):
    assert t_quantile(degrees) == pytest.approx(quantile, rel=2e-3)


def test_jackknife_of_a_mean_is_its_textbook_interval():
    values = np.random.default_rng(0).normal(size=400)
    low, high = jackknife_interval(lambda rows: values[rows].mean(), 400)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 2.093 * values.std(ddof=1) / 20, rel=0.4)


def test_jackknife_covers_a_known_distance():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    covered = 0
    truth = float(np.mean([_kid(torch, generator, 400) for _ in range(20)]))
    for _ in range(100):
        x, y = _sets(torch, generator, 100)
        low, high = jackknife_interval(lambda rows, x=x, y=y: kid(x[rows], y), 100)
        covered += low <= truth <= high
    assert (
        covered >= 80
    )  # the 100 real pictures are drawn anew each time too, which the interval does not count


def _sets(torch, generator, size):
    x, y = (torch.randn(size, 4, generator=generator) for _ in range(2))
    return x + 0.8, y


def _kid(torch, generator, size):
    return kid(*_sets(torch, generator, size))


def test_too_few_prompts_have_no_jackknife_interval():
    assert jackknife_interval(lambda rows: float(len(rows)), 39) is None
    assert jackknife_interval(lambda rows: np.nan, 100) is None
