"""LoRA files that cannot be used are refused in one line."""

import sys

import pytest
import torch
from safetensors.torch import save_file

import tiny
from clipgraft.config import load_recipe
from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.generation.lora_files import fuse_lora, read_lora
from clipgraft.generation.metadata import request_of
from clipgraft.sampling_params import Lora, SamplingParams
from helpers import image_request, refused
from lora_world import write_kohya

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def pair(name, rank=2, size=(8, 24), ending=".weight"):
    down, up = torch.randn(rank, size[1]), torch.randn(size[0], rank)
    return {f"{name}.lora_down{ending}": down, f"{name}.lora_up{ending}": up}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{LAYER}.hada_w1_a": torch.zeros(2, 2)}, r"is a LoHa \(LyCORIS\), with keys such as 'lora_unet"),
        ({f"{LAYER}.lokr_w1": torch.zeros(2, 2)}, r"is a LoKr \(LyCORIS\)"),
        (pair(LAYER) | {f"{LAYER}.dora_scale": torch.zeros(8, 1)}, "is a DoRA"),
        (pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "is a LoRA for SDXL"),
        ({"emb_params": torch.zeros(2, 24)}, "is an embedding; name it with --embedding"),
        ({"base_model.model.to_k.lora_A.weight": torch.zeros(2, 2)}, "neither kohya's nor diffusers' names"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(2)}, r"has 1 key \(model\.diffusion_model"),
        (pair(LAYER) | {"noise": torch.zeros(2), f"{LAYER}.diff": torch.zeros(2)}, r"has 2 keys \(.*noise"),
        ({f"{LAYER}.alpha": torch.tensor(1.0)}, "is damaged: unet.* has no down weights"),
        (pair(LAYER) | {f"{LAYER}.lora_up.weight": torch.zeros(4, 3)}, "which have no rank in common"),
        ({f"{LAYER}.lora_down.weight": torch.full((2, 4), float("nan"))}, "holds NaN or infinity"),
        (pair(LAYER) | {f"{LAYER}.alpha": torch.zeros(2)}, "'s alpha is no number"),
        ({}, "is no LoRA: it holds no weights"),
    ],
)  # fmt: skip
def test_other_files_are_named(tensors, message, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{", "its metadata"),
        ("[]", "its metadata"),
        ('{"unet.lora_alpha": "8"}', "'lora_alpha': input should be a valid number; got '8'"),
        ('{"unet.lora_alpha": NaN}', "its metadata"),
        ('{"unet.use_dora": true}', "'use_dora'"),
        ('{"unet.alpha_pattern": {"(a+)+$": 1.0}}', "expected the end of a layer's name"),
    ],
)
def test_damaged_settings_of_peft_are_one_line(settings, message, tmp_path):
    layer = "unet.mid_block.attentions.0.proj_in"
    weights = {f"{layer}.lora_A.weight": torch.zeros(2, 4), f"{layer}.lora_B.weight": torch.zeros(4, 2)}
    save_file(weights, tmp_path / "x.safetensors", {"lora_adapter_metadata": settings})
    with pytest.raises(CheckpointError, match=message):
        read_lora(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("lora_unet_input_blocks_1_1_proj_in", (8, 8), "changes 1 unet layer .input_blocks_1_1_proj_in"),
        (LAYER, (8, 768), "attn2_to_k is 8x768, this base's 8x24"),
        (LAYER, (320, 24), "attn2_to_k is 320x24, this base's 8x24"),
    ],
)  # fmt: skip
def test_lora_for_another_base_is_named_by_its_layers(name, size, message, tmp_path):
    save_file(pair(name, size=size), tmp_path / "x.safetensors")
    unet = tiny.build_pipeline().unet
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"is a LoRA for another base: .*{message}"):
        fuse_lora(unet, read_lora(tmp_path / "x.safetensors"), 1.0, "unet")
    assert all(torch.equal(before[key], value) for key, value in unet.state_dict().items())


def test_files_are_checked_before_a_base_is_loaded(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"pickled")
    (tmp_path / "x.txt").write_bytes(b"text")
    with pytest.raises(MissingFileError, match=r"no LoRA at .*nowhere\.safetensors; name a "):
        image_request("A dog", loras=["nowhere.safetensors"])
    with pytest.raises(CheckpointError, match=r"x\.pt is pickled, and may run code when opened"):
        image_request("A dog", loras=[tmp_path / "x.pt"])
    with pytest.raises(CheckpointError, match=r"x\.txt is not a \.safetensors file"):
        image_request("A dog", loras=[tmp_path / "x.txt"])
    with pytest.raises(
        MissingFileError, match=rf"folder {tmp_path} has no pytorch_lora_weights\.safetensors"
    ):
        image_request("A dog", loras=[tmp_path])


@pytest.mark.parametrize(
    ("loras", "message"),
    [
        (["fur:nan"], r"'loras\.0\.strength': input should be .*; got nan"),
        (["fur:11"], "less than or equal to 10; got 11.0"),
        (["fur:1:-inf"], r"'loras\.0\.text_strength'.*; got -inf"),
        (["fur"] * 10_000, r"list should have at most 32 items.*; got \(.{,200}$"),
        ([{"file": "fur", "weight": 1.0}], r"unknown setting 'loras\.0\.weight'"),
        ([""], r"'loras\.0\.file': value should have at least 1"),
        (5, "should be a list; got 5"),
    ],
)
def test_bad_strengths_are_one_line(loras, message):
    with pytest.raises(UserError, match=message):
        SamplingParams.build({"loras": loras})


@pytest.mark.parametrize(
    ("text", "file", "strengths"),
    [
        ("fur", "fur", (1.0, 1.0)),
        ("fur:0.5", "fur", (0.5, 0.5)),
        ("fur:-.5:1e-1", "fur", (-0.5, 0.1)),
        ("C:\\fur.safetensors:2", "C:\\fur.safetensors", (2.0, 2.0)),
        ("a:b/fur", "a:b/fur", (1.0, 1.0)),
    ],
)
def test_text_of_a_lora_may_hold_colons(text, file, strengths, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [lora] = SamplingParams.build({"loras": text}).loras
    assert (lora.file, tuple(lora.strengths.values())) == (str(tmp_path / file), strengths)


def test_file_whose_name_ends_like_a_strength_is_itself(tmp_path):
    file = write_kohya(tmp_path / "fur:0.5")
    assert SamplingParams.build({"loras": [file]}).loras == (Lora(file=str(file)),)


def test_peft_is_not_needed(tmp_path, monkeypatch):
    unet, own = (tiny.build_pipeline().unet for _ in range(2))
    file = write_kohya(tmp_path / "fur.safetensors")
    monkeypatch.setitem(sys.modules, "peft", None)
    fuse_lora(unet, read_lora(file), 1.0, "unet")
    assert not torch.equal(unet.mid_block.resnets[0].conv1.weight, own.mid_block.resnets[0].conv1.weight)


def test_recipe_of_an_earlier_version_names_its_lora(tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[generate]\nlora = "/models/fur.safetensors"\n')
    with pytest.raises(UserError, match=r"'generate\.lora' is called 'generate\.loras' now"):
        load_recipe(recipe)
    (tmp_path / "metrics.json").write_text("{}")
    assert load_recipe(recipe).generate.loras == (Lora(file="/models/fur.safetensors"),)
    recipe.write_text('[generate]\nlora = ""\n')
    assert load_recipe(recipe).generate.loras == ()


def test_record_of_an_earlier_version_is_of_the_unet(tmp_path):
    file = write_kohya(tmp_path / "fur.safetensors")
    job = image_request("A dog", num_inference_steps=2, guidance_scale=2.0, loras=[file]).as_record()
    [lora] = job.pop("loras")
    record = {"job": job, "models": {"lora_sha256": lora["sha256"]}}
    [found] = request_of(record, SamplingParams(loras=(Lora(file=str(file)),))).params.loras
    assert found == Lora(file=str(file), strength=1.0, text_strength=0.0)
    with pytest.raises(UserError, match=r"made with a LoRA '' .* name its file with --lora"):
        request_of(record, SamplingParams())


def test_damaged_lora_is_one_line_of_the_command(base, tmp_path, capsys):
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    options = ("--base", base, "--out", tmp_path / "out", "--engine", "torch", "--steps", 1)
    found = refused(capsys, "generate", "A dog", *options, "--lora", tmp_path / "x.safetensors")
    assert "is damaged or no safetensors file" in found
