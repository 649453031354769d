"""Fixtures shared by all tests."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def flickr8k_dir() -> Path:
    """Folder with real Flickr8k captions and 50 photographs, kept beside the repository."""
    path = REPOSITORY.parent / "shared" / "flickr8k"
    if not path.is_dir():
        pytest.skip("real Flickr8k is not beside this repository (../shared/flickr8k)")
    return path
