"""U-Nets in INT8: computed in 8 bits, calibrated on the first prompts, kept; refused where of no use."""

import json
import shutil

import numpy as np
import pytest
import torch
from engine_world import CPU, generated, pipeline_of
from PIL import Image

import tiny
from clipgraft.generation.engines.engine import engines_at_hand, why_no_int8, why_no_openvino
from clipgraft.generation.pipeline import CALIBRATION_STEPS
from clipgraft.sampling_params import InferenceConfig
from helpers import call, refused
from tiny import build_base

INT8 = InferenceConfig(quantize="int8")
MISSING = why_no_openvino(CPU) or why_no_int8()
needs_int8 = pytest.mark.skipif(bool(MISSING), reason=f"no INT8: {MISSING}")


class Layer(torch.nn.Module):
    """One layer, a reshaped one for `MatMul`; named as in a U-Net."""

    def __init__(self, layer):
        super().__init__()
        self.proj_out = layer

    def forward(self, sample):
        is_linear = isinstance(self.proj_out, torch.nn.Linear)
        return (self.proj_out(sample.flatten(2).transpose(1, 2) if is_linear else sample),)


def prepared(layer, cache):
    from clipgraft.generation.engines.int8 import Int8Engine

    example = torch.ones(1, layer.weight.shape[1], 9, 9)
    return Int8Engine(torch.float32, cache).prepare_unet("a layer", Layer(layer), (example,))


def by_hand(layer, sample, largest):
    """The layer on integers: round both factors to 8 bits, multiply exactly, scale."""
    from clipgraft.generation.engines.int8 import MARGIN

    weight = layer.weight.detach().double()
    scales = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1)) / 127
    unit = MARGIN * largest / 127
    whole = torch.round(sample.double() / unit).clamp(-128, 127), torch.round(weight / scales)
    if isinstance(layer, torch.nn.Linear):
        product = whole[0].flatten(2).transpose(1, 2) @ whole[1].T
        return product * unit * scales.flatten() + layer.bias.detach()
    product = torch.nn.functional.conv2d(*whole, padding=layer.padding)
    return product * unit * scales.reshape(1, -1, 1, 1) + layer.bias.detach().reshape(1, -1, 1, 1)


@needs_int8
@pytest.mark.parametrize("layer", [torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.Linear(16, 32)])
def test_a_layer_in_int8_equals_integers_by_hand(layer, tmp_path):
    run = prepared(layer, tmp_path)
    seen = [scale * torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(7)) for scale in (1, 3)]
    with torch.no_grad():
        exact = Layer(layer)(seen[1])[0]
    assert torch.allclose(run(seen[0])[0], exact / 3 + run(seen[0])[0] - run(seen[1])[0] / 3, atol=1e-5)
    assert torch.allclose(run(seen[1])[0], exact, atol=1e-5)  # until it is calibrated
    run.finish()
    found, expected = run(seen[1])[0].double(), by_hand(layer, seen[1], seen[1].abs().max())
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found - exact).abs().max() > 1e-3 * exact.abs().max()  # 8 bits are not exact


@needs_int8
def test_of_two_processes_both_use_the_first_calibration(tmp_path):
    layer, sample = torch.nn.Conv2d(16, 32, 3), torch.ones(1, 16, 8, 8)
    first, second = prepared(layer, tmp_path), prepared(layer, tmp_path)
    first(sample)
    second(10 * sample)
    first.finish()
    second.finish()
    assert first.calibration == second.calibration
    assert torch.equal(first(sample)[0], second(sample)[0])


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A cache with the tiny U-Net in INT8, and the images that calibrated it and followed."""
    cache = tmp_path_factory.mktemp("calibrated")
    return cache, generated(on_int8(cache))


def on_int8(cache, speed=INT8):
    from clipgraft.generation.engines.int8 import Int8Engine

    return pipeline_of(build_base(), Int8Engine(torch.float32, cache), speed)


def network_in_int8(cache):
    [path] = [path for path in cache.rglob("*.xml") if "FakeQuantize" in path.read_text()]
    return path


@needs_int8
def test_layers_but_the_first_and_last_are_computed_in_8_bits(calibrated):
    import openvino as ov

    core, unet = ov.Core(), build_base().unet
    model = core.read_model(network_in_int8(calibrated[0]))
    shapes = [2, 4, 8, 8], [1, unet.config.block_out_channels[0]], [2, 77, unet.config.cross_attention_dim]
    model.reshape(dict(zip(model.inputs, map(list, shapes), strict=True)))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = {"Convolution", "FullyConnected"}
    found = {}
    for node in compiled.get_runtime_model().get_ops():
        info = {name: str(value.astype(str)) for name, value in node.get_rt_info().items()}
        if info["layerType"] in kinds:
            found[node.get_friendly_name()] = info["runtimePrecision"]
    in_float = [name for name, precision in found.items() if precision not in ("i8", "u8")]
    assert len(found) - len(in_float) > 25
    assert all(any(kept in name for kept in ("conv_in", "conv_out", "time_emb")) for name in in_float)
    assert sum("conv_" in name and "shortcut" not in name for name in in_float) == 2


@needs_int8
@pytest.mark.parametrize("timestep", [1.0, 321.0, 999.0])
def test_noise_prediction_in_int8_is_near_floats(timestep, calibrated):
    generator = torch.Generator().manual_seed(0)
    sample, states = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 77, 24, generator=generator)
    with torch.no_grad():
        exact = build_base().unet(sample, timestep, states).sample
    error = on_int8(calibrated[0]).unet(sample, timestep, states)[0] - exact
    assert 0.01 < error.std() / exact.std() < 0.2  # of random weights in narrow layers; flatland's is less


@needs_int8
def test_the_kept_network_gives_equal_bits(calibrated, stock, capsys):
    cache, drawn = calibrated
    assert 0 < np.abs(drawn - stock).mean() < 8
    assert np.array_equal(generated(on_int8(cache)), drawn)
    assert "INT8" not in capsys.readouterr().err


@needs_int8
def test_a_damaged_network_is_calibrated_anew(calibrated, tmp_path, capsys):
    shutil.copytree(calibrated[0], tmp_path, dirs_exist_ok=True)
    weights = network_in_int8(tmp_path).with_name("network.bin")
    weights.write_bytes(weights.read_bytes()[:-4] + b"oops")
    drawn = generated(on_int8(tmp_path))
    said = " ".join(capsys.readouterr().err.split())
    assert "the U-Net in INT8 kept for OpenVINO is damaged and is calibrated again" in said
    assert f"INT8 calibrated on 2 prompts in {CALIBRATION_STEPS} steps: " in said
    assert np.array_equal(drawn, calibrated[1])


@needs_int8
@pytest.mark.parametrize("repeats", [1, 12])  # 12: in chunks of 77 tokens
def test_other_sizes_and_long_prompts_share_a_calibration(repeats, calibrated, capsys):
    settings = {
        "height": 72,
        "width": 40,
        "guidance_scale": 1.0,
        "prompts": ["A dog runs on a beach. " * repeats],
    }
    drawn, exact = (
        generated(each, **settings) for each in (on_int8(calibrated[0]), pipeline_of(build_base()))
    )
    assert 0 < np.abs(drawn - exact).mean() < 2
    assert "calibrat" not in capsys.readouterr().err


@pytest.fixture
def converted(calibrated, tmp_path):
    """A cache with the networks as converted."""
    cache = shutil.copytree(calibrated[0], tmp_path / "converted")
    shutil.rmtree(network_in_int8(cache).parent)
    return cache


@pytest.mark.slow
@needs_int8
def test_a_feature_cache_is_calibrated_with_both_networks(tmp_path):
    drawn = generated(on_int8(tmp_path, InferenceConfig(quantize="int8", feature_cache=2)))
    assert sum("FakeQuantize" in path.read_text() for path in tmp_path.rglob("*.xml")) == 2
    engine = engines_at_hand(InferenceConfig(engine="torch"), CPU, tmp_path)[0]
    exact = generated(pipeline_of(build_base(), engine, InferenceConfig(feature_cache=2)))
    assert 0 < np.abs(drawn - exact).mean() < 8


@needs_int8
def test_calibration_goes_from_noise_to_image_whatever_is_asked(converted, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    pipeline, rows = on_int8(converted), []
    forward = pipeline.unet.forward
    pipeline.unet.forward = lambda sample, *rest, **named: (
        rows.append(len(sample)),
        forward(sample, *rest, **named),
    )[1]
    generated(pipeline, init_image=tmp_path / "red.png", strength=0.5)
    assert rows == [4] * CALIBRATION_STEPS + [6] * 2  # two guided images, then all three


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write_base(tmp_path_factory.mktemp("world") / "base")


@needs_int8
def test_an_image_in_int8_is_named_recorded_and_reproduced(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = ("generate", "A dog", "--base", base, "--steps", 2, "--out", tmp_path / "one", "--quantize", "int8")
    assert call(*one) == 0
    said = capsys.readouterr().err
    assert "note: the U-Net in INT8: changes the image" in said
    assert f"note: INT8 calibrated on 1 prompt in {CALIBRATION_STEPS} steps: " in said
    picture = next((tmp_path / "one").glob("*.png"))
    with Image.open(picture) as image:
        models = json.loads(image.text["clipgraft"])["models"]
    assert (models["quantize"], models["engine"]) == ("int8", "openvino")
    assert len(models["calibration"]) == 16
    again = ("generate", "--from-image", picture, "--base", base, "--out")
    assert call(*again, tmp_path / "two") == 0
    assert "on other prompts" not in capsys.readouterr().err
    assert pixels(tmp_path / "two").tobytes() == pixels(tmp_path / "one").tobytes()
    shutil.rmtree(network_in_int8(tmp_path / "cache").parent)
    assert (
        call("generate", "A red kite", "--base", base, "--out", tmp_path / "other", "--quantize", "int8") == 0
    )
    assert call(*again, tmp_path / "three") == 0
    assert "INT8 was calibrated on other prompts then, so the image differs" in capsys.readouterr().err
    assert pixels(tmp_path / "three").tobytes() != pixels(tmp_path / "one").tobytes()  # compiled anew


def pixels(folder):
    with Image.open(next(folder.glob("*.png"))) as image:
        return np.asarray(image, dtype=int)


@pytest.mark.parametrize(
    ("speed", "device", "message"),
    [
        (
            {"engine": "torch"},
            "cpu",
            "quantize 'int8' runs on OpenVINO; leave out engine 'torch' and compile",
        ),
        ({"compile": True}, "cpu", "quantize 'int8' runs on OpenVINO; leave out engine 'torch' and compile"),
        ({}, "cuda", "quantize 'int8' cannot run here: it is for CPUs, the device is cuda; leave it out"),
        ({"quantize": "int4"}, "cpu", "'quantize': input should be 'none' or 'int8'; got 'int4'"),
    ],
)
def test_int8_that_cannot_be_had_is_refused(speed, device, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        engines_at_hand(InferenceConfig.build({"quantize": "int8"} | speed), torch.device(device), tmp_path)


def test_int8_is_refused_where_the_cpu_gains_nothing(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    line = refused(capsys, "generate", "A dog", "--base", base, "--out", tmp_path, "--quantize", "int8")
    missing = (
        why_no_openvino(CPU) or "this CPU has no VNNI or AMX instructions, without which INT8 is no faster"
    )
    assert line == f"error: quantize 'int8' cannot run here: {missing}; leave it out"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx_vnni": True}, raising=False)
    assert not why_no_int8()
