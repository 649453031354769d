"""Intervals of shares cover the truth as often as they say, at the ends too; counted over every outcome."""

import math

import numpy as np
import pytest

from clipgraft.evaluation.figures import mean_figure, paired_difference
from clipgraft.evaluation.metrics.shares import paired_share_interval, share_interval

SIZES, SHARES = (10, 24, 100, 240), (0.5, 0.9, 0.97)


def probability(counts: tuple[int, ...], shares: tuple[float, ...]) -> float:
    """Of a multinomial outcome."""
    ways = math.lgamma(sum(counts) + 1) - sum(math.lgamma(count + 1) for count in counts)
    return math.exp(ways + sum(n * math.log(share) for n, share in zip(counts, shares, strict=True)))


def scores(*counts: tuple[float, int]) -> np.ndarray:
    return np.repeat([value for value, _ in counts], [count for _, count in counts]).astype(float)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", SHARES)
def test_share_is_covered_in_93_to_99_of_100_samples(share, size):
    covered = 0.0
    for hits in range(size + 1):
        low, high = share_interval(scores((1, hits), (0, size - hits)))
        covered += (low <= share <= high) * probability((hits, size - hits), (share, 1 - share))
    assert 0.93 <= covered <= 0.99


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("gain", [0.0, 0.1])
def test_paired_difference_is_covered_in_93_to_99_of_100(share, gain, size):
    """Two encoders that hit independently of each other."""
    gained, lost = share * (1 - share + gain), (share - gain) * (1 - share)
    covered = 0.0
    for up in range(size + 1):
        for down in range(size + 1 - up):
            counts = (up, down, size - up - down)
            if (weight := probability(counts, (gained, lost, 1 - gained - lost))) > 1e-6:
                low, high = paired_share_interval(scores((1, up), (-1, down), (0, counts[2])))
                covered += (low <= gain <= high) * weight
    assert covered >= 0.93
    # Where fewer than five are expected to differ, no interval that covers can miss one time in a hundred.
    assert covered <= 0.99 or size * (gained + lost) < 5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("of", [2, 5])
def test_mean_of_shares_per_prompt_is_covered(share, size, of):
    """Several images a prompt, or attributes: hits of one prompt hang together (beta-binomial)."""
    random = np.random.default_rng(0)
    for likeness in (0.1, 0.5):
        spread = (1 - likeness) / likeness
        ease = random.beta(share * spread, (1 - share) * spread, size=(1000, size))
        samples = random.binomial(of, ease) / of
        intervals = [share_interval(values) for values in samples]
        assert 0.92 <= np.mean([low <= share <= high for low, high in intervals]) <= 1


@pytest.mark.parametrize("size", SIZES)
def test_paired_difference_of_shares_per_prompt_is_covered(size):
    random = np.random.default_rng(0)
    for first, second in ((0.9, 0.9), (0.7, 0.9)):
        draws = random.random((400, size, 2, 5)) < np.array([first, second])[:, None]
        shared = random.random((400, size, 1)) < 0.3  # of these prompts the first image decides all five
        hits = np.where(shared[..., None], draws[..., :1], draws).mean(-1)
        intervals = [paired_share_interval(values) for values in hits[..., 1] - hits[..., 0]]
        covered = np.mean([low <= second - first <= high for low, high in intervals])
        assert covered >= 0.92, (first, second)


def test_score_interval_equals_a_naive_likelihood_search():
    """Tango's test by its definition: the likeliest table under each difference, found on a grid."""
    gained, lost, size = 12, 2, 50
    inside = []
    for difference in np.linspace(-0.2, 0.6, 801):
        down = np.linspace(1e-6, (1 - abs(difference)) / 2, 20_001)
        up = down + difference
        rest = 1 - up - down
        allowed = (up > 0) & (rest > 0)
        down, up, rest = down[allowed], up[allowed], rest[allowed]
        best = np.argmax(gained * np.log(up) + lost * np.log(down) + (size - gained - lost) * np.log(rest))
        variance = size * (up[best] + down[best] - difference**2)
        if abs(gained - lost - size * difference) <= 1.959964 * math.sqrt(variance):
            inside.append(difference)
    found = paired_share_interval(scores((1, gained), (-1, lost), (0, size - gained - lost)))
    assert found == pytest.approx([inside[0], inside[-1]], abs=0.0011)


def test_sample_without_a_miss_has_an_interval_with_a_width():
    low, high = share_interval(np.ones(20))
    assert low**20 == pytest.approx(0.025)  # exact: of a share of `low`, one sample in 40 is without a miss
    assert high == 1
    assert share_interval(np.zeros(20)) == pytest.approx([0, 1 - low])
    assert paired_share_interval(np.zeros(24)) == pytest.approx([-0.138, 0.138], abs=1e-3)  # z^2 / (n + z^2)
    assert share_interval(np.full(24, 0.5)) == pytest.approx(share_interval(scores((0, 12), (1, 12))))


def test_copies_of_a_score_within_a_prompt_count_once():
    values = scores((1, 30), (0, 10))
    assert share_interval(values, np.full(40, 5)) == pytest.approx(share_interval(values))
    # Weights of 9 and 1 in turn are worth 200^2 / (20 x 81 + 20) = 24.4 prompts of equal weight.
    low, high = share_interval(values, np.tile([9.0, 1.0], 20))
    fewer, more = (share_interval(scores((1, 3 * n), (0, n))) for n in (6, 7))
    assert more[1] - more[0] < high - low < fewer[1] - fewer[0]


@pytest.mark.parametrize("take", [share_interval, paired_share_interval])
def test_fewer_than_two_prompts_have_no_interval(take):
    assert take(np.array([])) is None
    assert take(np.array([1.0])) is None


@pytest.mark.parametrize(
    ("metric", "value", "method", "paired"),
    [("prompt_fidelity", 1.0, "agresti_coull", "tango"), ("clip_score_raw", 0.3, None, None)],
)
def test_equal_scores_give_a_wide_interval_or_a_reason(metric, value, method, paired):
    values = np.full((24, 2), value)
    rows = (
        (mean_figure(metric, "plain", "after", values), method),
        (paired_difference(metric, "plain", ("before", "after"), (values, values)), paired),
    )
    for row, expected in rows:
        assert row.interval_method == expected
        if expected:
            assert row.interval[1] - row.interval[0] > 0.1
            assert row.note == ""
        else:
            assert row.interval is None
            assert row.note == "no interval: every prompt has the same score"
