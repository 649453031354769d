"""Cards of runs and exported grafts: front matter, figures, terms, and no place of this machine."""

import pytest
from example_run import DATA, write_evaluation, write_json

from clipgraft.config import Recipe, apply_overrides
from clipgraft.models.configs import BaseRecord
from clipgraft.models.hub import PINS
from clipgraft.models.lineage import Lineage, Stage
from clipgraft.reporting.model_card import graft_card, public_name, public_recipe, run_card
from clipgraft.reporting.report import summarize
from clipgraft.reporting.run_data import read_run
from clipgraft.section import GIVEN


def test_card_of_stable_diffusion_has_commit_and_licence():
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    base = BaseRecord(name=name, revision=PINS[name].revision, sums={})
    recall = {"text_to_image_recall@1": 0.25, "image_to_text_recall@1": 0.5, "num_images": 8}
    figures = {"before": recall, "after": {**recall, "text_to_image_recall@1": 0.75}}
    tuned = Stage(stage="finetune", recipe=Recipe(), figures=figures)
    card = graft_card("Content.", base, Lineage(stages=(tuned,)))
    assert card.startswith("---\n")
    for part in (
        f"base_model: {name}",
        "license: creativeml-openrail-m",
        f"at commit `{PINS[name].revision}`",
        "| text_to_image_recall@1 | 0.2500 | 0.7500 |",
        "hand on a copy of that licence",
        "not to exploit or harm minors",
    ):
        assert part in " ".join(card.split())
    assert "num_images" not in card


def test_flatlands_card_has_no_terms_of_stable_diffusion():
    card = graft_card("Content.", BaseRecord(name="flatland", sums={}), Lineage())
    assert "license: apache-2.0" in card
    assert "OpenRAIL" not in card


def test_what_was_given_in_python_has_no_name():
    keys = ("clip.name", "bridge.captions", "distill.captions")
    recipe = apply_overrides(Recipe(), dict.fromkeys(keys, GIVEN))
    stages = [Stage(stage=name, recipe=recipe) for name in ("bridge", "distill")]
    card = graft_card("Content.", BaseRecord(name="flatland", sums={}), Lineage(stages=tuple(stages)))
    assert "- Captions: given in Python.\n- CLIP: given in Python." in card
    assert "own text encoder on captions given in Python." in card
    assert "flatland8k" not in card


def test_paths_of_this_machine_are_cut_to_their_last_part(tmp_path):
    assert public_name(str(tmp_path / "photos")) == "photos"
    assert public_name("owner/name") == "owner/name"
    recipe = {"seed": 1, "data": {"source": str(tmp_path / "photos")}, "clip": {"name": "owner/name"}}
    assert public_recipe(recipe) == {
        "seed": 1,
        "data": {"source": "photos"},
        "clip": {"name": "owner/name"},
    }


def test_card_and_json_have_warnings_and_sampling_settings(run_dir):
    write_evaluation(run_dir / "evaluate")
    write_json(run_dir / "evaluate" / "metrics.json", {"scores": {"after": {"mean": 0.8}}, "settings": {}})
    run = read_run(run_dir)
    card = run_card(run)
    assert card.count("## Prompt fidelity\n") == 1
    assert "not independent" in card
    assert "Generated and scored with: " in card
    assert "seed: 0, steps: 20, guidance: 3.0" in card
    assert ", images: " in card
    assert any("not independent" in note for note in summarize(run)["evaluation"]["notes"])


def test_model_card_holds_figures_and_no_foreign_markup(run_dir):
    write_evaluation(run_dir / "evaluate")
    left_out = [{"kind": "image", "reason": "a|b\n# <script>", "count": 1, "examples": ["[x](http://y)"]}]
    write_json(run_dir / "data.json", DATA | {"excluded": left_out})
    card = run_card(read_run(run_dir))
    assert "| recall@1 | 11.2 % | 31.2 % | +20.0 |" in card
    assert "## Prompt fidelity" in card
    assert "a\\|b # \\<script\\>" in card
    assert "[x]" not in card.replace("\\[x\\]", "")
    assert "clipgraft demo --out runs/demo" in card


@pytest.mark.parametrize("missing", ["finetune/metrics.json", "data.json", "environment.json", "recipe.toml"])
def test_card_of_an_incomplete_run_omits_missing_parts(run_dir, missing):
    (run_dir / missing).unlink()
    assert "\n# demo\n" in run_card(read_run(run_dir))
