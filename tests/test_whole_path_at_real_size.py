"""The whole path at Stable Diffusion v1.5's and CLIP B/32's exact shapes, with random weights."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import real_size
import tiny
from clipgraft.device import cpu_gains_from_bf16
from clipgraft.evaluation.results import Evaluation
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from clipgraft.runs.run import STAGES

MAX_PEAK_BYTES = 8e9


def run_measured(*arguments: object) -> int:
    """Run the command line in a process of its own; return its peak memory in bytes."""
    process = subprocess.Popen([sys.executable, "-m", "clipgraft", *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return usage.ru_maxrss * 1024


@pytest.fixture(scope="module")
def real_models(tmp_path_factory) -> Path:
    """Stable Diffusion v1.5's base and a ControlNet for it, an image and a mask."""
    folder = tmp_path_factory.mktemp("real")
    dtype = torch.bfloat16 if cpu_gains_from_bf16() else torch.float32
    real_size.write_sd15_checkpoint(folder / "sd15", dtype)
    real_size.write_sd15_controlnet(folder / "controlnet", dtype)
    mask = Image.new("RGB", (512, 512))
    ImageDraw.Draw(mask).rectangle((128, 128, 300, 400), fill="white")
    mask.save(folder / "mask.png")
    Image.effect_noise((512, 512), 60).convert("RGB").save(folder / "picture.png")
    return folder


@pytest.mark.slow
def test_bridge_and_generation_run_at_real_size_within_8_gb(tmp_path: Path):
    dtype = torch.bfloat16 if cpu_gains_from_bf16() else torch.float32
    base = real_size.write_sd15_checkpoint(tmp_path / "sd15", dtype)
    clip = real_size.write_clip_b32(tmp_path / "clip")
    data = tiny.write_flickr8k(tmp_path / "data")
    bridged = run_measured(
        *("bridge", "--base", base, "--clip", clip, "--data", data, "--out", tmp_path / "bridge"),
        *("--set", "bridge.num_epochs=1", "--set", "bridge.max_captions=32", "--allow-few-captions"),
    )
    drawn = run_measured(
        *("generate", "A dog runs on the beach", "--graft", tmp_path / "bridge" / "graft"),
        *("--out", tmp_path / "pictures", "--steps", 2),
    )
    print(f"peak memory in {dtype}: bridge {bridged / 1e9:.2f} GB, generate {drawn / 1e9:.2f} GB")  # noqa: T201
    rows = json.loads((tmp_path / "pictures" / "images.json").read_text())
    with Image.open(tmp_path / "pictures" / rows[0]["file"]) as picture:
        assert picture.size == (512, 512)
    assert max(bridged, drawn) < MAX_PEAK_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["initial image", "mask", "ControlNet"])
def test_kinds_of_request_run_at_real_size_within_8_gb(tmp_path_factory, real_models, kind):
    out = tmp_path_factory.mktemp("pictures")
    files = {"init": real_models / "picture.png", "mask": real_models / "mask.png"}
    options = {
        "initial image": ["--init-image", files["init"], "--strength", 1],
        "mask": ["--init-image", files["init"], "--mask", files["mask"], "--strength", 1],
        "ControlNet": ["--control", f"{real_models / 'controlnet'}={files['mask']}"],
    }[kind]
    command = ["generate", "A dog runs on the beach", "--base", real_models / "sd15", "--steps", 1]
    peak = run_measured(*command, *options, "--engine", "torch", "--out", out)
    print(f"peak memory, {kind}: {peak / 1e9:.2f} GB")  # noqa: T201
    [row] = json.loads((out / "images.json").read_text())
    assert (row["status"], row["width"], row["height"]) == ("ok", 512, 512)
    assert peak < MAX_PEAK_BYTES


@pytest.mark.slow
def test_named_recipe_runs_at_real_size_within_8_gb(tmp_path: Path):
    """`clipgraft run flickr8k_sd15`, with random weights in the places of the published ones."""
    dtype = torch.bfloat16 if cpu_gains_from_bf16() else torch.float32
    base = real_size.write_sd15_checkpoint(tmp_path / "sd15", dtype)
    clip = real_size.write_clip_b32(tmp_path / "clip")
    data = tiny.write_flickr8k(tmp_path / "data")
    out = tmp_path / "run"
    settings = {
        **{"clip.name": clip, "base.name": base, "data.max_train_images": 8},
        **{"finetune.mixed_precision": "auto", "finetune.num_epochs": 1, "finetune.batch_size": 8},
        **{"bridge.num_epochs": 1, "bridge.allow_few_captions": "true", "refine.batch_size": 4},
        # Random weights see no words; a CLIP that does is measured at small shapes.
        **{"distill.new_words": '["dog"]', "distill.num_epochs": 1, "distill.max_captions": 32},
        **{"generate.num_inference_steps": 2, "evaluate.num_inference_steps": 2, "evaluate.num_prompts": 2},
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run_measured("run", "flickr8k_sd15", "--data", data, "--out", out, *options)
    used = {path.parent.name: json.loads(path.read_text()) for path in out.rglob("resources.json")}
    assert set(used) == {"run", *STAGES} - {"new_words"}
    for stage, values in used.items():
        print(f"{stage}: {values['seconds']:.0f} s, {values['peak_memory_bytes'] / 1e9:.2f} GB")  # noqa: T201
    assert max(values["peak_memory_bytes"] for values in used.values()) < MAX_PEAK_BYTES
    variants = {"teacher", "before", "after", "refined", "distilled"}
    rows = json.loads((out / "generate" / "images.json").read_text())
    assert Counter(row["variant"] for row in rows) == dict.fromkeys(variants, 2)
    for row in rows:
        with Image.open(out / "generate" / row["file"]) as picture:
            assert picture.size == (512, 512)
    evaluation = Evaluation.from_json((out / "evaluate" / "evaluation.json").read_text())
    assert variants <= {variant.name for variant in evaluation.variants}
    assert (out / "report.html").stat().st_size
    graft = out / "bridge" / "graft"
    run_measured("export", graft, "A dog", "--format", "prompt-embeds", "--out", tmp_path / "embeds")
    embeds = load_file(tmp_path / "embeds" / "prompt_embeds.safetensors")
    assert {tuple(rows.shape) for rows in embeds.values()} == {(1, 77, 768)}
    assert "fine-tuned" in (tmp_path / "embeds" / "README.md").read_text()


@pytest.mark.slow
def test_single_file_of_real_size_gives_the_folders_weights(tmp_path: Path):
    folder = real_size.write_sd15_checkpoint(tmp_path / "sd15", torch.float16)
    path = real_size.write_single_file(folder, tmp_path / "v1-5.safetensors")
    base = FrozenBase.load(str(path), dtype=torch.float16, tokenizer=real_size.build_tokenizer())
    for name, module in base.modules.items():
        assert sum(parameter.numel() for parameter in module.parameters()) == real_size.NUM_PARAMETERS[name]
    assert base.weight_checksums() == FrozenBase.load(str(folder), dtype=torch.float16).weight_checksums()


@pytest.mark.slow
def test_clip_b32_learns_from_real_photographs(flickr8k_dir: Path, tmp_path: Path):
    clip = real_size.write_clip_b32(tmp_path / "clip")
    num_parameters = sum(parameter.numel() for parameter in load_clip(str(clip)).model.parameters())
    assert num_parameters == real_size.NUM_PARAMETERS["clip"]
    run_measured(
        *("finetune", "--data", flickr8k_dir, "--clip", clip, "--out", tmp_path / "out"),
        *("--set", "finetune.batch_size=19", "--set", "finetune.num_epochs=4"),
        *("--set", "finetune.learning_rate=3e-5", "--set", "finetune.mixed_precision=no"),
    )
    losses = json.loads((tmp_path / "out" / "metrics.json").read_text())["epoch_mean_loss"]
    assert losses[-1] < losses[0]
