"""Shared by the tests of engines: converted networks, and stock diffusers' images."""

import pytest
from engine_world import generated, pipeline_of

from tiny import build_base


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("openvino")


@pytest.fixture(scope="session")
def stock():
    return generated(pipeline_of(build_base()))
