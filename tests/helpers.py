"""The command line called in this process or apart, and image requests, for tests."""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from clipgraft.cli import app as cli
from clipgraft.generation.requests import ImageRequest
from clipgraft.sampling_params import SamplingParams

RECIPE = """
[data]
source = {data}
[clip]
name = {clip}
[base]
name = {base}
[finetune]
batch_size = 8
num_epochs = 2
learning_rate = 1e-3
[bridge]
allow_few_captions = true
hidden_size = 16
batch_size = 16
num_epochs = 1
[generate]
num_inference_steps = 2
"""


def call(*arguments: object) -> int:
    """Run the command line in this process; return its exit code."""
    before, sys.argv = sys.argv, ["clipgraft", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


def refused(capsys, *arguments: object) -> str:
    """Run a command that must fail; return its one line."""
    capsys.readouterr()
    assert call(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def run_apart(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "clipgraft", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]


def image_request(prompt: str, seed: int = 0, **params: object) -> ImageRequest:
    """Make a request from fields of `SamplingParams`."""
    return ImageRequest(prompt, SamplingParams.build({"seed": seed, **params}))


def states_of(*models: torch.nn.Module) -> list[object]:
    """Return device, dtype and gradient of every weight, and the modes of every module."""
    modules = [module for model in models for module in model.modules()]
    modes = [(module.training, vars(module).get("gradient_checkpointing")) for module in modules]
    weights = [weight for model in models for weight in model.parameters()]
    return [modes, [(weight.device.type, weight.dtype, weight.requires_grad) for weight in weights]]


def import_openvino() -> ModuleType:
    """Import OpenVINO's engine, which keeps its converter's telemetry out; skip the test without OpenVINO."""
    reason = "openvino is not installed: pip install 'clipgraft[openvino]'"
    return pytest.importorskip("clipgraft.generation.engines.openvino", reason=reason)


@contextmanager
def interrupted_when(is_reached: Callable[[], bool]) -> Iterator[None]:
    """Send this process Ctrl-C as soon as a condition holds, after a minute in any case."""
    ended, deadline = threading.Event(), time.monotonic() + 60
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a script's background

    def watch() -> None:
        while not ended.wait(0.02):
            if is_reached() or time.monotonic() > deadline:
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        signal.signal(signal.SIGINT, usual)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Let the system refuse to write more to a file, as a full disk would."""
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))


def resident_kilobytes(file):
    """Kilobytes of a mapped file that are in this process's memory."""
    mappings = re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE
    )
    own = [text for text in mappings if text.splitlines()[:1] and text.splitlines()[0].endswith(str(file))]
    return sum(int(re.search(r"^Rss:\s+(\d+) kB", text, re.MULTILINE).group(1)) for text in own)
