"""Engines and shortcuts as a user meets them on the command line."""

import json

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


def test_reference_is_stable_diffusions_own_scheduler_with_fifty_steps(base, tmp_path, capsys):
    arguments = ("generate", "A dog", "--base", base, "--engine", "torch", "--out", tmp_path / "out")
    assert call(*arguments, "--reference") == 0
    assert "scheduler pndm, 50 steps: class C" in capsys.readouterr().err
    row = json.loads((tmp_path / "out" / "images.json").read_text())[0]
    assert (row["scheduler"], row["num_inference_steps"]) == ("pndm", 50)


def test_compare_without_a_shortcut_is_refused(base, tmp_path, capsys):
    arguments = ("generate", "A dog", "--base", base, "--out", tmp_path / "o", "--compare")
    assert "nothing to compare: no shortcut is named" in refused(capsys, *arguments)


def test_other_numbers_of_steps_are_named_and_compared_with_the_default(base, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    lines = [{}, {"steps": 3}, {"steps": 1}, {"steps": 25, "scheduler": "ddim"}, {"scheduler": "ddim"}]
    prompts.write_text("\n".join(json.dumps({"prompt": "A cat"} | line) for line in lines))
    assert generate(base, tmp_path / "a", "--from-file", prompts) == 0
    named = [line for line in capsys.readouterr().err.splitlines() if "class C" in line]
    assert [line.removesuffix(": class C, another picture") for line in named] == [
        "note: 4 steps",
        "note: 3 steps",
        "note: 1 step",
        "note: scheduler ddim, 25 steps",
        "note: scheduler ddim, 4 steps",
    ]
    assert generate(base, tmp_path / "b", "--compare") == 0
    [row] = json.loads((tmp_path / "b" / "without" / "images.json").read_text())
    assert row["num_inference_steps"] == 25


def test_comparison_of_a_scheduler_is_with_the_default_one(base, tmp_path):
    assert generate(base, tmp_path, "--scheduler", "ddim", "--compare") == 0
    found = {
        name: json.loads((tmp_path / name / "images.json").read_text())[0] for name in ("with", "without")
    }
    assert [(row["scheduler"], row["num_inference_steps"]) for row in found.values()] == [
        ("ddim", 4),
        ("dpm++", 25),
    ]
    assert not np.array_equal(pixels(tmp_path / "with"), pixels(tmp_path / "without"))


def test_comparison_leaves_out_pairs_that_are_not_there_and_says_so(tmp_path, capsys):
    base = tiny.write_checked_base(tmp_path / "base", threshold=-1.0)
    assert generate(base, tmp_path / "out", "--compare") == 2
    assert "1 of 1 pairs left out: a picture of theirs is not there" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "shortcuts.json").read_text())["pictures"] == []


def test_dry_run_of_a_comparison_writes_no_result(base, tmp_path):
    assert generate(base, tmp_path, "--compare", "--dry-run") == 0
    assert not (tmp_path / "shortcuts.json").exists()


def test_of_several_processes_the_first_alone_writes_and_prints_a_comparison(
    base, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    capsys.readouterr()
    assert generate(base, tmp_path, "--compare", "--json") == 0
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "shortcuts.json").exists()


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


def test_picture_is_drawn_again_with_its_own_lora_alone(base, tmp_path, capsys):
    write_lora(tmp_path / "lora")
    other = tmp_path / "other.safetensors"
    [weights] = (tmp_path / "lora").glob("*.safetensors")
    save_file({name: 2 * weight for name, weight in load_file(weights).items()}, other)
    assert generate(base, tmp_path / "with", "--lora", tmp_path / "lora") == 0
    assert generate(base, tmp_path / "plain") == 0
    again = ("generate", "--base", base, "--out", tmp_path / "again", "--from-image")
    picture = tmp_path / "with" / "a-dog_seed0.png"
    assert "the LoRA here (sha256" in refused(capsys, *again, picture, "--lora", other)
    assert "drawn with a LoRA; name its file" in refused(capsys, *again, picture)
    plain = tmp_path / "plain" / "a-dog_seed0.png"
    assert "drawn without a LoRA; leave --lora out" in refused(capsys, *again, plain, "--lora", other)
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
