"""A tiny base and a graft of it for the tests of generation."""

from pathlib import Path

import pytest
from image_world import generate, write_graft

import tiny


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
