"""A tiny world of data and models, and a finished run in it."""

import json

import pytest

import tiny
from helpers import RECIPE, call


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A tiny CLIP, base and source, and a recipe that names them."""
    folder = tmp_path_factory.mktemp("world")
    paths = {
        "clip": tiny.write_clip(folder / "clip"),
        "base": tiny.write_base(folder / "base"),
        "data": tiny.write_flickr8k(folder / "data"),
    }
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(**{name: json.dumps(str(path)) for name, path in paths.items()}))
    return {**paths, "recipe": recipe}


@pytest.fixture(scope="session")
def finished(world, tmp_path_factory):
    """A whole run's folder."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert call("run", world["recipe"], "--out", out) == 0
    return out
