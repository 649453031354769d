"""A CLIP and a dataset, for all tests of fine-tuning."""

import pytest

import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.write_clip(folder / "clip")
    tiny.write_flickr8k(folder / "data", 48)
    return folder
