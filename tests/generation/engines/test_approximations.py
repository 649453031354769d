"""Approximations equal a naive loop; the command line names and measures them."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from engine_world import CPU, PROMPTS, WHOLE, engine_of, generated, pipeline_of, tiny_base
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.cli.doctor import examine
from clipgraft.generation.engines.attach import put_on_engine
from clipgraft.generation.engines.engine import (
    TorchEngine,
    why_no_openvino,
)
from clipgraft.generation.engines.lora import fuse_lora
from clipgraft.generation.pipeline import sample
from clipgraft.models.base import FrozenBase
from clipgraft.sampling_params import InferenceConfig
from helpers import call, image_request, refused


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.write_base(tmp_path_factory.mktemp("world") / "base")


def generate(base, out, *arguments):
    return call(
        "generate", "A dog", "--base", base, "--steps", 4, "--engine", "torch", "--out", out, *arguments
    )


def pixels(folder):
    with Image.open(next(folder.glob("*.png"))) as image:
        return np.asarray(image, dtype=int)


def write_lora(folder):
    """A LoRA of random weights for the tiny U-Net; returns the U-Net that it belongs to, with it."""
    unet = tiny.build_pipeline().unet
    torch.manual_seed(5)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return unet


def test_approximations_are_named_and_measured(base, tmp_path, capsys):
    script = Path(__file__).parents[3] / "benchmarks" / "compare_approximations.py"
    main = runpy.run_path(str(script))["main"]
    settings = [
        "--guidance-interval",
        "0",
        "0.5",
        "--feature-cache",
        "2",
        "--engine",
        "torch",
        "--steps",
        "4",
    ]
    main(["A dog", "--base", str(base), "--out", str(tmp_path), *settings])
    said = capsys.readouterr()
    assert "guidance from 0% to 50% of the steps alone: changes the image" in said.err
    assert "the whole U-Net once in 2 steps: changes the image" in said.err
    assert "PSNR (dB)" in said.out
    result = json.loads((tmp_path / "approximations.json").read_text())
    error = ((pixels(tmp_path / "with") - pixels(tmp_path / "without")) / 255.0) ** 2
    assert result["images"][0]["psnr"] == pytest.approx(-10 * np.log10(error.mean()))
    assert 0 < result["images"][0]["ssim"] < 1
    row = json.loads((tmp_path / "without" / "images.json").read_text())[0]
    assert (row["scheduler"], row["num_inference_steps"]) == ("dpm++", 25)


def test_reference_is_pndm_with_fifty_steps(base, tmp_path, capsys):
    arguments = ("generate", "A dog", "--base", base, "--engine", "torch", "--out", tmp_path / "out")
    assert call(*arguments, "--reference") == 0
    assert "scheduler pndm, 50 steps: changes the image" in capsys.readouterr().err
    row = json.loads((tmp_path / "out" / "images.json").read_text())[0]
    assert (row["scheduler"], row["num_inference_steps"]) == ("pndm", 50)


def test_other_numbers_of_steps_are_named(base, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    lines = [
        {},
        {"num_inference_steps": 3},
        {"num_inference_steps": 1},
        {"num_inference_steps": 25, "scheduler": "ddim"},
        {"scheduler": "ddim"},
    ]
    prompts.write_text("\n".join(json.dumps({"prompt": "A cat"} | line) for line in lines))
    assert generate(base, tmp_path / "a", "--from-file", prompts) == 0
    named = [line for line in capsys.readouterr().err.splitlines() if "changes the image" in line]
    assert [line.removesuffix(": changes the image") for line in named] == [
        "note: 4 steps",
        "note: 3 steps",
        "note: 1 step",
        "note: scheduler ddim, 25 steps",
        "note: scheduler ddim, 4 steps",
    ]


def test_approximate_image_is_reproduced_to_the_bit(base, tmp_path):
    assert generate(base, tmp_path / "one", "--feature-cache", 2) == 0
    picture = next((tmp_path / "one").glob("*.png"))
    again = ("generate", "--from-image", picture, "--base", base, "--out", tmp_path / "two")
    assert call(*again) == 0
    assert np.array_equal(pixels(tmp_path / "one"), pixels(tmp_path / "two"))


def test_lora_is_fused_and_named(base, tmp_path, capsys):
    write_lora(tmp_path / "lora")
    assert generate(base, tmp_path / "plain") == 0
    assert generate(base, tmp_path / "out", "--lora", tmp_path / "lora") == 0
    assert "LoRA lora: changes the image" in capsys.readouterr().err
    assert not np.array_equal(pixels(tmp_path / "plain"), pixels(tmp_path / "out"))


def test_image_is_reproduced_with_its_own_lora_alone(base, tmp_path, capsys):
    write_lora(tmp_path / "lora")
    other = tmp_path / "other.safetensors"
    [weights] = (tmp_path / "lora").glob("*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(weights).items()}, other)
    assert generate(base, tmp_path / "with", "--lora", tmp_path / "lora") == 0
    assert generate(base, tmp_path / "plain") == 0
    again = ("generate", "--base", base, "--out", tmp_path / "again", "--from-image")
    picture = tmp_path / "with" / "a-dog_seed0.png"
    assert "the LoRA here (sha256" in refused(capsys, *again, picture, "--lora", other)
    assert "generated with a LoRA; name its file" in refused(capsys, *again, picture)
    plain = tmp_path / "plain" / "a-dog_seed0.png"
    assert "generated without a LoRA; leave --lora out" in refused(capsys, *again, plain, "--lora", other)
    assert call(*again, picture, "--lora", tmp_path / "lora") == 0
    assert np.array_equal(pixels(tmp_path / "with"), pixels(tmp_path / "again"))


def test_fused_lora_predicts_what_the_adapter_predicts(tmp_path):
    with_adapter = write_lora(tmp_path / "lora")
    unet = tiny.build_pipeline().unet
    fuse_lora(unet, tmp_path / "lora")
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 77, tiny.TEACHER_WIDTH)
    with torch.no_grad():
        assert torch.allclose(unet(*inputs).sample, with_adapter(*inputs).sample, atol=1e-5)
    assert not any("lora" in name for name, _ in unet.named_parameters())


def test_lora_that_is_none_is_refused(base, tmp_path, capsys):
    arguments = ("generate", "A dog", "--base", base, "--out", tmp_path / "o", "--lora")
    assert "no LoRA at " in refused(capsys, *arguments, "nowhere.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"unet.no_such_block.lora_A.weight": torch.zeros(2, 2)}, other)
    assert "cannot be loaded as a LoRA of this U-Net" in refused(capsys, *arguments, other)
    save_file({"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 2)}, other)
    assert "it has no part for a U-Net" in refused(capsys, *arguments, other)


def test_doctor_says_what_draws():
    finding = next(finding for finding in examine() if finding.what == "images are generated by")
    missing = why_no_openvino(CPU)
    assert finding.value == ("torch" if missing else "OpenVINO")
    assert bool(finding.fix) == ("not installed" in missing)


@pytest.mark.parametrize(
    ("name", "start", "stop"),
    [
        ("torch", 0.0, 0.5),
        ("torch", 0.5, 1.0),
        ("torch", 0.3, 0.8),
        pytest.param("openvino", 0.3, 0.8, marks=pytest.mark.slow),
    ],
)
def test_guidance_interval_equals_a_naive_loop(name, start, stop, cache):
    speed = InferenceConfig(guidance_interval=(start, stop))
    pipeline = pipeline_of(tiny_base(), engine_of(name, cache), speed)
    drawn = generated(pipeline)
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


def test_guidance_interval_lets_images_without_guidance_alone():
    speed = InferenceConfig(guidance_interval=(0.0, 0.5))
    drawn = generated(pipeline_of(tiny_base(), TorchEngine(CPU, torch.float32), speed), guidance_scale=1.0)
    assert np.array_equal(drawn, generated(pipeline_of(tiny_base()), guidance_scale=1.0))


@pytest.mark.parametrize("name", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_feature_cache_equals_a_replaced_deep_feature(name, cache):
    drawn = generated(pipeline_of(tiny_base(), engine_of(name, cache), InferenceConfig(feature_cache=2)))
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
    assert np.abs(drawn - generated(pipeline_of(base))).max() <= 1


def test_feature_cache_starts_anew_with_other_images():
    pipeline = pipeline_of(tiny_base(), TorchEngine(CPU, torch.float32), InferenceConfig(feature_cache=3))
    first = generated(pipeline)
    generated(pipeline, ("A man rides",) * 3, num_inference_steps=1)
    generated(pipeline, ("A man rides",), num_inference_steps=2)
    assert np.array_equal(generated(pipeline), first)


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
    generated(pipeline, PROMPTS[:1], init_image=tmp_path / "red.png", strength=0.5)
    assert rows == [2, 1]  # of four steps the last two, the first of them with guidance


@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["stock", "torch", pytest.param("openvino", marks=pytest.mark.slow)])
@pytest.mark.parametrize("speed", [WHOLE, InferenceConfig(feature_cache=2, guidance_interval=(0.0, 0.5))])
def test_a_distilled_u_net_is_guided_by_its_embedding(name, speed, cache):
    if name == "stock" and speed != WHOLE:
        pytest.skip("stock diffusers has no shortcuts")
    drawn = {}
    for scale in (2.0, 5.0):
        base = distilled_base()
        engine = None if name == "stock" else engine_of(name, cache)
        drawn[scale] = generated(pipeline_of(base, engine, speed), guidance_scale=scale)
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
        generated(pipeline_of(base)), generated(pipeline_of(tiny_base(), TorchEngine(CPU, torch.float32)))
    )


def test_both_approximations_work_together(cache):
    speed = InferenceConfig(feature_cache=2, guidance_interval=(0.0, 0.5))
    drawn = [
        generated(pipeline_of(tiny_base(), engine_of(name, cache), speed)) for name in ("torch", "openvino")
    ]
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
