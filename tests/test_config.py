"""Recipes: strict, frozen, and equal after a round trip through TOML."""

import pytest

from clipgraft.config import (
    OLD_NAMES,
    FinetuneSettings,
    Recipe,
    apply_overrides,
    build_recipe,
    load_recipe,
    named_paths,
    parse_overrides,
    to_toml,
)
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
        path,
        parse_overrides(
            ["finetune.learning_rate=3e-5", "data.source=/some/folder", "pretrain.vae.num_epochs=1"]
        ),
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
        ("generate.guidance_scale=1e308", "less than or equal to 100; got 1e+308"),
        ("evaluate.guidance_scale=101", "less than or equal to 100; got 101"),
        ("generate.num_inference_steps=1001", "less than or equal to 1000; got 1001"),
        ("finetune.num_workers=100000", "less than or equal to 256; got 100000"),
        ("finetune.lora_rank=99999", "less than or equal to 4096; got 99999"),
        ("refine.text_lora_rank=99999", "less than or equal to 4096; got 99999"),
        ("bridge.hidden_size=100000", "less than or equal to 65536; got 100000"),
        ('data.source="a\\u0000b"', "a path holds no NUL character"),
        ("generate.seed=-2", "recipe key 'generate.seed'"),
        ("pretrain.vae.crop_size=20", "recipe key 'pretrain.vae.crop_size'"),
        ("no equals sign", "--set takes section.key=value; got 'no equals sign'"),
        ("seed.deeper=1", "--set 'seed.deeper=1': 'seed' is not a section"),
    ],
)
def test_wrong_setting_is_refused_by_name(override, message):
    with pytest.raises(ValueError, match=r".*") as caught:
        apply_overrides(Recipe(), parse_overrides([override]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            r'clip.name="C:\users\me"',
            r'--set clip.name="C:\users\me" is not TOML: Invalid hex value (at line',
        ),
        (
            r'clip.name="C:\train"',
            r"recipe key 'clip.name': a path that is not there holds a tab, a line end",
        ),
        (r'data.source="D:\new"', r"recipe key 'data.source': a path that is not there holds a tab, a line"),
    ],
)
def test_a_path_of_windows_is_told_how_to_be_written(override, message):
    with pytest.raises(UserError) as caught:
        apply_overrides(Recipe(), parse_overrides([override]))
    assert str(caught.value).startswith(message)
    assert "; in double quotes a backslash begins an escape: write it twice" in str(caught.value)


@pytest.mark.parametrize("value", [r"C:\users\me", r"'C:\users\me'", r'"C:\\users\\me"'])
def test_a_path_of_windows_is_taken_in_each_right_form(value):
    assert parse_overrides([f"clip.name={value}"]) == {"clip.name": r"C:\users\me"}


def test_a_path_may_hold_a_tab_where_there_is_one(tmp_path):
    (tmp_path / "a\tb").mkdir()
    recipe = apply_overrides(Recipe(), {"data.source": str(tmp_path / "a\tb")})
    assert recipe.data.source == str(tmp_path / "a\tb")


@pytest.mark.parametrize(
    "name", ["😀", "a\x7fb", 'a "quoted" \\ one', "[1, 2]", "true", "2024", "x # y", "' '"]
)
def test_given_settings_are_taken_as_they_are(name, tmp_path):
    given = {"data.source": f"/photos/{name}", "clip.name": name, "finetune.num_epochs": 3}
    recipe = apply_overrides(Recipe(), given | {"seed": 4})
    assert (recipe.data.source, recipe.clip.name) == (f"/photos/{name}", name)
    assert (recipe.finetune.num_epochs, recipe.seed) == (3, 4)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_recipe_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "recipe.toml").write_bytes(b"\xef\xbb\xbfseed = 7\n")
    assert load_recipe(tmp_path / "recipe.toml").seed == 7


PATHS = {
    *(
        "data.source",
        "bridge.captions",
        "evaluate.prompts",
        "generate.lora_dir",
        "generate.embedding_dir",
        "finetune.preview_graft",
    ),
    *("clip.name", "base.name", "evaluate.scorer"),
}


def test_local_paths_are_absolute_in_every_recipe(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("here", "./here", "here/", "~/here", str(tmp_path / "here")):
        recipe = apply_overrides(Recipe(), dict.fromkeys(PATHS, text))
        assert named_paths(recipe) == dict.fromkeys(PATHS, str(tmp_path / "here"))
    monkeypatch.chdir("/")
    assert build_recipe(recipe.model_dump()) == recipe


def test_files_of_loras_are_absolute_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = apply_overrides(Recipe(), {"generate.loras": ["fur.safetensors:0.5"]})
    assert named_paths(recipe) == {"generate.loras.0.file": str(tmp_path / "fur.safetensors")}
    (tmp_path / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_names_of_models_that_are_no_paths_stay(tmp_path, monkeypatch):
    (tmp_path / "flatland").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = apply_overrides(Recipe(), {"clip.name": "owner/name", "base.name": "flatland"})
    assert (recipe.clip.name, recipe.base.name) == ("owner/name", "flatland")
    assert named_paths(recipe) == {}


@pytest.mark.parametrize("key", sorted(PATHS))
def test_a_name_that_is_not_utf8_is_refused_by_key(key):
    with pytest.raises(
        UserError, match=rf"recipe key '{key}': .*is not UTF-8; give the file or folder another name"
    ):
        apply_overrides(Recipe(), {key: "caf\udce9"})


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
        apply_overrides(Recipe(), parse_overrides([override.format(token)]))
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("finetune.num_workers=true", "'finetune.num_workers': input should be a valid integer; got True"),
        ("finetune.num_epochs='9'", "'finetune.num_epochs': input should be a valid integer; got '9'"),
        ("finetune.learning_rate='x'", "'finetune.learning_rate': input should be a valid number; got 'x'"),
        ("finetune.compile=1", "'finetune.compile': input should be true or false; got 1"),
        (
            "finetune.num_epochs=2024-01-31",
            "'finetune.num_epochs': input should be a valid integer; got 2024-01-31",
        ),
        ("generate.prompts=a dog", "'generate.prompts': input should be a list; got 'a dog'"),
        ("finetune=1", "'finetune': input should be a table of keys and values; got 1"),
        ("data.sources=[3]", "'data.sources.0': input should be a table of keys and values; got 3"),
    ],
)
def test_values_of_another_type_are_refused(override, expected):
    with pytest.raises(UserError) as caught:
        apply_overrides(Recipe(), parse_overrides([override]))
    assert str(caught.value) == f"recipe key {expected}"


@pytest.mark.parametrize(
    ("override", "places"),
    [
        ("learning_rate=1", "'finetune.learning_rate' or 'bridge.learning_rate'"),
        ("finetune.seed=1", "'seed' or "),
        (f"data.{'x' * 3000}=1", "known here: source, "),
    ],
)
def test_a_key_of_another_section_is_named_with_it(override, places):
    with pytest.raises(UserError) as caught:
        apply_overrides(Recipe(), parse_overrides([override]))
    assert places in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_named_as_recipe_is_said(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name the recipe\.toml in it"):
        load_recipe(tmp_path)


def test_whole_numbers_and_lists_stand_for_floats_and_tuples():
    recipe = apply_overrides(
        Recipe(), parse_overrides(["finetune.learning_rate=1", "generate.guidance_interval=[0, 1]"])
    )
    assert recipe.finetune.learning_rate == 1.0
    assert recipe.generate.guidance_interval == (0.0, 1.0)


@pytest.fixture
def old_names(monkeypatch):
    """A recipe's text in names of an earlier version."""
    monkeypatch.setitem(OLD_NAMES, "finetune.passes", "finetune.num_epochs")
    monkeypatch.setitem(OLD_NAMES, "refine.strength", "bridge.ridge")
    monkeypatch.setitem(OLD_NAMES, "stairs", "")
    return "[finetune]\npasses = 3\nbatch_size = 8\n[refine]\nstrength = 0.5\n[stairs]\nnum_seeds = 2\n"


def test_an_old_name_is_answered_with_the_new_one(old_names, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(old_names)
    with pytest.raises(UserError, match=r"'finetune.passes' is called 'finetune.num_epochs' now; rename it"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"'finetune.passes' is called 'finetune.num_epochs' now"):
        apply_overrides(Recipe(), parse_overrides(["finetune.passes=3"]))
    with pytest.raises(UserError, match=r"recipe key 'stairs' is gone; leave it out"):
        build_recipe({"stairs": {"num_seeds": 2}})


def test_an_old_runs_recipe_is_read_under_new_names(old_names, tmp_path, caplog):
    path = tmp_path / "recipe.toml"
    path.write_text(old_names)
    (tmp_path / "environment.json").write_text("{}")
    recipe = load_recipe(path)
    assert (recipe.finetune.num_epochs, recipe.finetune.batch_size, recipe.bridge.ridge) == (3, 8, 0.5)
    assert "'stairs' of an older version has no effect any more" in caplog.text
