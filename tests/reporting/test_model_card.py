"""Cards of runs and exported grafts: front matter, figures, terms, and no place of this machine."""

from clipgraft.config import Recipe
from clipgraft.models.configs import BaseRecord
from clipgraft.models.hub import PINS
from clipgraft.models.lineage import Lineage, Stage
from clipgraft.reporting.model_card import graft_card, public_name, public_recipe


def test_a_card_of_stable_diffusion_has_commit_licence_and_fine_tuning():
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


def test_paths_of_this_machine_are_cut_to_their_last_part(tmp_path):
    assert public_name(str(tmp_path / "photos")) == "photos"
    assert public_name("owner/name") == "owner/name"
    recipe = {"seed": 1, "data": {"source": str(tmp_path / "photos")}, "clip": {"name": "owner/name"}}
    assert public_recipe(recipe) == {
        "seed": 1,
        "data": {"source": "photos"},
        "clip": {"name": "owner/name"},
    }
