"""Shared by the tests of engines: converted networks, and stock diffusers' images."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_world import generated, pipeline_of

from tiny import build_base


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="session")
def cache_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", autouse=True)
def own_cache(cache_home) -> Iterator[None]:
    """Keep networks that are converted, compiled and measured out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        yield


@pytest.fixture(scope="session")
def stock():
    return generated(pipeline_of(build_base()))
