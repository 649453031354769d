"""A run read back: its layout, state, models and results."""

import json
from typing import Literal

import pytest

from clipgraft.config import Recipe, to_toml
from clipgraft.errors import CheckpointError, MissingFileError
from clipgraft.runs.folder import hold_folder
from clipgraft.runs.run import Run, StageResult


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
    with pytest.raises(CheckpointError, match=r"holds no run \(no recipe.toml\)"):
        _ = stage.recipe


def test_run_without_a_graft_says_how_to_finish_it(tmp_path):
    with pytest.raises(CheckpointError, match="has no weights to draw with"):
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
        assert list(place.results()) == ["bridge"]


def test_damaged_result_is_named_in_one_line(run):
    path = run.path / "bridge" / "metrics.json"
    path.write_text('{"num_captions": "many", "error": 1}')
    with pytest.raises(CheckpointError, match=r"metrics.json: num_captions: Input should be a valid integer"):
        run.result(BridgeFigures)
    path.write_text('{"schema_version": 2}')
    with pytest.raises(CheckpointError, match=r"metrics.json was written by a newer clipgraft"):
        run.results()
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"metrics.json: Invalid JSON"):
        run.results()
