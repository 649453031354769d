"""Norms in half precision against the library under autocast."""

import pytest
import torch
from torch import nn

from clipgraft.models.half_norms import keep_norms_in_half


@pytest.mark.parametrize("norm", [nn.GroupNorm(4, 16), nn.LayerNorm(6), nn.GroupNorm(2, 16, affine=False)])
def test_norms_are_the_librarys_in_their_inputs_dtype(norm):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    x = (3 * torch.randn(8, 16, 6) + 1).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        expected = nn.Sequential(norm)(x.float())
        keep_norms_in_half(model := nn.Sequential(norm))
        found = model(x)
    assert (expected.dtype, found.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)


def test_float32_input_and_gradients_stay_float32():
    model = nn.Sequential(nn.GroupNorm(2, 4))
    x = torch.randn(3, 4, 5)
    expected = model(x)
    keep_norms_in_half(model)
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    model(x.bfloat16()).float().square().sum().backward()
    assert model[0].weight.grad.dtype == torch.float32
