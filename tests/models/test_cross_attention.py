"""A base is known again by its cross-attention, in any precision and layout; another base is not."""

import numpy as np
import pytest
import torch

import tiny
from clipgraft.errors import CheckpointError
from clipgraft.models.base import FrozenBase
from clipgraft.models.configs import BaseRecord
from clipgraft.models.cross_attention import (
    LARGEST_DIFFERENCE,
    SUMS,
    cross_attention_sums,
    knuth_signs,
    kv_metric_sqrt,
    mixed_signs,
    read_cross_attention,
    sums_differ,
)
from real_size import write_single_file
from tiny import TEACHER_WIDTH


@pytest.fixture
def record(base):
    return base.record()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_base_is_known_again_in_any_precision(base_dir, record, dtype):
    loaded = FrozenBase.load(str(base_dir), dtype=dtype)
    difference = sums_differ(record.sums[SUMS], loaded.record().sums[SUMS])
    assert (difference == 0) == (dtype == torch.float32)  # rounded weights, and yet the same base:
    assert loaded.check_record(record) is None


@pytest.mark.parametrize(
    "change", [tiny.halve, lambda folder: tiny.shard(folder / "unet", "diffusion_pytorch_model")]
)
def test_a_base_is_known_again_by_its_files_alone(base_dir, copy, record, change):
    folder = copy(base_dir)
    change(folder)
    loaded = FrozenBase.load(str(folder), components=("tokenizer", "text_encoder"))
    assert loaded.unet is None
    sums = (each.sums[SUMS] for each in (record, loaded.record()))
    assert sums_differ(*sums) < LARGEST_DIFFERENCE / 10
    assert loaded.check_record(record) is None


def test_a_base_in_one_file_has_the_folders_sums(base_dir, record, tmp_path):
    path = write_single_file(base_dir, tmp_path / "base.safetensors")
    sums = cross_attention_sums(read_cross_attention(path))
    assert sums_differ(sums, record.sums[SUMS]) < 1e-6


def test_another_base_is_refused_with_both_names(base, record, tmp_path):
    other = FrozenBase.load(str(tiny.write_base(tmp_path / "other", seed=5)))
    with pytest.raises(
        CheckpointError, match=r"made for another base: .*/base, not .*/other .* differ by \d"
    ):
        other.check_record(record)


def projections(seed: int = 0) -> dict[str, torch.Tensor]:
    """Keys and values of five layers, 64 wide of 48: by diffusers' names."""
    generator = torch.Generator().manual_seed(seed)
    blocks = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.1", "up_blocks.2")
    names = [
        f"{block}.attentions.0.transformer_blocks.0.attn2.to_{what}.weight"
        for block in blocks
        for what in "kv"
    ]
    return {name: torch.randn(64, 48, generator=generator) for name in names}


def exchanged(weights: dict[str, torch.Tensor], first: str, second: str) -> dict[str, torch.Tensor]:
    return weights | {first: weights[second], second: weights[first]}


FIRST, VALUE = (f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_{what}.weight" for what in "kv")
CHANGES = {
    "random, 5 %": lambda w, noise: {name: w[name] + 0.05 * noise[name] for name in w},
    "random, 2 %": lambda w, noise: {name: w[name] + 0.02 * noise[name] for name in w},
    "a constant to all": lambda w, _: {name: weight + 0.05 for name, weight in w.items()},
    "columns alike": lambda w, _: {
        name: weight + 0.05 * torch.arange(48).cos() for name, weight in w.items()
    },
    "rows alike": lambda w, _: {
        name: weight + 0.05 * torch.arange(64).cos()[:, None] for name, weight in w.items()
    },
    "scaled": lambda w, _: {name: weight * 1.05 for name, weight in w.items()},
    "heads of one layer in another order": lambda w, _: (
        w | {FIRST: w[FIRST].roll(16, 0), VALUE: w[VALUE].roll(16, 0)}
    ),
    "keys and values of a layer": lambda w, _: exchanged(w, FIRST, VALUE),
    "keys of two layers": lambda w, _: exchanged(w, FIRST, FIRST.replace("down_blocks.0", "down_blocks.1")),
    "layers below and above": lambda w, _: exchanged(w, FIRST, FIRST.replace("down_blocks.0", "up_blocks.2")),
    "transposed within a layer": lambda w, _: w | {FIRST: w[FIRST].reshape(48, 64).T.contiguous()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_distance_of_sums_is_that_of_the_weights(change):
    """Of 64 sums the squared distance is right within some 2 / sqrt(64) of itself."""
    weights, noise = projections(), projections(1)
    moved = CHANGES[change](weights, noise)
    squared = [float((moved[name] - weight).square().sum()) for name, weight in weights.items()]
    true = (sum(squared) / sum(float(weight.square().sum()) for weight in weights.values())) ** 0.5
    found = sums_differ(cross_attention_sums(weights), cross_attention_sums(moved))
    assert true > 1.5 * LARGEST_DIFFERENCE
    assert found == pytest.approx(true, rel=0.35)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_half_precision_is_far_from_another_base(dtype):
    weights = projections()
    rounded = {name: weight.to(dtype) for name, weight in weights.items()}
    assert (
        0 < sums_differ(cross_attention_sums(weights), cross_attention_sums(rounded)) < LARGEST_DIFFERENCE / 3
    )


def test_order_and_prefix_of_names_have_no_influence():
    weights = projections()
    other = {f"model.{name}": weight for name, weight in reversed(weights.items())}
    assert cross_attention_sums(weights) == cross_attention_sums(other)


def test_signs_are_splitmix64s_bits():
    """The sequence of its authors for state 0: the first outputs."""
    expected = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    signs = (mixed_signs(0, 192) > 0).reshape(3, 64)
    assert tuple(sum(int(bit) << place for place, bit in enumerate(row)) for row in signs) == expected


def test_signs_are_balanced_and_unrelated():
    signs = np.concatenate([mixed_signs(number, 1 << 16) for number in range(4)])
    assert abs(signs.mean()) < 0.01
    for distance in (1, 2, 3, 64, 128, 1 << 16):
        assert abs((signs[distance:] * signs[:-distance]).mean()) < 0.01, distance


def test_older_grafts_are_compared_by_their_own_sums(base, base_dir, tmp_path):
    old = BaseRecord(name="old", sums={})
    old.sums["cross_attention"] = cross_attention_sums(base.unet.state_dict(), knuth_signs)
    assert base.check_record(old) is None
    other = FrozenBase.load(str(tiny.write_base(tmp_path / "other", seed=5)))
    with pytest.raises(CheckpointError, match="made for another base: old"):
        other.check_record(old)


def test_old_sums_are_those_that_were_written():
    """By the first version, of these weights."""
    weights = {"unet.attn2.to_k.weight": torch.arange(128.0).reshape(2, 64)}
    assert cross_attention_sums(weights, knuth_signs)[:24] == "000080c200008042000080c2"


def test_a_base_with_other_than_numbers_is_refused(base, record):
    with torch.no_grad():
        next(w for name, w in base.unet.named_parameters() if "attn2.to_k" in name)[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="another base"):
        base.check_record(record)


def test_a_graft_without_sums_is_taken_with_a_warning(base, caplog):
    base.check_record(BaseRecord(name="flatland", sums={}))
    assert "says nothing of its base's weights; they are not compared" in caplog.text


def test_a_unet_without_cross_attention_is_refused():
    with pytest.raises(CheckpointError, match="no cross-attention, so no text enters it"):
        cross_attention_sums({"conv_in.weight": torch.ones(2)})


def test_missing_or_damaged_unet_weights_are_said(base_dir, copy):
    folder = copy(base_dir)
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors is damaged"):
        read_cross_attention(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"unet holds no weights: it has no diffusion"):
        read_cross_attention(folder)


def test_one_form_gives_the_mean_error_of_all_keys_and_values(base, base_dir):
    """Against a plain loop over the U-Net's own projections."""
    torch.manual_seed(0)
    teacher = torch.randn(40, TEACHER_WIDTH, dtype=torch.float64)
    errors = torch.randn(40, TEACHER_WIDTH, dtype=torch.float64)
    maps = list(read_cross_attention(base_dir).values())
    moment = teacher.T @ teacher
    root = kv_metric_sqrt(maps, moment).double()
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
