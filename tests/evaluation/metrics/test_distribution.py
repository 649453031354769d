"""Distances between sets of pictures against their definitions and closed forms."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from clipgraft.evaluation.figures import distances
from clipgraft.evaluation.metrics import distribution
from clipgraft.evaluation.metrics.distribution import cmmd, fid, kid, shortage


def gaussian(num, size, seed, mean=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return mean + scale * torch.randn(num, size, generator=generator, dtype=torch.float64)


def whitened(num, size, seed):
    """Features whose sample mean is exactly 0 and whose sample covariance is exactly the identity."""
    x = gaussian(num, size, seed)
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(x.T.cov())
    return x @ vectors / values.sqrt()


def test_fid_of_equal_sets_is_zero():
    x = gaussian(200, 16, 0)
    assert fid(x, x.flip(0)) == pytest.approx(0, abs=1e-8)


def test_fid_of_two_gaussians_is_the_closed_form():
    """Commuting covariances: |mu|^2 + sum (s_x - s_y)^2 over standard deviations."""
    first = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    second = torch.linspace(3, 1, 8, dtype=torch.float64)
    shift = torch.arange(8, dtype=torch.float64) / 4
    x, y = whitened(100, 8, 0) * first, whitened(150, 8, 1) * second + shift
    assert fid(x, y) == pytest.approx(float(shift.square().sum() + (first - second).square().sum()))


def test_fid_of_noncommuting_covariances_uses_the_matrix_root():
    mixing = gaussian(6, 6, 3)
    x, y = whitened(80, 6, 0) @ mixing, whitened(80, 6, 1)
    # C_y is the identity: tr (C_x)^(1/2) is the sum of the mixing's singular values.
    expected = mixing.square().sum() + 6 - 2 * torch.linalg.svdvals(mixing).sum()
    assert fid(x, y) == pytest.approx(float(expected))


def test_fid_of_fewer_pictures_than_features_is_finite():
    assert math.isfinite(fid(gaussian(5, 32, 0), gaussian(7, 32, 1)))


def naive_cmmd(x, y):
    def k(a, b):
        return math.exp(-sum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True)) / 200)

    def mean(first, second):
        return sum(k(a, b) for a in first for b in second) / (len(first) * len(second))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


def test_cmmd_is_its_definition_in_float64(monkeypatch):
    monkeypatch.setattr(distribution, "ROWS_PER_CHUNK", 4)
    x, y = normalize(gaussian(13, 6, 0), dim=1), normalize(gaussian(9, 6, 1, mean=0.5), dim=1)
    assert cmmd(x.float(), y.float()) == pytest.approx(naive_cmmd(x.float(), y.float()), rel=1e-9)


def test_cmmd_of_points_moved_apart_is_known():
    x = torch.zeros(7, 3)
    for distance in (0.0, 0.5, 2.0, 30.0):
        moved = x + torch.tensor([distance, 0, 0])
        assert cmmd(x, moved) == pytest.approx(2000 * (1 - math.exp(-(distance**2) / 200)), abs=1e-9)


def test_kid_is_its_definition():
    x, y = gaussian(8, 5, 0), gaussian(11, 5, 1, mean=0.4)

    def k(a, b):
        return (float(a @ b) / 5 + 1) ** 3

    own_x = sum(k(x[i], x[j]) for i in range(8) for j in range(8) if i != j) / (8 * 7)
    own_y = sum(k(y[i], y[j]) for i in range(11) for j in range(11) if i != j) / (11 * 10)
    between = sum(k(a, b) for a in x for b in y) / 88
    assert kid(x, y) == pytest.approx(own_x + own_y - 2 * between)


def test_kid_of_one_distribution_averages_zero():
    values = torch.tensor([kid(gaussian(40, 8, 2 * s), gaussian(40, 8, 2 * s + 1)) for s in range(200)])
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean()) < 3 * error
    assert (values < 0).any()


def test_every_distance_grows_with_how_far_a_set_is_moved():
    x = normalize(gaussian(100, 12, 0), dim=1)
    for distance in (cmmd, kid, fid):
        found = [distance(x + step, normalize(gaussian(120, 12, 1), dim=1)) for step in (0, 0.2, 0.4)]
        assert found == sorted(found)


@pytest.mark.parametrize(("metric", "least"), [("cmmd", 100), ("kid", 50), ("fid", 257)])
def test_too_few_pictures_are_refused_with_their_number(metric, least):
    assert shortage(metric, least, least, 256) == ""
    assert shortage(metric, least, least - 1, 256) == (
        f"{metric.upper()} was not computed: it needs {least} images of each set, got {least} generated and "
        f"{least - 1} real ones; --force computes it from fewer"
    )


@pytest.mark.parametrize("metric", ["cmmd", "kid", "fid"])
def test_forced_distance_needs_two_images(metric):
    assert shortage(metric, 2, 2, 256, force=True) == ""
    assert shortage(metric, 1, 4, 256, force=True) == (
        f"{metric.upper()} was not computed: it needs 2 images of each set, got 1 generated and 4 real ones"
    )


LACK = "no interval: fewer than 40 prompts"


def test_distances_pair_prompts_that_both_variants_have():
    def distance(parts):
        return float(torch.cat(parts).mean())

    one, none = torch.ones(1, 2), torch.ones(0, 2)
    features = {"before": [one, none, 3 * one, one], "after": [none, one, 2 * one, 3 * one]}
    figures, [difference] = distances(
        "kid", "held_out", features, distance, [("before", "after")], {"after": "few"}
    )
    assert [(row.num, row.note) for row in figures] == [(3, LACK), (3, f"few; {LACK}")]
    assert (difference.num, difference.value) == (2, 2.5 - 2)
