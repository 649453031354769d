"""Device, precision, seeds and the record of the environment."""

import logging
import os
import platform
import random
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clipgraft.console import say
from clipgraft.errors import UserError
from clipgraft.measured import cpu_name, measured_once

RECORDED_PACKAGES = (
    *("clipgraft", "torch", "transformers", "diffusers"),
    *("accelerate", "safetensors", "numpy", "pillow"),
)
BF16_GAIN = 1.2
"""Least speed-up at which bfloat16 is used: its rounding has a price too (guess)."""
PROCESS_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""By which the processes of one launch find each other."""
PRECISION_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Dtype by accelerate's name of a mixed precision."""

MODES = {"training", "gradient_checkpointing"}
"""Attributes of modules that a stage may set."""

logger = logging.getLogger(__name__)


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device; "auto" is the fastest available.

    Raises:
        UserError: If it is not auto, cpu, cuda or mps, or torch cannot use it here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, is_there in available.items() if is_there))
    if name not in available:
        raise UserError(f"device must be auto, cpu, cuda or mps; got {name!r}")
    if not available[name]:
        raise UserError(
            f'device {name!r} is not available to torch {torch.__version__} here; use device = "auto"'
        )
    return torch.device(name)


@contextmanager
def put_back(*models: nn.Module) -> Iterator[None]:
    """Put lent models back on their devices and into their modes."""
    modules = [module for model in models for module in model.modules()]
    modes = [{name: vars(module)[name] for name in MODES & vars(module).keys()} for module in modules]
    places = [(model, weight.device) for model in models for weight in islice(model.parameters(), 1)]
    weights = [(weight, weight.requires_grad) for model in models for weight in model.parameters()]
    try:
        yield
    finally:
        for model, device in places:
            model.to(device)
        for module, own in zip(modules, modes, strict=True):
            vars(module).update(own)
        for weight, is_trained in weights:
            weight.requires_grad_(is_trained)


@cache
def cpu_gains_from_bf16() -> bool:
    """Whether this CPU multiplies matrices clearly faster in bfloat16 than in float32."""
    # Measured, as its instructions do not tell: with AVX-512's and no AMX, a product took twice as long on
    # one machine.
    if not _has_bf16_instructions():
        return False
    product = "a product of two 1024 x 1024 matrices"
    return measured_once(product, product, _compare_dtypes).chosen == "bfloat16"


def is_x86() -> bool:
    """Whether this is an x86 CPU of 64 bits."""
    return platform.machine().lower() in ("x86_64", "amd64")


def _has_bf16_instructions() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _say_bf16_is_emulated() -> None:
    # 525 times as long as in float32 for a product of 2048 x 2048 on an AMD EPYC with AVX2, torch 2.13.
    say(
        "this CPU has no instructions for bfloat16 and may take hundreds of times as long as in float32; "
        'mixed_precision = "auto" takes float32 here'
    )


def _compare_dtypes() -> tuple[str, dict[str, float]]:
    seconds = {"float32": _matmul_seconds(torch.float32), "bfloat16": _matmul_seconds(torch.bfloat16)}
    is_gained = seconds["float32"] > BF16_GAIN * seconds["bfloat16"]
    return "bfloat16" if is_gained else "float32", seconds


def _matmul_seconds(dtype: torch.dtype) -> float:
    matrix = torch.ones(1024, 1024, dtype=dtype)
    seconds = []
    for _ in range(6):
        begun = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def choose_mixed_precision(name: str, device: torch.device) -> str:
    """Return "no", "fp16" or "bf16"; UserError for fp16 on a CPU."""
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return "bf16" if device.type == "cpu" and cpu_gains_from_bf16() else "no"
    if name == "fp16" and device.type == "cpu":
        raise UserError(
            "mixed_precision 'fp16' needs a GPU (its gradient scaler works on CUDA alone); "
            "on a CPU use 'bf16' or 'no'"
        )
    if name == "bf16" and device.type == "cpu" and is_x86() and not _has_bf16_instructions():
        _say_bf16_is_emulated()
    return name


def inference_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for generating images: float16 on CUDA, never on CPUs."""
    if device.type == "cuda":
        return torch.float16  # as fast as bfloat16 there, and its rounding is an eighth
    return PRECISION_DTYPES[choose_mixed_precision("auto", device)]


def num_processes() -> int:
    """Return how many processes share the work, from the launcher's environment variables.

    Raises:
        UserError: If WORLD_SIZE is set without the variables by which processes find each other.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in PROCESS_VARIABLES if not os.environ.get(name)]
    if text == "1":
        return 1
    if missing or not text.isdecimal():
        raise UserError(
            f"WORLD_SIZE={text} in the environment says that several processes share the work"
            + (f", and {', '.join(missing)} are not set" if missing else ", and is no number")
            + "; start them with `accelerate launch`, or unset WORLD_SIZE"
        )
    return int(text)


def quiet_libraries() -> None:
    """Silence transformers' and diffusers' progress bars and warnings, not their errors."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (transformers_logging, diffusers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions, machine and command, without paths, user or host name."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        **{name: version(name) for name in RECORDED_PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "num_threads": torch.get_num_threads(),
        "gpu": gpu,
        "device": device.type,
        "command": " ".join(["clipgraft", *(_without_folders(argument) for argument in sys.argv[1:])]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _without_folders(argument: str) -> str:
    # An absolute path would show the user's name to everyone who gets the report.
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if os.path.isabs(value) else argument


def without_folders(text: str) -> str:
    """Reduce every absolute path in a text to its last part."""
    return re.sub(r"(?<![\w/:.])/(?:[^\s/:;,'\"]+/)+", "", text)
