"""Engines and shortcuts as a user meets them on the command line."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.cli.doctor import examine
from clipgraft.generation.engines.engine import why_no_openvino
from clipgraft.generation.engines.lora import fuse_lora
from helpers import call, refused

CPU = torch.device("cpu")


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
