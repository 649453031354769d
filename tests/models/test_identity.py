"""A base is known again by its cross-attention, in any precision and layout; another base is not."""

import pytest
import torch

import tiny
from clipgraft.errors import CheckpointError
from clipgraft.models.base import FrozenBase
from clipgraft.models.identity import (
    LARGEST_DIFFERENCE,
    cross_attention_sums,
    read_cross_attention,
    sums_differ,
)
from real_size import write_single_file


@pytest.fixture
def record(base):
    return base.record()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_base_is_known_again_in_any_precision(base_dir, record, dtype):
    loaded = FrozenBase.load(str(base_dir), dtype=dtype)
    difference = sums_differ(record["sums"]["cross_attention"], loaded.record()["sums"]["cross_attention"])
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
    sums = (each["sums"]["cross_attention"] for each in (record, loaded.record()))
    assert sums_differ(*sums) < LARGEST_DIFFERENCE / 10
    assert loaded.check_record(record) is None


def test_a_base_in_one_file_has_the_folders_sums(base_dir, record, tmp_path):
    path = write_single_file(base_dir, tmp_path / "base.safetensors")
    sums = cross_attention_sums(read_cross_attention(path))
    assert sums_differ(sums, record["sums"]["cross_attention"]) < 1e-6


def test_another_base_is_refused_with_both_names(base, record, tmp_path):
    other = FrozenBase.load(str(tiny.write_base(tmp_path / "other", seed=5)))
    with pytest.raises(
        CheckpointError, match=r"made for another base: .*/base, not .*/other .* differ by \d"
    ):
        other.check_record(record)


def test_distance_of_sums_is_that_of_the_weights(base):
    """Of a sketch with 64 sums the squared distance is right within some 2 / sqrt(64) of itself."""
    weights = {"unet.attn2.to_k.weight": torch.randn(512, 96, generator=torch.Generator().manual_seed(0))}
    noise = torch.randn(512, 96, generator=torch.Generator().manual_seed(1))
    moved = {name: weight + 0.05 * noise for name, weight in weights.items()}
    assert 0.03 < sums_differ(cross_attention_sums(weights), cross_attention_sums(moved)) < 0.07


def test_a_base_with_other_than_numbers_is_refused(base, record):
    with torch.no_grad():
        next(w for name, w in base.unet.named_parameters() if "attn2.to_k" in name)[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="another base"):
        base.check_record(record)


def test_a_graft_without_a_record_of_weights_is_taken_with_a_warning(base, caplog):
    base.check_record({"name": "flatland", "revision": "", "sums": {}})
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
