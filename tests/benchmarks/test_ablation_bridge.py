"""The bridge's ablation: seeds summed up, tables and figure, and all variants once on flatland."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from clipgraft.bridging.fit import STATES_NAME
from clipgraft.config import Recipe, apply_overrides, parse_overrides
from clipgraft.files import write_json
from clipgraft.flatland import is_known_to_teacher

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from ablation_bridge import (
    TEACHER,
    VARIANTS,
    Ablation,
    ablation_recipe,
    plot,
    run_ablation,
    slug,
    summarize,
    tables,
)
from unseen_words import unseen_word_prompts

FIGURES = (
    *(
        f"{kind}_{name}"
        for kind in ("state_error", "key_value_error")
        for name in ("words", "eos", "padding")
    ),
    *(f"noise_error_{timestep}" for timestep in (50, 250, 500, 750, 950)),
    *("fidelity", "fidelity_seen", "fidelity_held_out", "fidelity_kept_words", "fidelity_plain_words"),
    *("pixel_difference", "agreement"),
)


def found_of(*offsets):
    """Figures of one seed for each offset: variant k has 0.1 k + offset in all of them."""
    return [
        {name: dict.fromkeys(FIGURES, 0.1 * place + offset) for place, name in enumerate(VARIANTS)}
        for offset in offsets
    ]


def test_seeds_give_mean_and_standard_deviation():
    variants = summarize(found_of(0.0, 0.02, 0.04))
    assert list(variants) == list(VARIANTS)
    assert variants["map per class"]["fidelity"]["mean"] == pytest.approx(0.32)
    assert variants["map per class"]["fidelity"]["spread"] == pytest.approx(0.02)
    assert variants["map per class"]["fidelity"]["values"] == pytest.approx([0.3, 0.32, 0.34])


def test_one_seed_has_no_spread():
    assert summarize(found_of(0.0))[TEACHER]["fidelity"]["spread"] == 0


def test_folder_names_are_plain_and_differ():
    slugs = [slug(name) for name in VARIANTS]
    assert len(set(slugs)) == len(VARIANTS)
    assert all(name.replace("_", "").isalpha() for name in slugs)


def test_tables_name_every_variant_and_fit_into_100_columns():
    console = Console(width=100, record=True)
    for table in tables(summarize(found_of(0.0, 0.02))):
        console.print(table)
    text = console.export_text()
    assert all(text.count(name) >= 3 for name in VARIANTS)
    assert "…" not in text


def test_the_plot_is_drawn(tmp_path):
    plot(summarize(found_of(0.0, 0.02)), tmp_path)
    with Image.open(tmp_path / "ablation.png") as picture:
        assert picture.size == (1200, 750)
    svg = (tmp_path / "ablation.svg").read_text()
    assert svg.startswith("<?xml")


def test_unseen_words_mean_the_same_as_plain_ones():
    prompts = unseen_word_prompts()
    assert len({prompt.unseen for prompt in prompts}) == len(prompts) == 120
    for prompt in prompts:
        assert not is_known_to_teacher(prompt.unseen)
        assert is_known_to_teacher(prompt.plain)
        assert not prompt.scene.is_held_out
        assert len(prompt.named) >= 2
        assert all(getattr(prompt.scene, name) for name in prompt.named)


def test_bridges_are_fitted_to_words_the_teacher_knows(tmp_path):
    lines = [f"A {noun} running on the beach {index}" for index in range(55) for noun in ("dog", "hound")]
    (tmp_path / "captions.txt").write_text("\n".join([*lines, *lines[:20:2]]))
    recipe = apply_overrides(
        Recipe(),
        parse_overrides([f"bridge.captions={tmp_path / 'captions.txt'}", "bridge.allow_few_captions=true"]),
    )
    ablation = Ablation(recipe, tmp_path)
    known = [line for index, line in enumerate(lines) if (index + 1) % 10 and "dog" in line]
    assert torch.equal(ablation.train_ids, ablation.towers.input_ids(known))
    assert 0 < len(known) < len(lines) / 2 + 1


def test_figures_are_not_those_that_refining_wrote(tmp_path):
    folder = tmp_path / slug("+ refinement")
    folder.mkdir()
    write_json(folder / "metrics.json", {"before": {"50": 1.0}, "num_steps": 3})
    write_json(folder / "figures.json", {"fidelity": 0.5})
    assert Ablation(Recipe(), tmp_path).figures("+ refinement") == {"fidelity": 0.5}


def test_padding_is_the_same_whichever_variant_is_made_first(tmp_path):
    (tmp_path / "captions.txt").write_text("".join(f"A dog running on the beach {n}\n" for n in range(12)))
    words = [f"bridge.captions={tmp_path / 'captions.txt'}", "bridge.allow_few_captions=true"]
    recipe = apply_overrides(Recipe(), parse_overrides([*words, "device=cpu", "bridge.mixed_precision=no"]))
    kept = []
    for name in ("first", "later"):
        (tmp_path / name).mkdir()
        torch.rand(7)
        assert Ablation(recipe, tmp_path / name).linear.states is not None
        kept.append((tmp_path / name / STATES_NAME).read_bytes())
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_every_variant_is_made_once_on_flatland(tmp_path):
    small = ["finetune.num_epochs=0", "evaluate.num_inference_steps=2", "data.max_train_images=16"]
    small += ["bridge.max_captions=100", "bridge.num_epochs=1"]
    recipe = apply_overrides(ablation_recipe(), parse_overrides(small))
    sizes = {"num_seeds": 1, "num_prompts": 2, "num_kept_word_prompts": 1}
    variants = run_ablation(recipe, tmp_path, **sizes)
    assert list(variants) == list(VARIANTS)
    teacher = {figure: value["mean"] for figure, value in variants[TEACHER].items()}
    assert teacher["noise_error_500"] == teacher["pixel_difference"] == 0
    assert teacher["agreement"] == 1
    assert set(teacher) == set(FIGURES)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed0/*/figures.json")}
    assert len(written) == len(VARIANTS)
    run_ablation(recipe, tmp_path, **sizes)
    assert {path: path.stat().st_mtime_ns for path in written} == written
