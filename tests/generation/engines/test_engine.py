"""Engines make the image that stock diffusers makes."""

import copy

import numpy as np
import pytest
import torch
from engine_world import CPU, PROMPTS, engine_of, generated, pipeline_of

from clipgraft.generation.engines.attach import put_on_engine
from clipgraft.generation.engines.engine import (
    TorchEngine,
    describe_inference,
    engines_at_hand,
    openvino_advice,
    why_no_openvino,
)
from clipgraft.generation.engines.networks import POSITIONS_AT_ONCE, EngineDecoder, EngineUNet, in_chunks
from clipgraft.generation.pipeline import sample
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig
from helpers import image_request
from tiny import build_base


@pytest.mark.integration
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_an_engine_in_float32_makes_stocks_images(name, cache, stock):
    drawn = generated(pipeline_of(build_base(), engine_of(name, cache)))
    # A step of 8 bits at most: sums are made in another order.
    assert np.abs(drawn - stock).max() <= 1


@pytest.mark.integration
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bfloat16_engine_equals_stock_up_to_rounding(name, cache, stock):
    drawn = generated(pipeline_of(build_base(), engine_of(name, cache, torch.bfloat16)))
    assert np.abs(drawn - stock).max() <= 12  # bfloat16 has 8 bits, a picture goes through dozens of layers
    assert np.abs(drawn - stock).mean() < 1.5


@pytest.mark.parametrize("name", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_flatlands_noise_prediction_is_the_same_on_every_engine(name, cache):
    base = FrozenBase.load("flatland")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 24, 17, generator=generator), torch.tensor([321.0])
    states = torch.randn(2, 77, 192, generator=generator)
    with torch.no_grad():
        expected = base.unet(*inputs, states).sample
    put_on_engine(base, engine_of(name, cache))
    found = base.unet(*inputs, encoder_hidden_states=states)[0]
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.integration
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_an_image_does_not_depend_on_its_neighbours(name, cache):
    pipeline = pipeline_of(build_base(), engine_of(name, cache))
    together = generated(pipeline)
    for seed, prompt in enumerate(PROMPTS):
        jobs = [image_request(prompt, seed, num_inference_steps=4, guidance_scale=5.0)]
        alone = np.asarray(next(sample(pipeline, jobs)).image, dtype=int)
        assert np.abs(alone - together[seed]).max() <= 1


@pytest.mark.integration
@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_other_sizes_and_first_images_work_on_an_engine(name, cache, tmp_path):
    pipeline, plain = pipeline_of(build_base(), engine_of(name, cache)), pipeline_of(build_base())
    drawn = generated(pipeline, PROMPTS[:1], height=72, width=40)
    assert np.abs(drawn - generated(plain, PROMPTS[:1], height=72, width=40)).max() <= 1
    first = tmp_path / "first.png"
    next(sample(plain, [image_request("A red ball", 3)])).image.save(first)
    changed = {"init_image": first, "strength": 0.5}
    assert np.abs(generated(pipeline, **changed) - generated(plain, **changed)).max() <= 1


def test_rows_are_run_a_few_at_a_time():
    seen = []

    def run(sample, waves):
        seen.append((len(sample), len(waves)))
        return (sample * 2,)

    side = int(POSITIONS_AT_ONCE**0.5) // 2  # so that four rows fit
    sample = torch.randn(10, 1, side, side)
    assert torch.equal(in_chunks(run, sample, torch.ones(1, 8))[0], sample * 2)
    assert seen == [(4, 1), (4, 1), (2, 1)]


def test_a_copy_of_an_engines_vae_is_torchs():
    base = build_base()
    plain = copy.deepcopy(base.vae)
    put_on_engine(base, TorchEngine(CPU, torch.bfloat16))
    assert isinstance(base.vae.decoder, EngineDecoder)
    assert isinstance(base.unet, EngineUNet)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(base.vae).decode(latents).sample, plain.decode(latents).sample)


def test_engines_at_hand_are_those_that_can_run(tmp_path):
    missing = why_no_openvino(CPU)
    found = engines_at_hand(InferenceConfig(), CPU, tmp_path)
    assert [engine.name for engine in found] == ["torch"] if missing else ["openvino", "torch"]
    assert bool(openvino_advice(CPU)) <= ("not installed" in missing)
    for named in ({"engine": "torch"}, {"compile": True}):
        assert [engine.name for engine in engines_at_hand(InferenceConfig(**named), CPU, tmp_path)] == [
            "torch"
        ]
    assert {engine.dtype for engine in found} <= {torch.float32, torch.bfloat16}  # never float16 on a CPU


@pytest.mark.parametrize(
    ("speed", "device", "message"),
    [
        ({"engine": "tvm"}, "cpu", "'engine': input should be 'auto', 'torch' or 'openvino'; got 'tvm'"),
        ({"engine": "openvino"}, "cuda", "cannot run here: it is for CPUs, the device is cuda"),
        ({"engine": "openvino", "compile": True}, "cpu", "compile is for torch's engine"),
    ],
)
def test_an_engine_that_cannot_be_had_is_refused(speed, device, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        engines_at_hand(InferenceConfig.build(speed), torch.device(device), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_interval": (0.6, 0.6)}, "the second share of the steps must be above the first"),
        ({"guidance_interval": (0.0, 1.5)}, "less than or equal to 1; got 1.5"),
        ({"guidance_interval": (float("nan"), 1.0)}, "finite number; got nan"),
        ({"feature_cache": 0}, "'feature_cache': input should be greater than or equal to 1; got 0"),
    ],
)
def test_bad_inference_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InferenceConfig.build(options)


def test_record_of_inference_is_of_the_engine_at_work():
    record = describe_inference(InferenceConfig(feature_cache=3), TorchEngine(CPU, torch.bfloat16))
    assert (record["engine"], record["dtype"], record["feature_cache"]) == ("torch", "bfloat16", 3)
