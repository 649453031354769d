"""A run begun, resumed and read back: its layout, settings, state, models and results."""

import json
import time
from pathlib import Path
from typing import Literal

import pytest

from clipgraft.config import Recipe, apply_overrides, load_recipe, parse_overrides, to_toml
from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.runs.folder import LOCK_NAME, RECIPE_NAME, hold_folder, unknown_names
from clipgraft.runs.run import Run, StageResult, differing_settings
from helpers import files_of_at_most


class BridgeFigures(StageResult):
    stage: Literal["bridge"] = "bridge"
    num_captions: int
    error: float | None


@pytest.fixture
def run(tmp_path):
    """A whole run with a tuned CLIP and two grafts."""
    for place in ("finetune/clip", "bridge_before/graft", "bridge/graft", "generate"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "recipe.toml").write_text(to_toml(Recipe(seed=7)))
    return Run.open(tmp_path)


@pytest.fixture
def begun(tmp_path):
    """A run that was begun with default settings and has made a step."""
    folder = tmp_path / "run"
    for name, text in {RECIPE_NAME: to_toml(Recipe()), "log.jsonl": "{}\n", "clip/model": "old"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK_NAME)
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.fixture
def stage(tmp_path):
    """A bridge made by itself."""
    (tmp_path / "mine" / "graft").mkdir(parents=True)
    return Run.open(tmp_path / "mine")


def test_folder_that_is_missing_is_no_run(tmp_path):
    with pytest.raises(MissingFileError, match="run folder not found"):
        Run.open(tmp_path / "none")


def test_whole_run_knows_its_stages_and_models(run, tmp_path):
    assert run.recipe.seed == 7
    assert run.stages == ("finetune", "bridge_before", "bridge", "generate")
    assert not run.is_single_stage
    assert run.stage("bridge").path == tmp_path / "bridge"
    assert run.variants() == {
        "teacher": None,
        "before": tmp_path / "bridge_before" / "graft",
        "after": tmp_path / "bridge" / "graft",
    }
    assert {name: clip.name for name, clip in run.clips().items()} == {
        "before": "flatland",
        "after": str(tmp_path / "finetune" / "clip"),
    }


def test_single_stage_is_its_own_stage(stage):
    assert stage.is_single_stage
    assert stage.stage("bridge") == stage
    assert stage.grafts() == {"graft": stage.path / "graft"}
    assert stage.clips() == {}
    with pytest.raises(CheckpointError, match=r"is a run of bridge or refine without recipe.toml"):
        _ = stage.recipe


def test_run_without_a_graft_says_how_to_finish_it(tmp_path):
    (tmp_path / RECIPE_NAME).write_text(to_toml(Recipe()))
    with pytest.raises(CheckpointError, match="has no weights to generate with"):
        Run(tmp_path).variants()


def test_run_is_running_while_a_stage_is_held(run):
    assert not run.is_running
    with hold_folder(run.path / "bridge"):
        assert run.is_running
    assert not run.is_running


def test_run_is_finished_with_its_last_file(run, stage):
    assert not run.is_finished
    (run.path / "report.html").touch()
    assert run.is_finished
    (stage.path / "metrics.json").touch()
    assert stage.is_finished


def test_results_are_read_by_the_model_that_wrote_them(run, stage):
    written = BridgeFigures(num_captions=3, error=float("nan"))
    for folder in (run.path / "bridge", stage.path):
        written.save(folder)
        assert json.loads((folder / "metrics.json").read_text()) == {
            "stage": "bridge",
            "schema_version": 1,
            "num_captions": 3,
            "error": None,
        }
    for place in (run, stage):
        assert place.result(BridgeFigures) == BridgeFigures(num_captions=3, error=None)


def test_result_of_another_stage_is_not_taken_for_it(stage):
    (stage.path / "metrics.json").write_text('{"stage": "refine"}')
    assert stage.result(BridgeFigures) is None


def test_damaged_result_is_named_in_one_line(run):
    path = run.path / "bridge" / "metrics.json"
    path.write_text('{"num_captions": "many", "error": 1}')
    with pytest.raises(CheckpointError, match=r"metrics.json: num_captions: Input should be a valid integer"):
        run.result(BridgeFigures)
    path.write_text('{"schema_version": 2, "num_captions": 3, "error": 1}')
    with pytest.raises(CheckpointError, match=r"metrics.json was written by a newer clipgraft"):
        run.result(BridgeFigures)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"metrics.json: Invalid JSON"):
        run.result(BridgeFigures)


PATHS = ("data.source", "clip.name", "base.name", "bridge.captions", "evaluate.prompts", "evaluate.scorer")
PATHS += ("generate.lora_dir", "generate.embedding_dir", "finetune.preview_graft")


@pytest.mark.parametrize("key", PATHS)
def test_no_path_of_a_recipe_is_overwritten(begun, key, monkeypatch):
    monkeypatch.chdir(begun.parent)
    before = content(begun)
    recipe = apply_overrides(Recipe(), {key: "run/clip"})
    with (
        pytest.raises(UserError, match=rf"^{key} /.*run/clip lies in the out folder"),
        Run.begin(Path("run"), recipe, overwrite=True),
    ):
        pass
    assert content(begun) == before


def test_own_recipe_is_an_input_that_a_run_goes_on_with(begun):
    inputs = {"the recipe": begun / RECIPE_NAME}
    with Run.begin(begun, Recipe(), inputs=inputs, resume=True):
        pass
    with (
        pytest.raises(UserError, match=r"the recipe .* lies in the out folder"),
        Run.begin(begun, Recipe(), inputs=inputs, overwrite=True),
    ):
        pass


def test_equal_recipe_is_not_written_again(begun):
    written = begun / RECIPE_NAME
    written.write_text("# my own words\n" + written.read_text())
    with Run.begin(begun, Recipe(), resume=True):
        pass
    assert written.read_text().startswith("# my own words")


@pytest.mark.parametrize("size", [0, 100, 900])
def test_damaged_recipe_is_said_and_nothing_is_lost(begun, size):
    written = begun / RECIPE_NAME
    written.write_bytes(written.read_bytes()[:size] + b"x = [" * bool(size))
    before = content(begun)
    with (
        pytest.raises(CheckpointError, match="does not say any more what the run was begun with") as caught,
        Run.begin(begun, Recipe(), resume=True),
    ):
        pass
    assert "put the run's recipe there, then --resume again" in str(caught.value)
    assert content(begun) == before


def test_recipe_is_whole_after_a_full_disk(begun):
    recipe = apply_overrides(Recipe(), {"finetune.num_workers": 1})
    with (
        files_of_at_most(2048),
        pytest.raises(OSError, match="File too large"),
        Run.begin(begun, recipe, resume=True),
    ):
        pass
    assert load_recipe(begun / RECIPE_NAME) == Recipe()


SAME = (
    ["finetune.num_workers=2"],
    ["finetune.checkpoint_every=7", "finetune.save_total_limit=9"],
    ["finetune.report_to=tensorboard"],
    ["finetune.num_epochs=10"],
    ["data.source=/moved/photos"],
    ["generate.seed=4", "bridge.ridge=1"],
)
OTHER = (
    ["seed=1"],
    ["finetune.num_epochs=8"],
    ["finetune.batch_size=16"],
    ["data.max_train_images=8"],
    ["data.source="],
    ["clip.name=owner/name"],
)


@pytest.mark.parametrize("overrides", SAME)
def test_settings_that_change_no_result_are_no_others(overrides):
    begun = apply_overrides(Recipe(), {"data.source": "/photos"})
    assert differing_settings(begun, apply_overrides(begun, parse_overrides(overrides)), "finetune") == []


def test_only_the_last_part_of_pretraining_may_be_cut_short():
    shorter = [f"pretrain.{part}.num_epochs=1" for part in ("vae", "clip", "probe", "unet")]
    changed = apply_overrides(Recipe(), parse_overrides(shorter))
    found = [text.split()[0] for text in differing_settings(Recipe(), changed, "pretrain")]
    assert found == [f"pretrain.{part}.num_epochs" for part in ("vae", "clip", "probe")]


@pytest.mark.parametrize("overrides", OTHER)
def test_settings_that_change_the_result_are_named(overrides):
    begun = apply_overrides(Recipe(), {"data.source": "/photos"})
    found = differing_settings(begun, apply_overrides(begun, parse_overrides(overrides)), "finetune")
    assert [text.split()[0] for text in found] == [overrides[0].split("=")[0]]


def test_pictures_on_the_way_are_a_part_of_fine_tuning():
    begun = apply_overrides(Recipe(), {"finetune.preview_steps": 2})
    other = apply_overrides(begun, {"generate.seed": 4})
    assert differing_settings(begun, other, "finetune") == ["generate.seed was 0, is 4"]


def test_every_name_that_a_stage_leaves_is_known(tmp_path):
    with Run.begin(tmp_path / "run", Recipe()) as run:
        folder = run.path
    assert unknown_names(folder) == []
    assert json.loads((folder / "resources.json").read_text())
    (folder / "mine.txt").touch()
    assert unknown_names(folder) == ["mine.txt"]
    assert time.time() - folder.stat().st_mtime < 60
