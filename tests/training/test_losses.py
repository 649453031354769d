"""Losses against worked-out cases."""

import math

import pytest
import torch

from clipgraft.errors import UserError
from clipgraft.training.losses import (
    balanced_bias,
    clamped_snr_weights,
    contrastive_loss,
    sigmoid_loss,
    state_errors,
    state_loss,
)


def test_contrastive_loss_of_orthogonal_pairs_is_that_by_hand():
    embeds = torch.eye(2)
    loss = contrastive_loss(embeds, embeds, torch.tensor(math.log(3.0)))
    # Logits are 3 on the diagonal and 0 beside it: -log(e^3 / (e^3 + 1)) in all four rows.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-6)


def test_contrastive_loss_of_equal_embeds_is_log_batch_size():
    embeds = torch.ones(5, 4) / 2
    assert contrastive_loss(embeds, embeds, torch.tensor(4.0)).item() == pytest.approx(math.log(5), rel=1e-5)


def test_contrastive_loss_equals_the_librarys():
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(2.6592)
    expected = image_text_contrastive_loss(scale.exp() * text @ image.T)
    torch.testing.assert_close(contrastive_loss(image, text, scale), expected)


def test_logits_are_float32_even_under_autocast():
    embeds = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrastive_loss(embeds, embeds.flip(0), torch.tensor(4.0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, contrastive_loss(embeds, embeds.flip(0), torch.tensor(4.0)))


def duplicated_image():
    """Three rows at multiplier 2: the first two show the same image; captions and images are unit vectors.

    Cosines, captions (rows) by images (columns):
        1.0  1.0  0.6
        0.8  0.8  0.0
        0.6  0.6  1.0
    """
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    text = torch.tensor([[1.0, 0.0], [0.8, -0.6], [0.6, 0.8]])
    return image, text, torch.tensor(2.0).log(), torch.tensor([0, 0, 2])


def log_share(own, *others):
    return -math.log(math.exp(own) / (math.exp(own) + sum(map(math.exp, others))))


def test_masked_loss_of_a_duplicate_image_by_hand():
    image, text, scale, content = duplicated_image()
    by_text = [log_share(2.0, 1.2), log_share(1.6, 0.0), log_share(2.0, 1.2, 1.2)]
    by_image = [log_share(2.0, 1.2), log_share(1.6, 1.2), log_share(2.0, 1.2, 0.0)]
    loss = contrastive_loss(image, text, scale, duplicate_id=content)
    assert loss.item() == pytest.approx((sum(by_text) + sum(by_image)) / 6, rel=1e-6)


def test_shared_target_of_duplicates_is_that_by_hand():
    image, text, scale, content = duplicated_image()
    by_text = [
        (log_share(2.0, 2.0, 1.2) + log_share(2.0, 2.0, 1.2)) / 2,
        (log_share(1.6, 1.6, 0.0) + log_share(1.6, 1.6, 0.0)) / 2,
        log_share(2.0, 1.2, 1.2),
    ]
    both_captions = (log_share(2.0, 1.6, 1.2) + log_share(1.6, 2.0, 1.2)) / 2
    by_image = [both_captions, both_captions, log_share(2.0, 1.2, 0.0)]
    loss = contrastive_loss(image, text, scale, duplicate_id=content, duplicate_images="positive")
    assert loss.item() == pytest.approx((sum(by_text) + sum(by_image)) / 6, rel=1e-6)


def test_plain_loss_takes_a_duplicated_image_for_another_one():
    image, text, scale, content = duplicated_image()
    logits = 2.0 * text @ image.T
    target = torch.arange(3)
    expected = (
        torch.nn.functional.cross_entropy(logits, target)
        + torch.nn.functional.cross_entropy(logits.T, target)
    ) / 2
    loss = contrastive_loss(image, text, scale, duplicate_id=content, duplicate_images="negative")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("duplicate_images", ["mask", "positive", "negative"])
def test_captions_of_one_row_are_those_of_the_image_repeated(duplicate_images):
    torch.manual_seed(2)
    image, text = (torch.nn.functional.normalize(torch.randn(n, 8), dim=-1) for n in (3, 6))
    row = torch.tensor([0, 0, 0, 1, 2, 2])
    scale = torch.tensor(1.5)
    ours = contrastive_loss(image, text, scale, caption_row=row, duplicate_images=duplicate_images)
    if duplicate_images == "positive":
        logits = scale.exp() * text @ image.T
        by_text = torch.nn.functional.cross_entropy(logits, row)
        by_image = -torch.stack([logits.T[i].log_softmax(0)[row == i].mean() for i in range(3)]).mean()
        expected = (by_text + by_image) / 2
    else:
        expected = contrastive_loss(
            image[row], text, scale, duplicate_id=row, duplicate_images=duplicate_images
        )
    if duplicate_images == "mask":
        # A caption's wrong images are counted once each, not once a caption they have.
        logits = scale.exp() * text @ image.T
        by_text = torch.nn.functional.cross_entropy(logits, row)
        by_image = torch.stack(
            [
                torch.logaddexp(logits[k, row[k]], logits[row != row[k], row[k]].logsumexp(0))
                - logits[k, row[k]]
                for k in range(6)
            ]
        ).mean()
        expected = (by_text + by_image) / 2
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("duplicate_images", ["mask", "positive", "negative"])
def test_batch_of_one_image_has_finite_gradients(duplicate_images):
    image = torch.nn.functional.normalize(torch.ones(1, 4), dim=-1).requires_grad_()
    text = torch.eye(4)[:2].requires_grad_()
    row = torch.tensor([0, 0])
    loss = contrastive_loss(
        image, text, torch.tensor(2.0), caption_row=row, duplicate_images=duplicate_images
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(image.grad).all()
    assert torch.isfinite(text.grad).all()
    if duplicate_images == "mask":
        assert loss.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (3, {"duplicate_images": "positives"}, "must be one of mask, positive, negative; got 'positives'"),
        (2, {}, "2 captions and 3 images: name each caption's image"),
    ],
)
def test_losses_refuse_what_they_would_misread(rows, arguments, message):
    images, texts, scale = torch.eye(3), torch.eye(3)[:rows], torch.tensor(0.0)
    with pytest.raises(UserError, match=message):
        contrastive_loss(images, texts, scale, **arguments)
    with pytest.raises(UserError, match=message):
        sigmoid_loss(images, texts, scale, scale, **arguments)


def test_sigmoid_loss_is_the_formula_of_its_paper():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(5, 8), dim=-1) for _ in range(2))
    scale, bias = torch.tensor(10.0).log(), torch.tensor(-10.0)
    expected = 0.0
    for i in range(5):
        for j in range(5):
            sign = 1 if i == j else -1
            logit = 10 * float(image[i] @ text[j]) - 10
            expected -= math.log(1 / (1 + math.exp(-sign * logit))) / 5
    assert sigmoid_loss(image, text, scale, bias).item() == pytest.approx(expected, rel=1e-5)


def test_sigmoid_loss_of_duplicates_is_that_by_hand():
    image, text, scale, content = duplicated_image()
    together, apart = (lambda z: math.log1p(math.exp(-z))), (lambda z: math.log1p(math.exp(z)))
    own = together(2.0) + together(1.6) + together(2.0)
    others = apart(1.2) + apart(0.0) + 2 * apart(1.2)
    expected = {
        "mask": own + others,
        "positive": own + others + together(2.0) + together(1.6),
        "negative": own + others + apart(2.0) + apart(1.6),
    }
    for duplicate_images, total in expected.items():
        loss = sigmoid_loss(
            image, text, scale, torch.tensor(0.0), duplicate_id=content, duplicate_images=duplicate_images
        )
        assert loss.item() == pytest.approx(total / 3, rel=1e-5), duplicate_images


def test_balanced_bias_expects_as_many_pairs_as_there_are():
    torch.manual_seed(0)
    logits = 100 * (0.2 + 0.05 * torch.randn(32, 32))
    bias = balanced_bias(logits)
    assert torch.sigmoid(logits + bias).mean().item() == pytest.approx(1 / 32, rel=1e-4)


def test_state_loss_is_zero_for_equal_states_and_skips_weight_0():
    teacher = torch.randn(2, 3, 4)
    student = teacher.clone()
    student[:, 2] = 99.0
    weights = torch.tensor([[1.0, 0.5, 0.0]]).expand(2, 3)
    assert state_loss(state_errors(student, teacher, weights)).item() == pytest.approx(0, abs=1e-6)


def test_state_loss_of_the_zero_state_is_two():
    # All of the teacher's power is missing (1), and the cosine with a zero vector is 0 (1 - 0).
    teacher = torch.randn(2, 3, 4)
    errors = state_errors(torch.zeros(2, 3, 4), teacher, torch.ones(2, 3))
    assert state_loss(errors).item() == pytest.approx(2, rel=1e-6)


def test_state_loss_counts_a_doubled_length_by_its_norm():
    teacher = torch.randn(2, 3, 4)
    errors = state_errors(2 * teacher, teacher, torch.ones(2, 3))
    assert state_loss(errors).item() == pytest.approx(1, rel=1e-5)  # squared error: once the teacher's power
    assert state_loss(errors, cosine_weight=9, norm_weight=0.5).item() == pytest.approx(1.5, rel=1e-5)


def test_snr_weight_equals_the_librarys_formula_within_bounds():
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([0, 10, 200, 300, 500, 999])
    snr = compute_snr(scheduler, timesteps)
    capped = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0) / snr
    expected = torch.where(snr < 1, 1 / snr, capped)  # there, the error of the picture itself
    assert (snr < 1).any()
    assert ((snr > 1) & (snr < 5)).any()
    torch.testing.assert_close(clamped_snr_weights(scheduler.alphas_cumprod, timesteps, 5.0), expected)


def test_snr_weights_lie_mostly_where_noise_prevails():
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # Stable Diffusion's
    alphas = (1 - betas).cumprod(0)
    weights, is_noisy = clamped_snr_weights(alphas, torch.arange(1000), 5.0), alphas < 0.5
    assert float(is_noisy.float().mean()) == pytest.approx(0.646)
    assert float(weights[is_noisy].sum() / weights.sum()) == pytest.approx(0.987, abs=5e-4)
