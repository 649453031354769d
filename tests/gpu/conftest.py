"""Devices of the tests marked `cuda`, and a tiny CLIP, base and dataset for them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_stages import World

import tiny

# torch asks for it in its deterministic mode, and reads it once, at the first product of matrices on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
NO_GPU = "no CUDA GPU here (torch.cuda.is_available() is false)"


@pytest.fixture
def cuda() -> str:
    """Name of the GPU, for what only a GPU can do."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return "cuda"


@pytest.fixture
def device() -> str:
    """Name of the GPU; of the CPU where the tests are rehearsed on it."""
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("CLIPGRAFT_REHEARSE"):
        return "cpu"
    pytest.skip(f"{NO_GPU}; CLIPGRAFT_REHEARSE=1 tries this test on the CPU")


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("world")
    return World(
        clip=tiny.write_clip(folder / "clip"),
        base=tiny.write_base(folder / "base", width=128),  # wider than the empty prompt's 77 positions
        data=tiny.write_flickr8k(folder / "data", 48),
        out=folder,
        num_train_images=32,
    )


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Have libraries add in the same order each time, or raise.

    A GPU's attention (backward) and float32's convolutions add in any order by default.
    """
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory) -> Path:
    """Return an empty cache folder; compiled kernels have a cache of their own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
