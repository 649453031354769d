"""What is asked for on the page, as a recipe; the names that it may use."""

import pytest

from clipgraft.config import demo
from clipgraft.errors import UserError
from clipgraft.studio.catalog import Catalog, UnknownModelError
from clipgraft.studio.training_plans import TrainingRequest, describe_choices, plan_training


@pytest.fixture(scope="module")
def catalog(runs_dir):
    return Catalog(runs_dir)


@pytest.fixture
def plan(catalog, tmp_path):
    def make(**values):
        request = TrainingRequest.model_validate({"name": "dogs", "kind": "finetune"} | values)
        return plan_training(request, catalog, tmp_path, "cpu")

    return make


def test_what_is_not_named_is_as_in_the_recipe(plan, tmp_path):
    recipe = plan(recipe="demo", num_epochs=3).recipe
    assert (recipe.data.source, recipe.device) == (str(tmp_path), "cpu")
    assert recipe.finetune == demo().finetune.model_copy(update={"num_epochs": 3})
    assert recipe.data.max_train_images == demo().data.max_train_images
    assert plan().options == ()


def test_a_run_lends_its_recipe_and_its_models(plan, runs_dir):
    made = plan(recipe="tiny", clip="tiny/after", kind="bridge", allow_few_captions=False)
    assert made.recipe.clip.name == str((runs_dir / "tiny/finetune/clip").absolute())
    assert made.recipe.base.name.endswith("/base")
    assert made.recipe.bridge.hidden_size == 16
    assert made.recipe.bridge.allow_few_captions is False


def test_distilling_takes_a_graft_and_finds_new_words(plan, runs_dir):
    made = plan(kind="distill", graft="tiny/after")
    assert made.options == ("--graft", str((runs_dir / "tiny/bridge/graft").absolute()))
    assert (made.recipe.distill.new_words, made.recipe.distill.num_epochs) == ("auto", 2)
    named = plan(kind="distill", graft="tiny/after", new_words=["hound"])
    assert named.recipe.distill.new_words == ("hound",)


def test_samples_are_drawn_by_a_graft_of_the_studio(plan, runs_dir):
    recipe = plan(preview_graft="tiny/after", preview_steps=5, prompts=["A dog"]).recipe
    assert recipe.finetune.preview_graft == str((runs_dir / "tiny/bridge/graft").absolute())
    assert (recipe.finetune.preview_steps, recipe.generate.prompts) == (5, ("A dog",))
    assert plan().recipe.finetune.preview_steps == 0


def test_choices_name_every_recipe_with_its_settings(catalog):
    choices = describe_choices(catalog)
    assert [row["name"] for row in choices["recipes"]] == ["", "demo", "flickr8k_sd15", "tiny"]
    of_run = choices["recipes"][-1]
    assert of_run["finetune"] == {"num_epochs": 2, "learning_rate": 1e-3, "batch_size": 8}
    assert (of_run["clip"], of_run["base"]) == ("clip", "base")  # no local folder
    assert choices["recipes"][2]["clip"] == "openai/clip-vit-base-patch32"
    assert choices["clips"] == ["flatland", "tiny/before", "tiny/after"]
    assert choices["grafts"] == ["tiny/before", "tiny/after"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "nope"}, "recipe: there is no 'nope'; known are demo, flickr8k_sd15, tiny"),
        ({"recipe": "../tiny"}, "recipe: there is no '../tiny'"),
        ({"kind": "distill"}, "graft: name the graft to distill"),
        (
            {"kind": "distill", "graft": "tiny/teacher"},
            "there is no graft 'tiny/teacher'; known are tiny/bef",
        ),
        ({"preview_graft": "/etc"}, "there is no graft '/etc'"),
    ],
)
def test_names_that_are_not_known_are_refused(plan, values, message):
    with pytest.raises(UserError, match=message):
        plan(**values)


def test_a_clip_is_one_of_the_studios(plan):
    with pytest.raises(
        UnknownModelError, match="there is no model '/etc/clip'; known are flatland, tiny/bef"
    ):
        plan(clip="/etc/clip")
