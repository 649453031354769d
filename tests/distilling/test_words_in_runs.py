"""New words found or named, in distilling and in whole runs."""

import json
import shutil

import pytest
from diffusers import DDIMScheduler

import tiny
from clipgraft.config import apply_overrides, load_recipe
from clipgraft.data.formats import load_dataset
from clipgraft.distilling.distill import distill
from clipgraft.distilling.new_words import WORDS_NAME, NewWords, words_stage
from clipgraft.errors import CheckpointError, UserError
from clipgraft.models.clip import load_clip, save_clip
from clipgraft.models.graft import Graft
from clipgraft.models.lineage import NO_LINEAGE, Lineage
from clipgraft.section import GIVEN
from clipgraft.whole_run import check
from helpers import RECIPE, call, refused


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_flickr8k(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_words_are_found_only_by_images(distill_world):
    graft = Graft.from_pretrained(distill_world.graft)
    with pytest.raises(UserError, match="new words are found by images; give --data, or name the words"):
        distill(graft, ["a kite", "a dog"], new_words="auto")


def test_words_are_found_only_for_a_known_clip(distill_world, data):
    graft = Graft.from_pretrained(distill_world.graft)
    made = graft.lineage.find("bridge")
    unnamed = made.model_copy(update={"recipe": apply_overrides(made.recipe, {"clip.name": GIVEN})})
    for graft.lineage in (NO_LINEAGE, Lineage(stages=(unnamed,))):
        with pytest.raises(UserError, match="does not say which CLIP it was made of; find its new words"):
            distill(graft, load_dataset(data), new_words="auto")


@pytest.fixture
def blind_clip(distill_world, tmp_path):
    clip = load_clip(distill_world.clip)
    clip.model.text_projection.weight.data.zero_()
    save_clip(clip, tmp_path / "blind")
    return tmp_path / "blind"


def test_a_clip_that_sees_nothing_is_refused(distill_world, data, blind_clip, capsys):
    options = ["--clip", blind_clip, "--base", distill_world.base, "--data", data]
    line = refused(capsys, "new-words", *options, "--set", "device=cpu")
    assert "CLIP finds images no nearer to their captions than to no text" in line


def test_a_base_without_new_words_is_not_distilled():
    with pytest.raises(
        UserError, match="no new word found, so a distilled text encoder would be the base's own"
    ):
        NewWords(measured=()).refuse_none()


@pytest.fixture
def recipe(distill_world, data, tmp_path):
    # Of weights by which captions are nearer to their images than no text is.
    clip = tiny.write_clip(tmp_path / "clip", seed=2)
    paths = {"data": data, "clip": clip, "base": distill_world.base}
    text = RECIPE.format(**{name: json.dumps(str(path)) for name, path in paths.items()})
    (tmp_path / "recipe.toml").write_text(text + "\n[distill]\nnum_epochs = 1\n", encoding="utf-8")
    return tmp_path / "recipe.toml"


@pytest.mark.slow
def test_a_run_fits_its_bridges_without_new_words(recipe, tmp_path, capsys):
    words = 'distill.new_words=["kite"]'
    assert call("run", recipe, "--out", tmp_path / "run", "--set", "device=cpu", "--set", words) == 0
    assert "16 of 80 captions are left out: they have new words" in capsys.readouterr().err
    for stage in ("bridge_before", "bridge"):
        assert load_recipe(tmp_path / "run" / stage / "recipe.toml").bridge.exclude_words == ("kite",)
    assert load_recipe(tmp_path / "run" / "recipe.toml").bridge.exclude_words == ()


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (15, "no word is in captions of 16 training images or more, of 15 in all"),
        (0, "CLIP finds images no nearer to their captions than to no text, so it sees no word in them"),
    ],
)
def test_words_that_cannot_be_measured_end_no_run(recipe, blind_clip, tmp_path, capsys, images, reason):
    settings = apply_overrides(
        load_recipe(recipe),
        {"clip.name": str(blind_clip), "data.max_train_images": images, "device": "cpu"},
    )
    assert words_stage(settings, tmp_path / "words").words == frozenset()
    assert capsys.readouterr().out.splitlines() == [reason]
    assert not (tmp_path / "words" / WORDS_NAME).exists()


@pytest.mark.slow
@pytest.mark.parametrize("images", [0, 15])
def test_a_run_without_new_words_goes_on_undistilled(recipe, tmp_path, capsys, images):
    """Random weights see nothing, and no step changes them; 15 images are too few for any word."""
    overrides = ["device=cpu", "finetune.num_epochs=0", "distill.new_words=auto"]
    overrides += [f"data.max_train_images={images}"]
    options = [item for each in overrides for item in ("--set", each)]
    assert call("run", recipe, "--out", tmp_path / "run", *options) == 0
    assert "goes on without distilling, as no new word was found" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "distill").exists()
    assert load_recipe(tmp_path / "run" / "bridge" / "recipe.toml").bridge.exclude_words == ()


def test_a_base_that_cannot_be_asked_is_refused_first(recipe, distill_world, tmp_path):
    base = shutil.copytree(distill_world.base, tmp_path / "base")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(base / "scheduler")
    overrides = {"base.name": str(base), "distill.new_words": "auto", "device": "cpu"}
    with pytest.raises(CheckpointError, match="predicts 'v_prediction'; only through one that predicts"):
        check(apply_overrides(load_recipe(recipe), overrides))
