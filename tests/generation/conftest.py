"""A tiny base and a graft of it for the tests of generation."""

from pathlib import Path

import pytest
from image_world import generate, write_graft

import tiny
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.models.base import FrozenBase


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return tiny.write_base(tmp_path_factory.mktemp("world") / "base")


@pytest.fixture(scope="session")
def graft(base) -> Path:
    return write_graft(base.parent / "graft", base)


@pytest.fixture(scope="session")
def three_images(base) -> Path:
    out = base.parent / "three"
    assert generate(base, out, "A dog", "A café", "A cat", "--steps", 1) == 0
    return out


@pytest.fixture(scope="module")
def frozen(base) -> FrozenBase:
    return FrozenBase.load(str(base))


@pytest.fixture(scope="module")
def generator(frozen) -> ImageGenerator:
    """One without an engine, in float32."""
    return next(load_generators({"": None}, base=frozen, device="cpu"))[1]
