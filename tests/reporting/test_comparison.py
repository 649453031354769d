"""Several runs on one page: what differs stands out, and what cannot be compared is not."""

import json
import shutil

import pytest
from example_run import log_rows, picture_row, write_evaluation, write_json, write_log, write_pictures

from clipgraft.reporting.comparison import comparability, compared_images, differing_settings, run_names
from clipgraft.reporting.html import render_comparison
from clipgraft.reporting.report import compare
from clipgraft.reporting.run_data import read_run


@pytest.fixture
def two(run_dir):
    """Two folders of equal runs."""
    other = run_dir.parent / "other"
    shutil.copytree(run_dir, other)
    return run_dir, other


def test_runs_that_differ_in_one_setting_show_it_and_no_other(two):
    recipe = two[1] / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("learning_rate = 1e-05", "learning_rate = 3e-05", 1))
    runs = [read_run(folder) for folder in two]
    assert differing_settings(runs) == {"finetune.learning_rate": [1e-05, 3e-05]}
    html = render_comparison(runs)
    differing = html.split("Settings that differ")[1].split("</section>")[0]
    assert "finetune.learning_rate" in differing
    assert "1e-05" in differing
    assert "3e-05" in differing
    assert "weight_decay" not in differing


def test_equal_runs_are_named_and_compared_in_everything(two):
    runs = [read_run(folder) for folder in two]
    assert set(comparability(runs).values()) == {""}
    html = render_comparison(runs)
    assert "None: the recipes are equal." in html
    assert "All have the same data." in html
    assert html.count("11.2 % → 31.2 %") == 2


def test_runs_on_different_data_are_not_compared_by_it(two):
    path = two[1] / "data.json"
    write_json(path, json.loads(path.read_text()) | {"fingerprint": "another"})
    runs = [read_run(folder) for folder in two]
    html = render_comparison(runs)
    assert "Their data differs" in html
    assert "Not compared: recall was measured on different test images" in html
    assert "11.2 %" not in html
    assert "Compare the shapes of these lines, not their heights: the runs are on different data" in html


def test_unknown_data_is_not_said_to_be_equal(two):
    for folder in two:
        (folder / "data.json").unlink()
    runs = [read_run(folder) for folder in two]
    reasons = comparability(runs)
    for kind in ("recall", "loss", "bridge"):
        assert reasons[kind] == "the data of some runs is unknown"
    assert "11.2 %" not in render_comparison(runs)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": [{"id": 0, "prompt": "another", "image_id": None, "sets": ["plain"]}]},
        {"data": {"fingerprint": "same", "num_reference_images": 10}},
        {"variants": [{"name": "teacher", "role": "ceiling", "sha256": "of another base"}]},
        {"settings": {"base": {"name": "local", "unet_sha256": "another"}}},
    ],
)
def test_evaluations_of_other_prompts_are_not_compared(two, change):
    write_evaluation(two[0] / "evaluate")
    write_evaluation(two[1] / "evaluate")
    assert comparability([read_run(folder) for folder in two])["evaluation"] == ""
    write_evaluation(two[1] / "evaluate", **change)
    assert "different settings, bases" in comparability([read_run(folder) for folder in two])["evaluation"]


def test_comparison_shows_the_evaluations_warnings(two):
    write_evaluation(two[1] / "evaluate")
    html = render_comparison([read_run(folder) for folder in two])
    assert "other: The scorer is the CLIP that was fine-tuned, as it was before: not independent" in html


def test_differing_settings_reveal_no_folders(two, tmp_path):
    recipe = two[1] / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('source = ""', 'source = "/home/someone/photos"'))
    written = compare(two, tmp_path / "out").with_suffix(".json").read_text()
    assert json.loads(written)["differing_settings"] == {"data.source": ["", "photos"]}
    assert "/home/someone" not in written


def test_losses_of_different_batches_are_not_compared(two):
    recipe = two[1] / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("batch_size = 32", "batch_size = 64", 1))
    reasons = comparability([read_run(folder) for folder in two])
    assert reasons["recall"] == ""
    assert reasons["loss"] == "a contrastive loss depends on its batch"


def test_images_of_one_prompt_and_seed_are_side_by_side(two):
    for folder, guidance in zip(two, (3.0, 7.5), strict=True):
        rows = [
            picture_row("0.png", "the same", column="after"),
            picture_row("1.png", "another guidance", column="after", guidance_scale=guidance),
            picture_row("2.png", "the same", column="before"),
        ]
        write_pictures(folder / "generate", rows)
    groups, num_hidden = compared_images([read_run(folder) for folder in two])
    assert [(group.prompt, [cell.label for cell in group.cells]) for group in groups] == [
        ("the same", ["demo", "other"])
    ]
    assert num_hidden == 0


def test_runs_of_one_name_are_numbered(run_dir):
    assert run_names([read_run(run_dir)] * 2) == ["demo (1)", "demo (2)"]


def test_killed_run_beside_a_whole_one_is_readable(two):
    for stage in ("bridge", "generate"):
        shutil.rmtree(two[1] / stage)
    (two[1] / "finetune" / "metrics.json").unlink()
    write_log(two[1] / "finetune" / "log.jsonl", log_rows(3, 20)[:7])
    assert "side by side" in render_comparison([read_run(folder) for folder in two])


def test_page_json_and_figure_are_written_where_asked(two, tmp_path):
    out = tmp_path / "compared"
    assert compare(two, out) == out / "comparison.html"
    assert {path.name for path in out.iterdir()} == {
        f"comparison.{kind}" for kind in ("html", "json", "png", "svg")
    }
    written = json.loads((out / "comparison.json").read_text())
    assert [run["name"] for run in written["runs"]] == ["demo", "other"]
    assert written["differing_settings"] == {}


def test_folder_that_is_no_run_is_named(run_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty is an empty folder, not a run"):
        compare([run_dir, tmp_path / "empty"], tmp_path)
