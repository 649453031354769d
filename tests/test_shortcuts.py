"""Engines and shortcuts as a user meets them on the command line."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file

import tiny
from clipgraft.generation.engines import why_no_openvino
from clipgraft.generation.lora import fuse_lora
from clipgraft.stages.doctor import examine
from test_cli import call, refused

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


def test_each_shortcut_says_its_class_and_compare_says_what_it_costs(base, tmp_path, capsys):
    assert generate(base, tmp_path, "--guidance-interval", 0, 0.5, "--feature-cache", 2, "--compare") == 0
    said = capsys.readouterr()
    assert "guidance from 0% to 50% of the steps alone: class C, another picture" in said.err
    assert "the whole U-Net once in 2 steps: class C, another picture" in said.err
    assert "PSNR (dB)" in said.out
    result = json.loads((tmp_path / "shortcuts.json").read_text())
    with_, without = pixels(tmp_path / "with"), pixels(tmp_path / "without")
    error = ((with_ - without) / 255.0) ** 2
    assert result["pictures"][0]["psnr"] == pytest.approx(-10 * np.log10(error.mean()))
    assert 0 < result["pictures"][0]["ssim"] < 1


def test_reference_is_the_bases_own_scheduler_with_fifty_steps(base, tmp_path, capsys):
    assert generate(base, tmp_path / "out", "--reference") == 0
    assert "scheduler pndm, 50 steps: class C" in capsys.readouterr().err
    row = json.loads((tmp_path / "out" / "images.json").read_text())[0]
    assert (row["scheduler"], row["num_inference_steps"]) == ("pndm", 50)


def test_compare_without_a_shortcut_is_refused(base, tmp_path, capsys):
    arguments = ("generate", "A dog", "--base", base, "--out", tmp_path / "o", "--compare")
    assert "nothing to compare: no shortcut is named" in refused(capsys, *arguments)


def test_picture_with_shortcuts_is_drawn_again_to_the_bit(base, tmp_path):
    assert generate(base, tmp_path / "one", "--feature-cache", 2) == 0
    picture = next((tmp_path / "one").glob("*.png"))
    again = ("generate", "--from-image", picture, "--base", base, "--out", tmp_path / "two")
    assert call(*again) == 0
    assert np.array_equal(pixels(tmp_path / "one"), pixels(tmp_path / "two"))


def test_lora_is_fused_and_named_by_its_class(base, tmp_path, capsys):
    write_lora(tmp_path / "lora")
    assert generate(base, tmp_path / "plain") == 0
    assert generate(base, tmp_path / "out", "--lora", tmp_path / "lora") == 0
    assert "LoRA lora: class C, another picture" in capsys.readouterr().err
    assert not np.array_equal(pixels(tmp_path / "plain"), pixels(tmp_path / "out"))


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
    assert "no LoRA at nowhere" in refused(capsys, *arguments, "nowhere.safetensors")
    other = tmp_path / "other.safetensors"
    save_file({"unet.no_such_block.lora_A.weight": torch.zeros(2, 2)}, other)
    assert "cannot be loaded as a LoRA of this U-Net" in refused(capsys, *arguments, other)
    save_file({"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 2)}, other)
    assert "it has no part for a U-Net" in refused(capsys, *arguments, other)


def test_doctor_says_what_draws():
    finding = next(finding for finding in examine() if finding.what == "drawing runs on")
    missing = why_no_openvino(CPU)
    assert finding.value == ("torch" if missing else "OpenVINO")
    assert bool(finding.fix) == ("not installed" in missing)
