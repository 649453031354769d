"""Fixtures shared by all tests."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

gc.set_threshold(100_000, 20, 50)  # what imports and models allocate is hardly ever garbage: 1.6 s of 24

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def flickr8k_dir() -> Path:
    """Folder with real Flickr8k captions and 50 photographs, kept beside the repository."""
    path = REPOSITORY.parent / "shared" / "flickr8k"
    if not path.is_dir():
        pytest.skip("real Flickr8k is not beside this repository (../shared/flickr8k)")
    return path


@pytest.fixture(scope="session")
def cases_dir() -> Path:
    """Folder with small inputs that once failed, kept beside the repository."""
    path = REPOSITORY.parent / "shared" / "cases"
    if not path.is_dir():
        pytest.skip("small inputs that once failed are not beside this repository (../shared/cases)")
    return path


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Compute with one thread, as each of several processes does: with more of them sums round otherwise."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module", autouse=True)
def frozen_objects() -> None:
    """Keep collections off what stays: a million objects of libraries, a third of a second each; reports."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    """Measure one step of each engine, wherever a test's base is new to its cache."""
    if choice := sys.modules.get("clipgraft.generation.engines.choice"):
        choice.ENOUGH_SECONDS = 0.0
