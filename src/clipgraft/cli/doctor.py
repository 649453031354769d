"""What this machine has for clipgraft: each line OK, or with the fix."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from clipgraft.cache import cache_dir
from clipgraft.device import RECORDED_PACKAGES, choose_device, cpu_gains_from_bf16
from clipgraft.errors import CheckpointError, UserError
from clipgraft.generation.engines.engine import openvino_advice, why_no_openvino
from clipgraft.models.hub import embedded_models, hub_is_reachable

NEEDED_MEMORY_GB = 8
"""SD v1.5 in bfloat16 draws 512x512 in less."""
NEEDED_DISK_GB = 10
"""SD v1.5 in float16 (2.1 GB), CLIP B/32 (0.6 GB), and a run's checkpoints (3 x 1.8 GB)."""


class Finding(NamedTuple):
    """One line of the doctor's."""

    what: str
    value: str
    fix: str
    """Empty where all is well."""


def doctor() -> None:
    """Print what was found."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in examine():
        table.add_row(finding.what, finding.value, "OK" if not finding.fix else f"fix: {finding.fix}")
    Console().print(table)


def examine() -> Iterator[Finding]:
    """Look at versions, device, threads, memory, disk, the embedded base and the hub."""
    for package in RECORDED_PACKAGES:
        yield Finding(package, version(package), "")
    device = choose_device()
    is_missed = device.type == "cpu" and shutil.which("nvidia-smi") is not None
    yield Finding(
        "device",
        torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "an NVIDIA GPU is here but this torch has no CUDA; install a CUDA build of torch"
        if is_missed
        else "",
    )
    is_faster = cpu_gains_from_bf16()
    yield Finding("CPU bfloat16", "faster, so used" if is_faster else "not faster, so float32 is used", "")
    yield _engine(device)
    yield Finding("threads", f"{torch.get_num_threads()} of {os.cpu_count()}", "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    too_little = f"Stable Diffusion v1.5 wants {NEEDED_MEMORY_GB} GB; flatland needs 2"
    yield Finding("memory", f"{memory:.1f} GB", too_little if memory < NEEDED_MEMORY_GB else "")
    disk = shutil.disk_usage(Path.cwd()).free / 1e9
    little_disk = f"free some: Stable Diffusion v1.5 with checkpoints wants {NEEDED_DISK_GB} GB"
    yield Finding("disk here", f"{disk:.1f} GB free", little_disk if disk < NEEDED_DISK_GB else "")
    yield _cache()
    yield _flatland()
    yield _hub()


def _engine(device: torch.device) -> Finding:
    missing = why_no_openvino(device)
    return Finding("drawing runs on", "torch" if missing else "OpenVINO", openvino_advice(device))


def _cache() -> Finding:
    """Whether crops, latents and compiled networks can be kept."""
    fix = "set XDG_CACHE_HOME to a folder that can be written"
    try:
        place = cache_dir()
    except UserError as error:
        return Finding("cache", "none", str(error))
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=nearest).close()  # permissions alone do not tell of a read-only disk
    except OSError as error:
        return Finding("cache", str(place), f"{error.strerror}; {fix}")
    return Finding("cache", str(place), "")


def _flatland() -> Finding:
    try:
        embedded_models()
    except CheckpointError as error:
        return Finding("flatland", "not whole", str(error))
    return Finding("flatland", "in the package, sums verified", "")


def _hub() -> Finding:
    if hub_is_reachable(timeout_seconds=3):
        return Finding("model hub", "reachable", "")
    fix = "fetch models elsewhere with `hf download ID --local-dir DIR` and name DIR; flatland needs none"
    return Finding("model hub", "not reachable", fix)
