"""How many files a value passes on its way from the user to where it is used."""

import pytest

import clipgraft as cg
import tiny
from helpers import call
from trips import trip

CAPTION = "zebra crossing"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models and data; one caption is of words that no other has."""
    folder = tmp_path_factory.mktemp("trips")
    tiny.write_clip(folder / "clip")
    tiny.write_base(folder / "base")
    tokens = tiny.write_flickr8k(folder / "data") / "Flickr8k.token.txt"
    tokens.write_text(tokens.read_text().replace("0001.jpg#0\t", f"0001.jpg#0\t{CAPTION} "))
    models = ["--clip", folder / "clip", "--base", folder / "base"]
    few = ["--set", "bridge.allow_few_captions=true", "--set", "bridge.num_epochs=1"]
    assert call("bridge", "--data", folder / "data", *models, *few, "--out", folder / "bridge") == 0
    return folder


def finetune(world, learning_rate=1e-5):
    words = ["--data", world / "data", "--clip", world / "clip", "--out", world / "tuned", "--overwrite"]
    for setting in ("num_epochs=1", "batch_size=8", f"learning_rate={learning_rate}"):
        words += ["--set", f"finetune.{setting}"]
    assert call("finetune", *words) == 0


def generate(world, prompt):
    words = ["--graft", world / "bridge" / "graft", "--base", world / "base", "--engine", "torch"]
    assert call("generate", prompt, *words, "--steps", 2, "--out", world / "images" / prompt) == 0


@pytest.mark.integration
def test_config_value(world):
    files = trip(0.00123, "learning_rate_at", lambda: finetune(world, 0.00123))
    assert len(files) <= 6, files


def test_training_caption(world):
    def work():
        clip = cg.load_clip(str(world / "clip"))
        cg.finetune(clip, cg.load_dataset(world / "data"), num_epochs=1, batch_size=8)

    files = trip(CAPTION, "contrastive_loss", work)
    assert len(files) <= 10, files


@pytest.mark.integration
def test_prompt(world):
    prompt = "a red dog runs a red dog"  # words that are known: a note about others is no part of the way
    files = trip(prompt, "GraftedTextEncoder.forward", lambda: generate(world, prompt))
    assert len(files) <= 10, files


def test_graft_folder(world):
    graft = world / "bridge" / "graft"
    files = trip(graft, "verify_graft", lambda: generate(world, "a dog"))
    assert len(files) <= 4, files
