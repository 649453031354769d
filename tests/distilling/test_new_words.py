"""New words: what words are worth to CLIP and to the base, and what follows."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPModel

import tiny
from clipgraft.bridging.fit import bridge_recipe
from clipgraft.config import Recipe, apply_overrides, parse_overrides
from clipgraft.data.caption_words import read_words
from clipgraft.data.formats import load_dataset
from clipgraft.data.images import open_image
from clipgraft.data.transforms import clip_pixel_values, vae_pixel_values
from clipgraft.distilling.new_words import NewWords, WordWorth, find_new_words
from clipgraft.distilling.word_worth import (
    TIMESTEPS,
    BaseErrors,
    ClipCosines,
    Estimate,
    Use,
    find_uses,
)
from clipgraft.errors import UserError
from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import load_clip
from helpers import call, refused, states_of

NOTHING, LITTLE, MUCH = Estimate(0.0, -0.01, 0.01), Estimate(0.04, 0.02, 0.06), Estimate(0.2, 0.1, 0.3)
SEED = 2
"""Of weights by which captions are nearer to their images than no text is."""
HARM = Estimate(-0.2, -0.3, -0.1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return {
        "clip": tiny.write_clip(folder / "clip", SEED),
        "base": tiny.write_base(folder / "base"),
        "data": tiny.write_flickr8k(folder / "data"),
    }


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def images(world):
    return load_dataset(world["data"]).train


def worth(word="hound", **changes):
    figures = {"clip_alone": MUCH, "clip_left_out": MUCH, "base_alone": NOTHING, "base_left_out": NOTHING}
    return WordWorth(**{"word": word, "num_captions": 16, "example": f"A {word} .", **figures, **changes})


def test_uses_are_one_caption_each_of_as_many_images(images):
    uses = find_uses(images, at_least=16, at_most=5, seed=0)
    assert {"dog", "kite", "the", "a"} <= set(uses)
    assert not {"0", "15"} & set(uses), "each number is in the captions of one image"
    for word, each in uses.items():
        assert len({use.row for use in each}) == len(each) == 5
        assert all(word in use.caption.lower().split() for use in each)
        assert all(use.caption in images[use.row].captions for use in each)
    assert find_uses(images, at_least=17, at_most=5, seed=0) == {}
    assert find_uses(images, at_least=16, at_most=5, seed=1) != uses


def test_the_interval_is_that_of_student():
    """Hand-worked: mean 3 and variance 2.5 of five values; t of four degrees is 2.776."""
    found = Estimate.of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert found.mean == 3.0
    assert found.high - found.mean == pytest.approx(2.776 * 0.5**0.5, rel=0.005)
    assert found.high - found.mean == pytest.approx(found.mean - found.low)


@torch.no_grad()
def test_clip_loses_what_transformers_says_without_a_word(world, images):
    clip = load_clip(world["clip"])
    uses = {
        "red": [
            Use(3, "A red ball lies in the green park . 3"),
            Use(5, "A red ball lies in the green park . 5"),
        ]
    }
    cosines = ClipCosines(clip, images, uses)
    model = CLIPModel.from_pretrained(world["clip"]).eval()

    def cosine(row, caption):
        ids = clip.tokenizer([caption], return_tensors="pt").input_ids
        pixels = clip_pixel_values([open_image(images[row].file)], clip.image_processor)
        found = model(input_ids=ids, pixel_values=pixels)
        return float((found.image_embeds * found.text_embeds).sum())

    falls = [
        cosine(row, f"A red ball lies in the green park . {row}")
        - cosine(row, f"A ball lies in the green park . {row}")
        for row in (3, 5)
    ]
    whole = [cosine(row, f"A red ball lies in the green park . {row}") - cosine(row, "") for row in (3, 5)]
    assert cosines.left_out()["red"] == pytest.approx(np.array(falls) / np.mean(whole), rel=1e-3)


def test_a_word_alone_is_nearer_to_its_images_than_to_others(world, images):
    """By hand: two words and two images; a cosine of any word with an image, or any image, cancels out."""
    uses = {"dog": [Use(0, "a dog")], "cat": [Use(1, "a cat")]}
    cosines = ClipCosines(load_clip(world["clip"]), images, uses)
    cosines.image_embeds = torch.eye(2)
    cosines.features.of_texts = lambda words: torch.tensor([[0.9, 0.4], [0.8, 0.5]])
    cosines.worth = 0.5
    # Cosines of either image with dog and cat: 0.9, 0.8; 0.4, 0.5. Less their means: 0.05, -0.05; -0.05, 0.05
    found = cosines.alone()
    assert found["dog"] == pytest.approx([0.2])
    assert found["cat"] == pytest.approx([0.2])


@pytest.mark.slow
@torch.no_grad()
def test_the_base_errs_as_its_own_unet_does(world, images):
    """Within the rounding of an engine's bfloat16."""
    base = FrozenBase.load(str(world["base"]))
    errors = BaseErrors(base, images, "cpu")
    use, less, none = (
        Use(2, text) for text in ("A dog runs on the beach . 2", "A runs on the beach . 2", "")
    )
    errors.set_scale([use])
    shares = errors.left_out({"dog": [use]})["dog"]
    latents = base.encode_latents(vae_pixel_values([open_image(images[2].file)], 64, 64)).half().float()

    def error(caption, timestep):
        ids = base.tokenizer([caption], padding="max_length", return_tensors="pt").input_ids
        noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2000 + timestep))[None]
        noisy = base.scheduler.add_noise(latents, noise, torch.tensor([timestep]))
        states = base.text_encoder(ids).last_hidden_state
        return float((base.unet(noisy, timestep, states).sample - noise).square().mean())

    for each in (use, less, none):
        expected = [error(each.caption, timestep) for timestep in TIMESTEPS]
        assert errors.known[each] == pytest.approx(expected, rel=0.01)
    rise, worth = errors.known[less] - errors.known[use], errors.known[none] - errors.known[use]
    assert shares == pytest.approx([np.mean(rise / worth)], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "is_new"),
    [
        ({}, True),
        ({"base_left_out": Estimate(-0.1, -0.2, 0.0)}, True),
        ({"base_alone": Estimate(-0.05, -0.2, 0.1)}, True),
        ({"clip_alone": NOTHING}, False),
        ({"clip_alone": LITTLE}, False),
        ({"clip_left_out": NOTHING}, False),
        ({"clip_left_out": LITTLE}, False),
        ({"base_left_out": LITTLE}, False),
        ({"base_left_out": MUCH}, False),
        ({"base_alone": MUCH}, False),
        ({"base_alone": HARM}, False),
        ({"base_alone": None}, False),
        ({"base_alone": None, "base_left_out": None}, False),
    ],
)
def test_new_is_seen_by_clip_and_unused_by_the_base(changes, is_new):
    assert worth(**changes).is_new == is_new


@pytest.mark.parametrize(
    ("left_out", "is_undecided"),
    [
        (NOTHING, False),
        (MUCH, False),
        (Estimate(0.04, 0.02, 0.06), True),
        (Estimate(-0.03, -0.1, 0.05), True),
        (None, False),
    ],
)
def test_more_captions_are_read_where_they_can_decide(left_out, is_undecided):
    """CLIP loses 0.2 without the word; a quarter of that is the most for the base."""
    assert worth(base_left_out=left_out).is_undecided == is_undecided


def test_words_come_by_what_clip_sees_and_are_read_back(tmp_path, capsys):
    seen_less = {"clip_alone": Estimate(0.1, 0.06, 0.14)}
    found = NewWords(measured=(worth("dusk", **seen_less), worth("dog", base_left_out=MUCH), worth("hound")))
    assert [each.word for each in found.new] == ["hound", "dusk"]
    found.write_list(tmp_path / "words.txt")
    assert read_words(tmp_path / "words.txt") == found.words == {"hound", "dusk"}
    found.print()
    printed = capsys.readouterr().out
    assert "3 words in captions; 3 that CLIP sees in images; 2 of those new" in printed
    assert "A hound ." in printed.replace("\n", " ")


def test_an_example_in_brackets_is_printed_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    caption = "[/b] A [red] hound :dog:"
    NewWords(measured=(worth(example=caption),)).print()
    assert caption in capsys.readouterr().out


def test_nothing_new_is_said_with_what_follows(capsys):
    NewWords(measured=(worth(base_left_out=MUCH),)).print()
    assert "nothing to distil: what CLIP sees by words the base uses already" in capsys.readouterr().out


@pytest.mark.integration
def test_the_base_is_asked_only_of_words_that_clip_sees(world):
    base = FrozenBase.load(str(world["base"]), components=("vae", "scheduler"))
    clip = load_clip(world["clip"])
    before = states_of(clip.model.train(), base.vae)
    found = find_new_words(clip, base, load_dataset(world["data"]), device="cpu")
    assert states_of(clip.model, base.vae) == before
    assert {each.word for each in found.measured} >= {"dog", "kite"}
    for each in found.measured:
        assert (each.base_left_out is not None) == each.is_seen
        assert (each.base_alone is not None) == each.is_left_out


def test_a_clip_of_no_finite_numbers_sees_no_word(world):
    clip = load_clip(world["clip"])
    torch.nn.init.constant_(clip.model.text_projection.weight, float("nan"))
    base = FrozenBase.load(str(world["base"]), components=("vae", "scheduler"))
    with pytest.raises(UserError, match="CLIP finds images no nearer to their captions than to no text"):
        find_new_words(clip, base, load_dataset(world["data"]), device="cpu")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        ("conv_out.bias", 1e30, "the base predicts noise that is no finite number; name the new"),
        ("attn2.to_out", 0.0, "the base predicts the same noise with and without text; name the new words"),
    ],
)
def test_a_base_that_no_word_can_be_measured_by_is_named(world, tmp_path, images, names, value, message):
    folder = shutil.copytree(world["base"], tmp_path / "base")
    [path] = (folder / "unet").glob("*.safetensors")
    weights = load_file(path)
    changed = {name: torch.full_like(weight, value) for name, weight in weights.items() if names in name}
    save_file(weights | changed, path, {"format": "pt"})
    errors = BaseErrors(FrozenBase.load(str(folder), components=("vae", "scheduler")), images, "cpu")
    with pytest.raises(UserError, match=message):
        errors.set_scale([Use(2, "A dog runs on the beach . 2")])


def test_without_a_word_that_clip_sees_no_base_is_asked(world, monkeypatch, capsys):
    monkeypatch.setattr("clipgraft.distilling.new_words.SEEN", 100.0)
    base = FrozenBase.load(str(world["base"]), components=("vae", "scheduler"))
    found = find_new_words(load_clip(world["clip"]), base, load_dataset(world["data"]), device="cpu")
    assert found.measured
    assert {each.base_left_out for each in found.measured} == {None}
    found.print()
    assert "nothing to distil: CLIP surely sees no word; fine-tune it for longer" in capsys.readouterr().out


@pytest.mark.slow
def test_command_takes_models_by_name_or_of_a_graft(world, tmp_path, capsys):
    names = [item for name in ("clip", "base", "data") for item in (f"--{name}", world[name])]
    assert call("new-words", *names, "--set", "device=cpu", "--out", tmp_path / "words.txt") == 0
    by_name = capsys.readouterr().out
    assert f"new words: {tmp_path / 'words.txt'}" in by_name.replace("\n", "")
    keys = {"clip.name": "clip", "base.name": "base", "data.source": "data"}
    texts = [f"{key}={json.dumps(str(world[name]))}" for key, name in keys.items()]
    few = ["bridge.num_epochs=0", "bridge.allow_few_captions=true"]
    bridge_recipe(apply_overrides(Recipe(), parse_overrides([*texts, *few])), tmp_path / "bridge")
    graft = tmp_path / "bridge" / "graft"
    capsys.readouterr()
    assert call("new-words", "--graft", graft, "--data", world["data"], "--set", "device=cpu") == 0
    assert capsys.readouterr().out.splitlines()[0] == by_name.splitlines()[0]
    line = refused(capsys, "new-words", "--graft", graft, "--clip", world["clip"])
    assert "--graft names CLIP and base; leave --clip and --base out" in line


def test_too_few_images_for_any_word_are_refused(world, tmp_path, capsys):
    names = [item for name in ("clip", "base", "data") for item in (f"--{name}", world[name])]
    line = refused(capsys, "new-words", *names, "--set", "data.max_train_images=15")
    assert "no word is in captions of 16 training images or more, of 15 in all; give more images" in line
