"""Guidance and steps come from the base wherever nobody names them."""

import json

import pytest
import typer

import clipgraft
import tiny
from clipgraft.config import EvaluateSettings, GenerateSettings, Recipe, load_recipe, to_toml
from clipgraft.errors import CheckpointError
from clipgraft.models.defaults import (
    FILE_NAME,
    STABLE_DIFFUSION,
    SamplingDefaults,
    find_defaults,
    read_defaults,
)
from clipgraft.models.flatland_config import SAMPLING_DEFAULTS
from clipgraft.studio.catalog import Catalog
from helpers import call, image_request

OWN = {"guidance_scale": 4.5, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base whose own file says how it is drawn."""
    folder = tiny.write_base(tmp_path_factory.mktemp("own") / "base")
    (folder / FILE_NAME).write_text(json.dumps(OWN | {"_from": "another program"}))
    return folder


def test_known_bases():
    assert find_defaults("flatland") == SAMPLING_DEFAULTS == SamplingDefaults(3.0, 25)
    assert find_defaults("stable-diffusion-v1-5/stable-diffusion-v1-5") == SamplingDefaults(7.5, 25)


def test_a_bases_own_file_decides(base, tmp_path):
    assert read_defaults(base) == find_defaults(str(base)) == SamplingDefaults(**OWN)
    assert read_defaults(tiny.write_base(tmp_path / "silent")) == STABLE_DIFFUSION
    (tmp_path / "silent" / FILE_NAME).write_text('{"guidance_scale": 2}')
    assert read_defaults(tmp_path / "silent") == SamplingDefaults(2.0, 25)


def test_a_cached_base_of_the_hub_is_read_without_network(tmp_path, monkeypatch):
    commit = "a" * 40
    folder = tmp_path / "models--me--mine" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_text(json.dumps(OWN))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_defaults("me/mine", commit) == SamplingDefaults(**OWN)
    assert find_defaults("me/other", commit) == STABLE_DIFFUSION


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "an object is expected"),
        ('{"guidance_scale": 0.5}', "guidance_scale is '0.5', should be greater than or equal to 1"),
        ('{"num_inference_steps": "9"}', "num_inference_steps is '9', should be a valid integer"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text, message):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(CheckpointError) as refusal:
        read_defaults(tmp_path)
    assert str(tmp_path / FILE_NAME) in str(refusal.value)
    assert message in str(refusal.value)


@pytest.mark.parametrize("command", ["generate", "grid"])
def test_commands_draw_as_the_base_says_and_write_it_down(command, base, tmp_path):
    axis = ["--axis", "seed=0"] if command == "grid" else []
    assert call(command, "A dog", "--base", base, *axis, "--out", tmp_path) == 0
    [row] = json.loads((tmp_path / "images.json").read_text())
    assert {name: row[name] for name in OWN} == OWN


def test_what_is_named_wins(base, tmp_path):
    named = ["--guidance-scale", 2, "--steps", 1]
    assert call("generate", "A dog", "--base", base, *named, "--out", tmp_path) == 0
    [row] = json.loads((tmp_path / "images.json").read_text())
    assert (row["guidance_scale"], row["num_inference_steps"]) == (2.0, 1)


def test_python_draws_as_the_base_says(base):
    picture = clipgraft.load(base, device="cpu").generate("A dog")[0]
    assert {name: getattr(picture.request.params, name) for name in OWN} == OWN
    assert {name: picture.metadata["job"][name] for name in OWN} == OWN


def test_a_pipeline_without_a_base_draws_as_stable_diffusion():
    assert image_request("A dog").resolved(STABLE_DIFFUSION) == image_request(
        "A dog", num_inference_steps=25, guidance_scale=7.5
    )


def test_no_stage_and_no_command_has_a_number_of_its_own():
    for section in (GenerateSettings(), EvaluateSettings()):
        assert section.guidance_scale is None
        assert section.num_inference_steps is None
    from clipgraft.cli.app import app

    for name, command in typer.main.get_command(app).commands.items():
        for option in command.params:
            if option.name in ("num_inference_steps", "guidance_scale"):
                assert option.default is None, name


def test_an_unset_value_stays_unset_in_a_recipe(tmp_path):
    (tmp_path / "recipe.toml").write_text(to_toml(Recipe()))
    assert "guidance_scale" not in (tmp_path / "recipe.toml").read_text()
    assert load_recipe(tmp_path / "recipe.toml") == Recipe()


def test_the_studio_offers_the_bases_or_the_runs_defaults(tmp_path, base):
    for name, generate in (("silent", {}), ("said", {"guidance_scale": 2.0})):
        recipe = Recipe(base={"name": str(base)}, generate=generate)
        (tmp_path / name / "graft").mkdir(parents=True)
        (tmp_path / name / "recipe.toml").write_text(to_toml(recipe))
        (tmp_path / name / "graft" / "base.json").write_text("{}")
    models = Catalog(tmp_path).models()
    assert models["flatland/teacher"][0].defaults == SAMPLING_DEFAULTS
    assert models["silent/graft"][0].defaults == SamplingDefaults(**OWN)
    assert models["said/graft"][0].defaults == SamplingDefaults(2.0, 3)
