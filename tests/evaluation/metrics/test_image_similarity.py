"""Likeness of pictures against naive versions and cases worked out by hand."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from clipgraft.evaluation.metrics.clipscore import clip_score_2_5, clip_score_raw, independence_note
from clipgraft.evaluation.metrics.image_similarity import nearest_images, psnr, seed_diversity, ssim


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 14, 13, generator=generator)


def naive_ssim(x, y):
    weights = [math.exp(-((i - 5) ** 2) / 4.5) for i in range(11)]
    window = [[a * b / sum(weights) ** 2 for b in weights] for a in weights]
    height, width = len(x), len(x[0])
    total, places = 0.0, 0
    for top in range(height - 10):
        for left in range(width - 10):
            cells = [
                (window[i][j], x[top + i][left + j], y[top + i][left + j])
                for i in range(11)
                for j in range(11)
            ]
            mean_x, mean_y = (sum(c[0] * c[k] for c in cells) for k in (1, 2))
            var_x, var_y = (
                sum(c[0] * c[k] ** 2 for c in cells) - m**2 for k, m in ((1, mean_x), (2, mean_y))
            )
            covariance = sum(w * a * b for w, a, b in cells) - mean_x * mean_y
            total += ((2 * mean_x * mean_y + 1e-4) * (2 * covariance + 9e-4)) / (
                (mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)
            )
            places += 1
    return total / places


def test_ssim_equals_a_naive_version(pictures):
    other = (pictures + 0.3 * pictures.flip(0)).clamp(0, 1)
    expected = [
        sum(naive_ssim(x.tolist(), y.tolist()) for x, y in zip(one, two, strict=True)) / 3
        for one, two in zip(pictures, other, strict=True)
    ]
    assert ssim(pictures, other).tolist() == pytest.approx(expected)


def test_picture_is_wholly_like_itself(pictures):
    assert ssim(pictures, pictures).tolist() == pytest.approx([1, 1])
    assert psnr(pictures, pictures).tolist() == [math.inf, math.inf]


def test_psnr_of_a_picture_that_is_off_by_a_tenth_is_20_db(pictures):
    assert psnr(pictures, pictures + 0.1).tolist() == pytest.approx([20, 20], abs=1e-4)


def test_clip_score_is_the_cosine_and_its_scaled_positive_part():
    images, texts = torch.tensor([[1.0, 0], [0.6, 0.8]]), torch.tensor([[0.6, 0.8], [-1, 0]])
    cosines = clip_score_raw(images, texts)
    assert cosines.tolist() == pytest.approx([0.6, -0.6])
    assert clip_score_2_5(cosines).tolist() == pytest.approx([1.5, 0])


def test_scorer_among_the_compared_clips_gives_a_warning():
    sums = {"before": "a", "after": "b"}
    assert independence_note("c", sums) == ""
    note = independence_note("a", sums)
    assert "The scorer is the CLIP of 'before' itself" in note
    assert "--scorer" in note
    assert "the CLIP that 'after' was tuned from" in independence_note("c", sums, ["after"])


def test_diversity_is_the_mean_over_pairs():
    generator = torch.Generator().manual_seed(0)
    embeds = normalize(torch.randn(3, 4, 5, generator=generator), dim=-1)
    expected = [
        sum(1 - float(e[i] @ e[j]) for i in range(4) for j in range(4) if i != j) / 12 for e in embeds
    ]
    assert seed_diversity(embeds).tolist() == pytest.approx(expected, abs=1e-6)
    assert seed_diversity(embeds[:, :1].expand(-1, 4, -1)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)


def test_diversity_of_one_picture_a_prompt_is_refused():
    with pytest.raises(ValueError, match="diversity needs 2 or more images per prompt; got 1"):
        seed_diversity(torch.ones(3, 1, 2))


def test_copy_of_a_training_image_is_found_in_any_chunk():
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(50, 6, generator=generator), dim=-1)
    cosines, rows = nearest_images(images[[7, 31, 4]], images, rows_per_chunk=2)
    assert rows.tolist() == [7, 31, 4]
    assert cosines.tolist() == pytest.approx([1, 1, 1])
