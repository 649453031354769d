"""The tiny base and a text encoder distilled for it, made once."""

import pytest
from distilled_world import distilled_from

import tiny


@pytest.fixture(scope="session")
def plain_base(tmp_path_factory):
    return tiny.write_base(tmp_path_factory.mktemp("exported") / "base")


@pytest.fixture(scope="session")
def distilled(plain_base):
    return distilled_from(plain_base)


@pytest.fixture(scope="session")
def distilled_run(distilled, tmp_path_factory):
    """The folder of a run that distilled it."""
    run = tmp_path_factory.mktemp("distilled")
    distilled.save_pretrained(run / "text_encoder")
    return run
