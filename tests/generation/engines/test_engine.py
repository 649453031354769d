"""Engines draw the picture that diffusers draws; shortcuts are what a naive loop would do."""

import copy
import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

import tiny
from clipgraft.files import file_sha256
from clipgraft.generation.engines.attach import prepare_base, put_on_engine, set_approximations
from clipgraft.generation.engines.engine import (
    TorchEngine,
    choose_engine,
    describe_inference,
    openvino_advice,
    why_no_openvino,
)
from clipgraft.generation.engines.networks import POSITIONS_AT_ONCE, EngineDecoder, EngineUNet, in_chunks
from clipgraft.generation.pipeline import build_pipeline, sample
from clipgraft.models.base import FrozenBase
from clipgraft.models.weights import write_folder_atomically
from clipgraft.settings import InferenceConfig
from helpers import image_request

CPU = torch.device("cpu")
PROMPTS = ("A dog runs", "A red ball", "A black cat")
WHOLE = InferenceConfig(engine="torch")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("openvino")


def tiny_base():
    stock = tiny.build_pipeline()
    return FrozenBase(stock.vae, stock.unet, stock.scheduler, stock.tokenizer, stock.text_encoder)


def openvino(cache, dtype=torch.float32):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'clipgraft[openvino]'")
    from clipgraft.generation.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(dtype, cache)


def engine_of(name, cache, dtype=torch.float32):
    return TorchEngine(CPU, dtype) if name == "torch" else openvino(cache, dtype)


def pipeline_of(base, engine=None, speed=WHOLE):
    if engine:
        prepare_base(base, engine, speed)
    pipeline = build_pipeline(base, base.text_encoder)
    if engine:
        set_approximations(pipeline, speed)
    return pipeline


def pictures(pipeline, prompts=PROMPTS, **settings):
    """8-bit pixels as integers, so that differences do not wrap round."""
    settings = {"num_inference_steps": 4, "guidance_scale": 5.0} | settings
    jobs = [image_request(prompt, seed, **settings) for seed, prompt in enumerate(prompts)]
    drawn = sample(pipeline, jobs, batch_size=len(jobs))
    return np.stack([np.asarray(picture.image, dtype=int) for picture in drawn])


@pytest.fixture(scope="module")
def stock():
    return pictures(pipeline_of(tiny_base()))


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_an_engine_in_float32_draws_stocks_pictures(name, cache, stock):
    drawn = pictures(pipeline_of(tiny_base(), engine_of(name, cache)))
    # A step of 8 bits at most: sums are made in another order.
    assert np.abs(drawn - stock).max() <= 1


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bfloat16_engine_equals_stock_up_to_rounding(name, cache, stock):
    drawn = pictures(pipeline_of(tiny_base(), engine_of(name, cache, torch.bfloat16)))
    assert np.abs(drawn - stock).max() <= 12  # bfloat16 has 8 bits, a picture goes through dozens of layers
    assert np.abs(drawn - stock).mean() < 1.5


@pytest.mark.parametrize("name", ["torch", "openvino"])
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


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_a_picture_does_not_depend_on_its_neighbours(name, cache):
    pipeline = pipeline_of(tiny_base(), engine_of(name, cache))
    together = pictures(pipeline)
    for seed, prompt in enumerate(PROMPTS):
        jobs = [image_request(prompt, seed, num_inference_steps=4, guidance_scale=5.0)]
        alone = np.asarray(next(sample(pipeline, jobs)).image, dtype=int)
        assert np.abs(alone - together[seed]).max() <= 1


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_other_sizes_and_first_pictures_work_on_an_engine(name, cache, tmp_path):
    pipeline, plain = pipeline_of(tiny_base(), engine_of(name, cache)), pipeline_of(tiny_base())
    drawn = pictures(pipeline, PROMPTS[:1], height=72, width=40)
    assert np.abs(drawn - pictures(plain, PROMPTS[:1], height=72, width=40)).max() <= 1
    first = tmp_path / "first.png"
    next(sample(plain, [image_request("A red ball", 3)])).image.save(first)
    changed = {"init_image": first, "strength": 0.5}
    assert np.abs(pictures(pipeline, **changed) - pictures(plain, **changed)).max() <= 1


class Layer(torch.nn.Module):
    """A network as small as can be, to try how networks are kept."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.layer = torch.nn.Conv2d(4, 4, 1)
        torch.nn.init.constant_(self.layer.weight, weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, sample):
        return (self.layer(sample),)


def run_layer(engine, weight=1.0):
    """Ones through the layer give four times its weight."""
    run = engine.prepare("a layer", Layer(weight), (torch.ones(1, 4, 9, 9),))
    return float(run(torch.ones(2, 4, 8, 8))[0].mean())


def test_kept_network_is_found_and_damaged_one_converted(tmp_path, capsys):
    assert run_layer(openvino(tmp_path)) == 4
    assert "converting a layer" in capsys.readouterr().err
    kept = next(tmp_path.rglob("*.bin"))
    written = kept.stat().st_mtime_ns
    assert run_layer(openvino(tmp_path)) == 4
    assert "converting" not in capsys.readouterr().err
    assert kept.stat().st_mtime_ns == written
    whole_sum = file_sha256(kept)
    kept.write_bytes(kept.read_bytes()[:-4] + b"oops")
    assert run_layer(openvino(tmp_path)) == 4
    assert "is damaged and is converted again" in " ".join(capsys.readouterr().err.split())
    assert file_sha256(kept) == whole_sum


def test_other_weights_or_another_dtype_are_other_networks(tmp_path):
    assert run_layer(openvino(tmp_path)) == 4
    assert run_layer(openvino(tmp_path), weight=2.0) == 8
    assert run_layer(openvino(tmp_path, torch.bfloat16)) == 4
    assert len(list(tmp_path.iterdir())) == 3


def _as_junk(folder):
    (folder / "network.xml").write_text("junk")
    (folder / "manifest.json").write_text('{"files": {}}')


def _as_signed_junk(folder):
    with write_folder_atomically(folder) as part:
        (part / "network.xml").write_text("junk")
        (part / "network.bin").write_bytes(b"junk")


def _as_file(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


DAMAGE = {
    "manifest is a list": lambda folder: (folder / "manifest.json").write_text("[]"),
    "manifest is deep": lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
    "manifest is gone": lambda folder: (folder / "manifest.json").unlink(),
    "nothing is listed and the network is junk": _as_junk,
    "the network is junk that its manifest lists": _as_signed_junk,
    "the folder is a file": _as_file,
    "the folder is empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_the_damage_a_network_is_converted_anew(damage, tmp_path, capsys):
    assert run_layer(openvino(tmp_path)) == 4
    [folder] = tmp_path.iterdir()
    DAMAGE[damage](folder)
    capsys.readouterr()
    assert run_layer(openvino(tmp_path)) == 4
    assert "is damaged and is converted again" in " ".join(capsys.readouterr().err.split())
    assert run_layer(openvino(tmp_path)) == 4
    assert "converted anew" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_full_disk_keeps_no_network_and_draws_all_the_same(tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    engine = openvino(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert run_layer(engine) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be kept" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_kept_is_used_all_the_same(tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert run_layer(openvino(blocked)) == 4
    assert "cannot be kept for the next time" in " ".join(capsys.readouterr().err.split())


def test_openvino_tells_nobody_what_it_converts():
    pytest.importorskip("openvino", reason="openvino is not installed: pip install 'clipgraft[openvino]'")
    code = (
        "import sys, clipgraft.generation.engines.openvino; from openvino.tools.ovc import telemetry_utils; "
        "print(telemetry_utils.tm.__name__, any('openvino_telemetry.' in name for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() == ["openvino.tools.ovc.telemetry_stub", "False"]


@pytest.mark.parametrize(
    ("name", "start", "stop"),
    [("torch", 0.0, 0.5), ("torch", 0.5, 1.0), ("torch", 0.3, 0.8), ("openvino", 0.3, 0.8)],
)
def test_guidance_interval_equals_a_naive_loop(name, start, stop, cache):
    speed = InferenceConfig(guidance_interval=(start, stop))
    pipeline = pipeline_of(tiny_base(), engine_of(name, cache), speed)
    drawn = pictures(pipeline)
    plain = pipeline_of(tiny_base())
    plain.scheduler.set_timesteps(4)
    latents = torch.cat(
        [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    )
    positive, negative = plain.encode_prompt(list(PROMPTS), CPU, 1, True, [""] * 3)
    with torch.no_grad():
        for step, timestep in enumerate(plain.scheduler.timesteps):
            noise_pred = plain.unet(latents, timestep, positive).sample
            if round(start * 4) <= step < round(stop * 4):
                away = plain.unet(latents, timestep, negative).sample
                noise_pred = away + 5.0 * (noise_pred - away)
            latents = plain.scheduler.step(noise_pred, timestep, latents).prev_sample
        pixels = plain.vae.decode(latents / plain.vae.config.scaling_factor).sample
    expected = ((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255).round().numpy().astype(int)
    assert np.abs(drawn - expected).max() <= 1


def test_guidance_interval_lets_pictures_without_guidance_alone():
    speed = InferenceConfig(guidance_interval=(0.0, 0.5))
    drawn = pictures(pipeline_of(tiny_base(), TorchEngine(CPU, torch.float32), speed), guidance_scale=1.0)
    assert np.array_equal(drawn, pictures(pipeline_of(tiny_base()), guidance_scale=1.0))


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_feature_cache_equals_a_replaced_deep_feature(name, cache):
    drawn = pictures(pipeline_of(tiny_base(), engine_of(name, cache), InferenceConfig(feature_cache=2)))
    base = tiny_base()
    num_calls, kept = 0, None

    def replace_feature(_module, inputs):
        nonlocal num_calls, kept
        hidden, embedding = inputs
        skip = base.unet.conv_in.out_channels
        if num_calls % 2 == 0:
            kept = hidden[:, :-skip]
        num_calls += 1
        return torch.cat([kept, hidden[:, -skip:]], dim=1), embedding

    base.unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(replace_feature)
    assert np.abs(drawn - pictures(pipeline_of(base))).max() <= 1


def test_feature_cache_starts_anew_with_other_pictures():
    pipeline = pipeline_of(tiny_base(), TorchEngine(CPU, torch.float32), InferenceConfig(feature_cache=3))
    first = pictures(pipeline)
    pictures(pipeline, ("A man rides",) * 3, num_inference_steps=1)
    pictures(pipeline, ("A man rides",), num_inference_steps=2)
    assert np.array_equal(pictures(pipeline), first)


@pytest.mark.parametrize("scheduler", ["dpm++", "pndm"])
def test_feature_cache_is_not_carried_over_to_init_images(scheduler, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    settings = {"init_image": tmp_path / "red.png", "strength": 0.5, "scheduler": scheduler}
    job = image_request("A red ball", num_inference_steps=4, **settings)
    found = []
    for jobs in ([job], [image_request("A black cat", num_inference_steps=2), job]):
        base = tiny_base()
        pipeline = pipeline_of(base, TorchEngine(CPU, torch.float32), InferenceConfig(feature_cache=3))
        found.append(list(sample(pipeline, jobs, base_scheduler=base.scheduler))[-1].image)
    assert np.array_equal(*map(np.asarray, found))


def test_guidance_interval_is_of_the_steps_that_are_run(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    base, rows = tiny_base(), []
    base.unet.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    speed = InferenceConfig(guidance_interval=(0.0, 0.5))
    pipeline = pipeline_of(base, TorchEngine(CPU, torch.float32), speed)
    pictures(pipeline, PROMPTS[:1], init_image=tmp_path / "red.png", strength=0.5)
    assert rows == [2, 1]  # of four steps the last two, the first of them with guidance


@pytest.mark.parametrize(
    ("scheduler", "steps", "guided", "others"), [("dpm++", 200, 100, 100), ("pndm", 4, 2, 3)]
)
def test_steps_are_counted_where_timesteps_repeat(scheduler, steps, guided, others):
    base, rows = tiny_base(), []
    base.unet.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    own = base.scheduler
    pipeline = pipeline_of(
        base, TorchEngine(CPU, torch.float32), InferenceConfig(guidance_interval=(0.0, 0.5))
    )
    for _ in range(2):  # the second picture begins to count anew
        rows.clear()
        list(
            sample(
                pipeline,
                [image_request("A dog", num_inference_steps=steps, guidance_scale=5.0, scheduler=scheduler)],
                base_scheduler=own,
            )
        )
        assert len(set(pipeline.scheduler.timesteps.tolist())) < len(rows)
        assert rows == [2] * guided + [1] * others


def distilled_base():
    """A base whose U-Net was told its guidance with the timestep, as LCM's are."""
    base = tiny_base()
    torch.manual_seed(2)
    base.unet = UNet2DConditionModel.from_config(base.unet.config, time_cond_proj_dim=16)
    return FrozenBase(base.vae, base.unet, base.scheduler, base.tokenizer, base.text_encoder)


@pytest.mark.parametrize("name", ["stock", "torch", "openvino"])
@pytest.mark.parametrize("speed", [WHOLE, InferenceConfig(feature_cache=2, guidance_interval=(0.0, 0.5))])
def test_a_distilled_u_net_is_guided_by_its_embedding(name, speed, cache):
    if name == "stock" and speed != WHOLE:
        pytest.skip("stock diffusers has no shortcuts")
    drawn = {}
    for scale in (2.0, 5.0):
        base = distilled_base()
        engine = None if name == "stock" else engine_of(name, cache)
        drawn[scale] = pictures(pipeline_of(base, engine, speed), guidance_scale=scale)
        if speed == WHOLE:
            assert np.abs(drawn[scale] - _distilled_by_hand(scale)).max() <= 1
    assert np.abs(drawn[2.0] - drawn[5.0]).max() > 1


def _distilled_by_hand(scale):
    """A naive loop: one prediction a step, guidance embedded as sines and cosines of (scale - 1) * 1000."""
    base = distilled_base()
    plain = pipeline_of(base)
    plain.scheduler.set_timesteps(4)
    frequencies = torch.exp(torch.arange(8) * -np.log(10000) / 7)
    angles = (scale - 1) * 1000 * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()])[None].expand(3, -1)
    latents = torch.cat(
        [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    )
    states = plain.encode_prompt(list(PROMPTS), CPU, 1, False)[0]
    with torch.no_grad():
        for timestep in plain.scheduler.timesteps:
            noise_pred = base.unet(latents, timestep, states, timestep_cond=embedding).sample
            latents = plain.scheduler.step(noise_pred, timestep, latents).prev_sample
        pixels = plain.vae.decode(latents / plain.vae.config.scaling_factor).sample
    return ((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255).round().numpy().astype(int)


def test_networks_with_feature_cache_off_give_equal_bits():
    base = tiny_base()
    put_on_engine(base, TorchEngine(CPU, torch.float32), has_feature_cache=True)
    assert np.array_equal(
        pictures(pipeline_of(base)), pictures(pipeline_of(tiny_base(), TorchEngine(CPU, torch.float32)))
    )


def test_both_shortcuts_work_together(cache):
    speed = InferenceConfig(feature_cache=2, guidance_interval=(0.0, 0.5))
    drawn = [
        pictures(pipeline_of(tiny_base(), engine_of(name, cache), speed)) for name in ("torch", "openvino")
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1


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
    base = tiny_base()
    plain = copy.deepcopy(base.vae)
    put_on_engine(base, TorchEngine(CPU, torch.bfloat16))
    assert isinstance(base.vae.decoder, EngineDecoder)
    assert isinstance(base.unet, EngineUNet)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(base.vae).decode(latents).sample, plain.decode(latents).sample)


def test_default_engine_is_openvino_where_it_is_there(tmp_path):
    missing = why_no_openvino(CPU)
    chosen = choose_engine(InferenceConfig(), CPU, tmp_path)
    assert chosen.name == ("torch" if missing else "openvino")
    assert bool(openvino_advice(CPU)) == ("not installed" in missing)
    assert choose_engine(InferenceConfig(engine="torch"), CPU, tmp_path).name == "torch"
    assert chosen.dtype in (torch.float32, torch.bfloat16)  # never float16 on a CPU


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
        choose_engine(InferenceConfig.build(speed), torch.device(device), tmp_path)


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


def test_record_of_inference_has_no_path(tmp_path):
    lora = tmp_path / "secret-user" / "lora.safetensors"
    lora.parent.mkdir()
    lora.write_bytes(b"weights")
    config = InferenceConfig(lora=str(lora), feature_cache=3)
    record = describe_inference(config, TorchEngine(CPU, torch.bfloat16))
    assert "secret-user" not in json.dumps(record)
    assert record["lora_sha256"] == file_sha256(lora)
    assert (record["engine"], record["dtype"], record["feature_cache"]) == ("torch", "bfloat16", 3)


def test_processes_may_convert_at_once(tmp_path):
    own, others = openvino(tmp_path), openvino(tmp_path)
    keep = own._keep

    def keep_after_the_other(model, folder):
        run_layer(others)
        keep(model, folder)

    own._keep = keep_after_the_other
    assert run_layer(own) == 4
    assert len(list(tmp_path.iterdir())) == 1
