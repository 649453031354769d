"""What is told of how a graft was made: by its own file, and for older ones by the recipe beside it."""

import json
import shutil
from pathlib import Path

import pytest

from clipgraft.config import Recipe, apply_overrides, to_toml
from clipgraft.errors import CheckpointError
from clipgraft.models.clip import load_clip
from clipgraft.models.lineage import Lineage, Stage, clip_lineage, read_lineage
from clipgraft.settings import ModelSettings

OLD_RUN = Path(__file__).resolve().parents[1] / "fixtures" / "old_run"


def test_an_older_graft_is_known_by_the_recipe_beside_it():
    lineage = read_lineage(OLD_RUN / "refine" / "graft")
    assert [stage.stage for stage in lineage.stages] == ["bridge", "refine"]
    assert [clip.name for clip in lineage.clips] == ["/old/clip"]
    assert lineage.find("bridge").recipe.bridge.hidden_size == 8
    refined = lineage.find("refine")
    assert refined.counts == {"num_train_images": 16}
    assert set(refined.figures["before"]) == {"50", "250", "500", "750", "950"}


def test_an_older_graft_by_itself_has_no_lineage(tmp_path):
    shutil.copytree(OLD_RUN / "refine" / "graft", tmp_path / "alone" / "graft")
    assert read_lineage(tmp_path / "alone" / "graft") == Lineage()


def test_a_clip_knows_what_it_was_fine_tuned_from(clip_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(clip_dir, run / "clip")
    (run / "recipe.toml").write_text(to_toml(apply_overrides(Recipe(), {"clip.name": "owner/name"})))
    (run / "metrics.json").write_text(json.dumps({"before": {"recall@1": 0.5}, "after": None}))
    [stage] = load_clip(run / "clip").lineage
    assert (stage.stage, stage.recipe.clip.name) == ("finetune", "owner/name")
    assert stage.figures == {"before": {"recall@1": 0.5}, "after": {}}


def test_the_working_directory_is_no_lineage_of_a_named_clip(tmp_path, monkeypatch):
    (tmp_path / "recipe.toml").write_text(to_toml(Recipe()))
    monkeypatch.chdir(tmp_path)
    assert clip_lineage(ModelSettings(name="flatland")) == ()


def test_recipes_that_name_each_other_end(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name / "clip").mkdir(parents=True)
        recipe = apply_overrides(Recipe(), {"clip.name": str(tmp_path / other / "clip")})
        (tmp_path / name / "recipe.toml").write_text(to_toml(recipe))
    assert len(clip_lineage(ModelSettings(name=str(tmp_path / "a" / "clip")))) == 2


def test_a_lineage_comes_back_from_its_file(tmp_path):
    recipe = apply_overrides(Recipe(), {"clip.name": "owner/name", "bridge.ridge": 0.5})
    lineage = Lineage(stages=(Stage(stage="bridge", recipe=recipe, figures={"linear": {"words": 0.5}}),))
    (tmp_path / "lineage.json").write_text(lineage.model_dump_json())
    assert read_lineage(tmp_path) == lineage


def test_settings_of_another_version_are_not_known(tmp_path):
    stage = {"stage": "bridge", "recipe": {"bridge": {"nothing": 1}}}
    (tmp_path / "lineage.json").write_text(json.dumps({"schema_version": 1, "stages": [stage]}))
    [found] = read_lineage(tmp_path).stages
    assert found.recipe is None


@pytest.mark.parametrize("content", ["", "[]", '{"stages": 1}', '{"schema_version": 2}'])
def test_a_damaged_lineage_is_named(tmp_path, content):
    (tmp_path / "lineage.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"lineage\.json is damaged"):
        read_lineage(tmp_path)
