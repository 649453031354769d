"""Training flatland from nothing, at its own size but for a few steps."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clipgraft.flatland import draw_flatland8k
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from clipgraft.models.weights import verify_folder
from clipgraft.runs.folder import unknown_names

SETTINGS = (
    "vae.num_epochs=2",
    "vae.batch_size=4",
    "unet.num_epochs=1",
    "unet.batch_size=8",
    "unet.ema_decay=0.9",
)


def command(data: Path, out: Path, *options: str) -> list[str]:
    settings = [*SETTINGS, "clip.num_epochs=1", "clip.batch_size=8", "probe.num_images=16"]
    settings += ["probe.num_epochs=1", "probe.batch_size=8"]
    overrides = [word for setting in settings for word in ("--set", f"pretrain.{setting}")]
    arguments = ["pretrain", "--data", str(data), "--out", str(out), *overrides, *options]
    return [sys.executable, "-m", "clipgraft", *arguments]


def weights(run: Path) -> dict:
    return {
        path.relative_to(run): load_file(path)
        for path in sorted(run.rglob("*.safetensors"))
        if "checkpoints" not in path.parts
    }


@pytest.mark.slow
def test_resumed_pretraining_ends_in_the_same_weights(tmp_path: Path):
    draw_flatland8k(tmp_path / "data", num_images=32, num_workers=1)
    subprocess.run(command(tmp_path / "data", tmp_path / "unbroken"), check=True)
    process = subprocess.Popen(command(tmp_path / "data", tmp_path / "broken"))
    log = tmp_path / "broken" / "vae" / "log.jsonl"
    while not (log.is_file() and log.read_text().count("\n") >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    subprocess.run(command(tmp_path / "data", tmp_path / "broken", "--resume"), check=True)

    assert unknown_names(tmp_path / "broken") == []
    whole, resumed = weights(tmp_path / "unbroken"), weights(tmp_path / "broken")
    assert whole.keys() == resumed.keys()
    for name, tensors in whole.items():
        assert all(tensor.equal(resumed[name][key]) for key, tensor in tensors.items()), name
    flatland = tmp_path / "broken" / "flatland"
    verify_folder(flatland)
    base = FrozenBase.load(str(flatland / "base"))
    assert base.unet.config.cross_attention_dim == 192
    assert base.vae.config.scaling_factor != 0.18215
    assert load_clip(str(flatland / "clip")).model.config.text_config.hidden_size == 128
    assert json.loads((flatland / "metrics.json").read_text())["num_images"] == 24
    parts = [json.loads(line)["part"] for line in (flatland / "log.jsonl").read_text().splitlines()]
    assert parts == ["vae", "vae", "unet", "clip", "probe"]
    assert "| U-Net | 11.3 M |" in (flatland / "README.md").read_text()
