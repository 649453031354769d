"""Losses against worked-out cases."""

import math

import pytest
import torch

from clipgraft.training.losses import contrastive_loss, min_snr_weights, state_loss


def test_contrastive_loss_of_two_orthogonal_pairs_is_worked_out_by_hand():
    embeds = torch.eye(2)
    loss = contrastive_loss(embeds, embeds, torch.tensor(math.log(3.0)))
    # Logits are 3 on the diagonal and 0 beside it: -log(e^3 / (e^3 + 1)) in all four rows.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-6)


def test_contrastive_loss_of_equal_embeds_is_the_log_of_the_batch_size():
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


def test_state_loss_is_zero_for_equal_states_and_leaves_out_positions_of_no_weight():
    teacher = torch.randn(2, 3, 4)
    student = teacher.clone()
    student[:, 2] = 99.0
    weights = torch.tensor([[1.0, 0.5, 0.0]]).expand(2, 3)
    assert state_loss(student, teacher, weights).item() == pytest.approx(0, abs=1e-6)


def test_state_loss_of_the_zero_state_is_two():
    # All of the teacher's power is missing (1), and the cosine with a zero vector is 0 (1 - 0).
    teacher = torch.randn(2, 3, 4)
    assert state_loss(torch.zeros(2, 3, 4), teacher, torch.ones(2, 3)).item() == pytest.approx(2, rel=1e-6)


def test_min_snr_weight_equals_the_librarys_formula():
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    timesteps = torch.tensor([0, 10, 500, 999])
    snr = compute_snr(scheduler, timesteps)
    expected = torch.stack([snr, torch.full_like(snr, 5.0)]).amin(0) / snr
    torch.testing.assert_close(min_snr_weights(scheduler.alphas_cumprod, timesteps, 5.0), expected)
