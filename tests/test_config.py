"""Recipes: strict, frozen, and equal after a round trip through TOML."""

import pytest

from clipgraft.config import FinetuneSettings, Recipe, apply_overrides, build_recipe, load_recipe, to_toml
from clipgraft.errors import UserError


def test_finetune_defaults_are_the_seed_recipe():
    settings = FinetuneSettings()
    assert (settings.learning_rate, settings.batch_size, settings.num_epochs) == (1e-5, 32, 9)
    assert settings.max_grad_norm == 1.0


def test_recipe_comes_back_equal_through_toml(tmp_path):
    prompts = [
        'a "quoted" prompt',
        "back\\slash",
        "emoji 🐕 and عربي",
        "two\nlines",
        "bell \x07 and delete \x7f",
    ]
    recipe = build_recipe({"generate": {"prompts": prompts}, "finetune": {"learning_rate": 3e-5}})
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert recipe.generate.prompts == tuple(prompts)


def test_override_wins_over_the_file(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[finetune]\nlearning_rate = 1e-4\nbatch_size = 8\n")
    recipe = load_recipe(
        path, ["finetune.learning_rate=3e-5", "data.source=/some/folder", "pretrain.vae.num_epochs=1"]
    )
    assert recipe.finetune.learning_rate == 3e-5
    assert recipe.finetune.batch_size == 8
    assert recipe.data.source == "/some/folder"
    assert recipe.pretrain.vae.num_epochs == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "finetune.learning_rat=1",
            "unknown recipe key 'finetune.learning_rat'; did you mean 'learning_rate'",
        ),
        ("finetoon.learning_rate=1", "unknown recipe key 'finetoon'; did you mean 'finetune'"),
        ("zzz=1", "unknown recipe key 'zzz'; known here: seed, device"),
        (
            "finetune.learning_rate=0",
            "recipe key 'finetune.learning_rate': input should be greater than 0; got 0",
        ),
        ("finetune.learning_rate=-1e-5", "greater than 0; got -1e-05"),
        ("finetune.learning_rate=nan", "recipe key 'finetune.learning_rate'"),
        ("finetune.batch_size=0", "greater than or equal to 1; got 0"),
        ("finetune.lr_schedule=step", "recipe key 'finetune.lr_schedule'"),
        ("generate.guidance_scale=nan", "recipe key 'generate.guidance_scale'"),
        ("generate.seed=-1", "recipe key 'generate.seed'"),
        ("pretrain.vae.crop_size=20", "recipe key 'pretrain.vae.crop_size'"),
        ("no equals sign", "--set takes section.key=value; got 'no equals sign'"),
        ("seed.deeper=1", "--set 'seed.deeper=1': 'seed' is not a section"),
    ],
)
def test_wrong_setting_is_refused_by_name(override, message):
    with pytest.raises(ValueError, match=r".*") as caught:
        apply_overrides(Recipe().model_dump(), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_recipe_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"recipe not found: .*nowhere\.toml"):
        load_recipe(tmp_path / "nowhere.toml")


def test_recipe_that_is_not_toml_is_named(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("learning_rate: 1")
    with pytest.raises(ValueError, match=r"recipe\.toml is not TOML"):
        load_recipe(path)


@pytest.mark.parametrize("override", ["clip.revision={}", "data.source=https://me:{}@host/x", "token={}"])
def test_a_token_of_the_hub_is_refused_without_being_told(override):
    token = "hf_" + "a1B2" * 9
    with pytest.raises(ValueError, match=r"holds a token of the model hub; .* \(HF_TOKEN\)") as caught:
        apply_overrides(Recipe().model_dump(), [override.format(token)])
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune.num_workers=true", "'finetune.num_workers': input should be a valid integer; got True"),
        ("finetune.num_epochs='9'", "'finetune.num_epochs': input should be a valid integer; got '9'"),
        ("finetune.learning_rate='x'", "'finetune.learning_rate': input should be a valid number; got 'x'"),
        ("finetune.compile=1", "'finetune.compile': input should be a valid boolean; got 1"),
    ],
)
def test_values_of_another_type_are_refused(override, expected):
    with pytest.raises(UserError) as caught:
        apply_overrides({}, [override])
    assert str(caught.value) == f"recipe key {expected}"


def test_whole_numbers_and_lists_stand_for_floats_and_tuples():
    recipe = apply_overrides({}, ["finetune.learning_rate=1", "generate.guidance_interval=[0, 1]"])
    assert recipe.finetune.learning_rate == 1.0
    assert recipe.generate.guidance_interval == (0.0, 1.0)
