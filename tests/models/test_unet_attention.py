"""A U-Net's attention in training, by blocks of rows."""

import copy
import time

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn import functional as F

from clipgraft.models import unet_attention
from clipgraft.models.flatland_config import build_unet
from clipgraft.models.unet_attention import UNetAttention, attend_by_rows, use_fast_attention

SIDES = ((64, 40), (32, 80), (16, 160), (8, 160))
SHAPES_AT_512 = [(side**2, keys or side**2, width) for side, width in SIDES for keys in (0, 77)]
"""Rows, keys and width of Stable Diffusion v1.5's attention for an image of 512 x 512."""


@pytest.fixture
def few_rows(monkeypatch):
    """Blocks of three rows for N = 4 and S = 5; the last one is shorter."""
    monkeypatch.setattr(unet_attention, "MAX_SCORES", 3 * 4 * 5)


def heads(dtype, *, rows=7, keys=5, width=16, number=4):
    generator = torch.Generator().manual_seed(0)
    shapes = (number, rows, width), (number, keys, width), (number, keys, width)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def gradients(attend, inputs, weights):
    attended = attend(*inputs)
    return attended, *torch.autograd.grad((attended.double() * weights).sum(), inputs)


def error(found, exact):
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm())


def test_gradients_are_those_of_finite_differences(few_rows):
    assert torch.autograd.gradcheck(attend_by_rows, heads(torch.float64))


@pytest.mark.parametrize("keys", [77, 256])
def test_bfloat16_is_as_exact_as_the_plain_formula(keys):
    inputs = heads(torch.bfloat16, rows=256, keys=keys, width=40)
    weights = torch.randn(4, 256, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = gradients(
        F.scaled_dot_product_attention, [each.detach().double().requires_grad_() for each in inputs], weights
    )

    def plain(query, key, value):
        return (query * query.shape[-1] ** -0.5 @ key.mT).softmax(-1) @ value

    ours, theirs = gradients(attend_by_rows, inputs, weights), gradients(plain, inputs, weights)
    for found, formula, truth in zip(ours, theirs, exact, strict=True):
        assert error(found, truth) < 1.05 * error(formula, truth) < 0.01


def test_blocks_do_not_change_the_gradient(few_rows, monkeypatch):
    inputs = heads(torch.float64)
    weights = torch.ones(4, 7, 16)
    in_blocks = gradients(attend_by_rows, inputs, weights)
    monkeypatch.setattr(unet_attention, "MAX_SCORES", 2**20)
    for found, whole in zip(in_blocks, gradients(attend_by_rows, inputs, weights), strict=True):
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)


def prediction_and_gradient(unet):
    generator = torch.Generator().manual_seed(0)
    config = unet.config
    sample = torch.randn(2, 4, 16, 16, generator=generator).to(unet.dtype)
    states = torch.randn(2, 77, config.cross_attention_dim, generator=generator).to(unet.dtype)
    states.requires_grad_()
    predicted = unet(sample, torch.tensor([300, 800]), states).sample
    predicted.float().square().mean().backward()
    return predicted.detach(), states.grad


def test_a_unet_is_as_exact_as_with_diffusers_attention():
    torch.manual_seed(0)
    exact = build_unet().double()
    half = copy.deepcopy(exact).bfloat16()
    truth = prediction_and_gradient(exact)
    theirs = prediction_and_gradient(half)
    use_fast_attention(half)
    ours = prediction_and_gradient(half)
    assert {type(each) for each in half.attn_processors.values()} == {UNetAttention}
    for found, library, right in zip(ours, theirs, truth, strict=True):
        assert error(found, right) < 1.2 * error(library, right)


def test_float32_is_diffusers_own_to_the_bit():
    torch.manual_seed(0)
    unet = build_unet()
    before = prediction_and_gradient(unet)
    use_fast_attention(unet)
    for found, expected in zip(prediction_and_gradient(unet), before, strict=True):
        assert torch.equal(found, expected)


def test_another_attention_stays():
    unet = build_unet()
    unet.set_attn_processor(AttnProcessor())
    use_fast_attention(unet)
    assert {type(each) for each in unet.attn_processors.values()} == {AttnProcessor}


def test_masks_are_left_to_diffusers():
    unet = build_unet().bfloat16()
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    states = torch.randn(2, 5, layer.to_q.in_features, dtype=torch.bfloat16)
    mask = torch.tensor([[0.0, 0, 0, -1e4, -1e4]], dtype=torch.bfloat16).expand(2 * layer.heads, 1, 5)
    expected = AttnProcessor2_0()(layer, states, attention_mask=mask)
    assert torch.equal(UNetAttention()(layer, states, attention_mask=mask), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "keys", "width"), SHAPES_AT_512)
def test_real_shapes_are_exact(rows, keys, width, record_property):
    inputs = heads(torch.bfloat16, rows=rows, keys=keys, width=width, number=8)
    weights = torch.randn(8, rows, width, generator=torch.Generator().manual_seed(1))
    exact = gradients(
        F.scaled_dot_product_attention, [each.detach().double().requires_grad_() for each in inputs], weights
    )
    for attend in (F.scaled_dot_product_attention, attend_by_rows):
        begun = time.thread_time()
        found = gradients(attend, inputs, weights)
        record_property(f"seconds of {attend.__name__}", time.thread_time() - begun)
        for ours, truth in zip(found, exact, strict=True):
            assert error(ours, truth) < 0.02
