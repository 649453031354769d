"""Training flatland from nothing, at its own size but for a few steps."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from safetensors.torch import load_file

from clipgraft.flatland import draw_flatland8k
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.models.weights import verify_folder
from clipgraft.pretrain_settings import DenoiserSettings
from clipgraft.pretraining.pretrain import denoising_objective
from clipgraft.runs.folder import unknown_names

DRAWN = ("images_per_epoch=16", "passes=2", "num_epochs=2", "batch_size=8", "ema_decay=0.9", "log_every=2")
PARTS = {
    "vae": (*DRAWN, "crop_size=32"),
    "clip": ("num_epochs=1", "batch_size=8"),
    "probe": ("images_per_epoch=16", "passes=1", "num_epochs=1", "batch_size=8"),
    "unet": DRAWN,
}


def command(data: Path, out: Path, *options: str) -> list[str]:
    settings = [f"pretrain.{part}.{setting}" for part, named in PARTS.items() for setting in named]
    overrides = [word for setting in settings for word in ("--set", setting)]
    arguments = ["pretrain", "--data", str(data), "--out", str(out), *overrides, *options]
    return [sys.executable, "-m", "clipgraft", *arguments]


def weights(run: Path) -> dict:
    return {
        path.relative_to(run): load_file(path)
        for path in sorted(run.rglob("*.safetensors"))
        if "checkpoints" not in path.parts
    }


def stop_in(part: str, rows: int, data: Path, out: Path, *options: str) -> None:
    """Send SIGTERM once a part's log has some rows."""
    process = subprocess.Popen(command(data, out, *options))
    log = out / part / "log.jsonl"
    while not (log.is_file() and log.read_text().count("\n") >= rows):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143


@pytest.mark.slow
def test_resumed_pretraining_ends_in_the_same_weights(tmp_path: Path):
    data, broken = tmp_path / "data", tmp_path / "broken"
    draw_flatland8k(data, num_images=32, num_workers=1)
    subprocess.run(command(data, tmp_path / "unbroken"), check=True)
    stop_in("vae", 2, data, broken)
    stop_in("unet", 5, data, broken, "--resume")
    subprocess.run(command(data, broken, "--resume"), check=True)

    assert unknown_names(broken) == []
    assert not (broken / "drawn").exists()
    whole, resumed = weights(tmp_path / "unbroken"), weights(broken)
    assert whole.keys() == resumed.keys()
    for name, tensors in whole.items():
        assert all(tensor.equal(resumed[name][key]) for key, tensor in tensors.items()), name
    flatland = broken / "flatland"
    verify_folder(flatland)
    base = FrozenBase.load(str(flatland / "base"))
    assert base.unet.config.cross_attention_dim == 192
    assert base.vae.config.scaling_factor != 0.18215
    assert load_clip(str(flatland / "clip")).model.config.text_config.hidden_size == 128
    metrics = json.loads((flatland / "metrics.json").read_text())
    assert (metrics["num_images"], metrics["num_samples"]) == (32, 64)
    parts = [json.loads(line)["part"] for line in (flatland / "log.jsonl").read_text().splitlines()]
    assert parts == ["vae", "vae", "unet", "unet", "clip", "probe"]
    assert "| U-Net | 11.3 M |" in (flatland / "README.md").read_text()


@pytest.mark.parametrize(("precision", "attention"), [("bf16", AttnProcessor), ("no", AttnProcessor2_0)])
def test_attention_on_a_cpu_is_plain_in_bfloat16_alone(precision, attention):
    settings = DenoiserSettings(mixed_precision=precision)
    tokenizer = train_tokenizer(["a dog runs on the beach"], vocab_size=600)
    objective = denoising_objective(settings, tokenizer, torch.device("cpu"))
    assert {type(each) for each in objective.unet.attn_processors.values()} == {attention}
