import torch

from clipgraft.models.base_id import read_cross_attention
from clipgraft.models.cross_attention import key_value_root
from tiny import TEACHER_WIDTH


def test_one_form_gives_the_mean_error_of_all_keys_and_values(base, base_dir):
    """Against a plain loop over the U-Net's own projections."""
    torch.manual_seed(0)
    teacher = torch.randn(40, TEACHER_WIDTH, dtype=torch.float64)
    errors = torch.randn(40, TEACHER_WIDTH, dtype=torch.float64)
    maps = list(read_cross_attention(base_dir).values())
    moment = teacher.T @ teacher
    root = key_value_root(maps, moment).double()
    ratios = []
    for name, module in base.unet.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            with torch.no_grad():
                weight = module.weight.double()
            ratios.append((errors @ weight.T).square().sum() / (teacher @ weight.T).square().sum())
    assert len(ratios) == len(maps) > 0
    expected = torch.stack(ratios).mean()
    found = (errors @ root.T).square().sum() / (teacher @ root.T).square().sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
