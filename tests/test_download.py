"""All that a recipe needs, fetched from a hub of our own; afterwards the recipe runs without one."""

import shutil
from collections import namedtuple

import pytest
import torch

import tiny
from clipgraft.config import PRESETS, Recipe, apply_overrides, parse_overrides
from clipgraft.device import inference_dtype
from clipgraft.download import needed_models, run_files
from clipgraft.generation.engines.attach import unet_loader
from clipgraft.generation.generator import load_base
from clipgraft.models.hub import PINS, fetch, find_model
from helpers import RECIPE, call, refused
from hub_server import ask_only, serve

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]

COMMIT = "a" * 40
TOKEN = "hf_" + "s3Nt" * 9


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a CLIP and a base; a recipe that names them by id and commit."""
    with serve() as served:
        ask_only(served, monkeypatch, tmp_path / "cache")
        served.models = {
            "owner/clip": {COMMIT: tiny.write_clip(tmp_path / "clip")},
            "owner/base": {COMMIT: tiny.write_base(tmp_path / "base")},
        }
        yield served


@pytest.fixture
def recipe(hub, tmp_path):
    data = tiny.write_flickr8k(tmp_path / "data")
    text = RECIPE.format(data=f'"{data}"', clip='"owner/clip"', base='"owner/base"')
    text = text.replace('"owner/clip"', f'"owner/clip"\nrevision = "{COMMIT}"')
    text = text.replace('"owner/base"', f'"owner/base"\nrevision = "{COMMIT}"')
    (tmp_path / "recipe.toml").write_text(text)
    return tmp_path / "recipe.toml"


@pytest.mark.integration
def test_a_recipe_is_downloaded_and_then_runs_offline(hub, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert call("prefetch", recipe) == 0
    out = capsys.readouterr().out
    assert out.index("to fetch: ") < out.index("fetched and verified: owner/clip")
    assert "fetched and verified: owner/base" in out
    hub.models.clear()
    hub.requests.clear()
    small = ["--set", "finetune.num_epochs=1", "--set", "bridge.num_epochs=0"]
    small += ["--set", "bridge.allow_few_captions=true"]
    assert call("run", recipe, "--out", tmp_path / "run", *small) == 0
    assert hub.requests == []
    assert f"Bearer {TOKEN}" in hub.tokens
    said = capsys.readouterr()
    assert TOKEN not in out + said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert call("prefetch", recipe) == 0
    assert "to fetch: 0.0 MB" in capsys.readouterr().out


def test_what_a_run_draws_with_is_all_that_is_fetched(hub, tmp_path):
    """With an engine in half precision the U-Net alone is read in it."""
    folder = tiny.write_checked_base(tmp_path / "checked", 0.5)
    tiny.halve(folder)
    hub.models["owner/checked"] = {COMMIT: folder}
    found = find_model("owner/checked", COMMIT, run_files(torch.bfloat16))
    fetch(found)
    halves = [name for name in found.files if ".fp16." in name]
    assert halves == ["unet/diffusion_pytorch_model.fp16.safetensors"]
    hub.models.clear()
    hub.requests.clear()
    base = load_base([None], "owner/checked", torch.float32, revision=COMMIT, with_unet=False)
    base.unet = unet_loader(base.origin, torch.bfloat16)()
    assert base.unet.dtype == torch.bfloat16
    assert {base.vae.dtype, base.text_encoder.dtype, base.safety_checker.dtype} == {torch.float32}
    assert hub.requests == []


def test_the_unet_is_downloaded_in_full_if_one_stage_needs_it(tmp_path):
    """Of a CPU's engines torch's draws in what it trains in."""
    overrides = ["device=cpu", "generate.engine=torch", "refine.num_epochs=1"]
    for precision, is_half in (
        ("no", False),
        ("bf16", inference_dtype(torch.device("cpu")) != torch.float32),
    ):
        recipe = apply_overrides(
            Recipe(), parse_overrides([*overrides, f"refine.mixed_precision={precision}"])
        )
        _, (_, needed) = needed_models(recipe)
        unet = next(weights for weights in needed.weights if weights.stem.startswith("unet/"))
        assert unet.prefer_half == is_half


def test_a_named_recipe_that_needs_nothing_fetches_nothing(hub, capsys):
    assert call("prefetch", "demo") == 0
    assert "to fetch: 0.0 MB" in capsys.readouterr().out
    assert hub.requests == []


def test_a_cut_off_prefetch_keeps_what_is_whole(hub, recipe, capsys):
    hub.altered = {"unet/diffusion_pytorch_model.safetensors"}
    assert "was not loaded and is out of the cache" in refused(capsys, "prefetch", recipe)
    hub.altered = set()
    hub.requests.clear()
    capsys.readouterr()
    assert call("prefetch", recipe) == 0
    unet = hub.models["owner/base"][COMMIT] / "unet" / "diffusion_pytorch_model.safetensors"
    assert f"to fetch: {unet.stat().st_size / 1e6:.1f} MB" in capsys.readouterr().out
    assert hub.sent("unet/diffusion_pytorch_model.safetensors") == 1
    assert hub.sent("vae/diffusion_pytorch_model.safetensors") == 0


def test_a_disk_without_room_is_said_before_anything_is_fetched(hub, recipe, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    message = refused(capsys, "prefetch", recipe)
    assert "are to be fetched into" in message
    assert "set HF_HOME to another disk" in message
    assert not any("resolve" in request for request in hub.requests)


def test_a_recipe_that_is_none_is_refused_with_the_named_ones(capsys):
    message = refused(capsys, "prefetch", "flickr8k")
    assert "recipe not found: flickr8k; named ones are demo, flickr8k_sd15" in message


def test_stable_diffusions_recipe_names_pinned_models():
    recipe = PRESETS["flickr8k_sd15"]()
    assert {recipe.clip.name, recipe.base.name} == set(PINS)
    finetune = recipe.finetune
    assert (finetune.batch_size, finetune.num_epochs, finetune.learning_rate) == (32, 9, 1e-5)
    assert (finetune.max_grad_norm, finetune.mixed_precision) == (1.0, "fp16")
    assert recipe.generate.prompts == (
        "A dog running on the beach at sunset",
        "A colorful garden with blooming flowers",
    )
