"""The base's safety checker: on, off, or as the base brings it."""

import shutil

import numpy as np
import pytest
from PIL import Image

import clipgraft
import tiny
from clipgraft.config import build_recipe
from clipgraft.errors import UserError
from clipgraft.files import parse_json
from clipgraft.generation.image_encoding import RECORD_KEY
from clipgraft.sampling_params import InferenceConfig
from helpers import call, refused

BLOCKS, PASSES = -1.0, 1.1
"""Thresholds of the cosine to any concept."""
NONE_HERE = "safety_checker is 'on', but this base brings none; name another base, or 'auto'"


def checked(value: str) -> InferenceConfig:
    return InferenceConfig(safety_checker=value)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {
        "blocking": tiny.write_checked_base(folder / "blocking", BLOCKS),
        "passing": tiny.write_checked_base(folder / "passing", PASSES),
        "plain": tiny.write_base(folder / "plain"),
    }


@pytest.mark.parametrize(
    ("base", "value", "status", "is_recorded"),
    [
        ("blocking", "auto", "blocked", True),
        ("blocking", "on", "blocked", True),
        ("blocking", "off", "ok", False),
        ("passing", "on", "ok", True),
        ("plain", "auto", "ok", False),
        ("plain", "off", "ok", False),
    ],
)
def test_an_image_is_checked_as_asked_for(bases, base, value, status, is_recorded):
    generator = clipgraft.load(bases[base], device="cpu", inference=checked(value))
    [found] = generator.generate("A dog", num_inference_steps=1)
    assert found.status == status
    assert found.metadata["models"]["safety_checker"] is is_recorded
    assert np.asarray(found.image).any() == (status == "ok")


def test_a_checker_that_is_not_there_is_refused(bases, capsys, tmp_path):
    with pytest.raises(UserError, match=NONE_HERE):
        clipgraft.load(bases["plain"], device="cpu", inference=checked("on"))
    options = ("--base", bases["plain"], "--out", tmp_path, "--device", "cpu", "--safety-checker")
    assert NONE_HERE in refused(capsys, "generate", "A dog", *options, "on")
    message = "'safety_checker': input should be 'auto', 'on' or 'off'; got 'maybe'"
    assert message in refused(capsys, "generate", "A dog", *options, "maybe")


def test_a_recipe_has_it_too():
    assert build_recipe({"generate": {"safety_checker": "off"}}).generate.safety_checker == "off"
    with pytest.raises(UserError, match="'auto', 'on' or 'off'"):
        build_recipe({"generate": {"safety_checker": True}})


@pytest.mark.integration
def test_an_image_is_redrawn_under_its_own_checker(bases, capsys, tmp_path):
    base = ("--base", bases["passing"], "--device", "cpu")
    for value in ("auto", "off"):
        options = (*base, "--steps", 2, "--safety-checker", value, "--out", tmp_path / value)
        assert call("generate", "A dog", *options) == 0
        drawn = tmp_path / value / "a-dog_seed0.png"
        assert call("generate", "--from-image", drawn, *base, "--out", tmp_path / value / "again") == 0
        assert (tmp_path / value / "again" / drawn.name).read_bytes() == drawn.read_bytes()
        with Image.open(drawn) as image:
            record = parse_json(image.info[RECORD_KEY], "the record")
        assert record["models"]["safety_checker"] is (value == "auto")
    capsys.readouterr()
    other = ("--safety-checker", "on", "--out", tmp_path / "other")
    assert call("generate", "--from-image", drawn, *base, *other) == 0
    said = capsys.readouterr().err
    assert "no safety checker looked at that image, a safety checker looks at this one" in said


def test_off_needs_no_weights_of_a_checker(bases, tmp_path):
    base = shutil.copytree(bases["passing"], tmp_path / "base")
    (base / "safety_checker" / "model.safetensors").write_bytes(b"damaged")
    generator = clipgraft.load(base, device="cpu", inference=checked("off"))
    assert generator.pipeline.safety_checker is None
