"""A distilled text encoder exported at Stable Diffusion v1.5's exact shapes, with random weights."""

import os
import subprocess
import sys
import time

import pytest
import torch
from diffusers import StableDiffusionPipeline
from distilled_world import PROMPTS, distilled_from, states
from safetensors import safe_open

import real_size

MAX_PEAK_BYTES = 8e9
"""The base's 4.3 GB, mapped from its files and counted as memory, and half of it again in half precision."""


def export_measured(*arguments: object) -> None:
    """Run the export in a process of its own; print its time and peak memory."""
    started = time.monotonic()
    command = [sys.executable, "-m", "clipgraft", "export", *map(str, arguments)]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    peak, seconds = usage.ru_maxrss * 1024, time.monotonic() - started
    print(f"{arguments[-3:]}: {seconds:.0f} s, peak {peak / 1e9:.1f} GB, mapped files included")  # noqa: T201
    assert peak < MAX_PEAK_BYTES


@pytest.mark.slow
def test_checkpoint_of_full_size_reads_back_with_equal_states(tmp_path):
    base = real_size.write_sd15_checkpoint(tmp_path / "sd15", torch.float32)
    graft = distilled_from(base)
    run, out = tmp_path / "run", tmp_path / "kite.safetensors"
    graft.save_pretrained(run / "text_encoder")
    export_measured(run, "--out", out, "--format", "checkpoint")
    with safe_open(out, framework="pt") as file:
        names = list(file.keys())
        assert file.metadata()["modelspec.resolution"] == "512x512"
    assert len(names) == 686 + 248 + 197
    loaded = StableDiffusionPipeline.from_single_file(out, config=str(base), local_files_only=True)
    assert torch.equal(
        states(loaded.text_encoder, graft.tokenizer), states(graft.text_encoder, graft.tokenizer)
    )
    for name in ("unet", "vae"):
        number = sum(parameter.numel() for parameter in getattr(loaded, name).parameters())
        assert number == real_size.NUM_PARAMETERS[name]
    del loaded
    out.unlink()
    half = tmp_path / "half.safetensors"
    export_measured(run, "--out", half, "--format", "checkpoint", "--dtype", "fp16")
    assert half.stat().st_size == pytest.approx(2.13e9, rel=0.01)
    lora = tmp_path / "lora.safetensors"
    export_measured(run, *PROMPTS, "--out", lora, "--format", "lora", "--rank", 16)
    assert lora.stat().st_size == pytest.approx(10.6e6, rel=0.02)
