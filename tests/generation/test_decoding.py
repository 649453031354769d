"""Latents into pictures: a second try in float32, and a safety checker whose verdict is a status."""

import copy

import numpy as np
import pytest
import torch

import clipgraft
import tiny
from clipgraft.generation.pipeline import decode


def test_half_precision_overflow_is_decoded_in_float32():
    pipeline = tiny.build_pipeline()
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipeline.vae.post_quant_conv.weight.mul_(1e4)  # times latents / 0.18: over float16's 65504
    expected, _ = decode(pipeline, latents)
    half = copy.deepcopy(pipeline.vae).half()
    with torch.no_grad():
        assert not torch.isfinite(half.decode(latents.half() / half.config.scaling_factor).sample).all()
    pipeline.vae = half
    found, statuses = decode(pipeline, latents.half())
    assert statuses == ["ok", "ok"]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 3


def test_nan_latents_fail_and_leave_neighbours_alone():
    pipeline = tiny.build_pipeline()
    latents = torch.randn(2, 4, 8, 8)
    latents[1, 0, 0, 0] = float("nan")
    pictures, statuses = decode(pipeline, latents)
    assert statuses == ["ok", "failed_nan"]
    assert np.array_equal(pictures[0], decode(pipeline, latents[:1])[0][0])


def test_nan_latents_let_neighbours_be_decoded_again():
    pipeline = tiny.build_pipeline()
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipeline.vae.post_quant_conv.weight.mul_(1e5)  # times latents / 0.18: over float16's 65504
    pipeline.vae.half()
    with torch.no_grad():
        found = pipeline.vae.decode(latents.half() / pipeline.vae.config.scaling_factor).sample
    assert not any(torch.isfinite(picture).all() for picture in found)
    latents[1, 0, 0, 0] = float("nan")
    assert decode(pipeline, latents.half())[1] == ["ok", "failed_nan"]


@pytest.mark.parametrize(("threshold", "status"), [(-1.0, "blocked"), (1.1, "ok")])
def test_bases_safety_checker_has_its_say(tmp_path, threshold, status):
    base = tiny.write_checked_base(tmp_path / "base", threshold)
    plain = tiny.write_base(tmp_path / "plain")
    found = clipgraft.load(base, device="cpu").generate("A dog", num_inference_steps=1)[0]
    unchecked = clipgraft.load(plain, device="cpu").generate("A dog", num_inference_steps=1)[0]
    assert found.status == status
    assert unchecked.status == "ok"
    expected = np.asarray(unchecked.image) * (status == "ok")
    assert np.array_equal(np.asarray(found.image), expected)


def test_safety_checker_that_is_named_but_not_there_is_said(tmp_path, caplog):
    base = tiny.write_checked_base(tmp_path / "base", 1.1)
    (base / "safety_checker" / "model.safetensors").unlink()
    assert clipgraft.load(base, device="cpu").generate("A dog", num_inference_steps=1)[0].status == "ok"
    assert "pictures are drawn unchecked" in caplog.text


@pytest.mark.parametrize(
    ("level", "status"), [(-3.0, "failed_black"), (0.4, "failed_black"), (0.6, "ok"), (255.0, "ok")]
)
def test_black_is_what_eight_bits_round_to_nothing_else(level, status):
    pipeline = tiny.build_pipeline()
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.zero_()
        pipeline.vae.decoder.conv_out.bias.fill_(level / 127.5 - 1)
    picture, statuses = decode(pipeline, torch.zeros(1, 4, 2, 2))
    assert statuses == [status]
    assert picture.any() == (status == "ok")
