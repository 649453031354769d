"""Grids along axes and comparisons of text encoders."""

import re
from pathlib import Path

import numpy as np
import pytest
from image_world import generate, pixels, rows_of

from clipgraft.generation.grid import parse_axis, parse_encoders
from helpers import call, refused


def test_generate_puts_its_images_on_one_sheet(base, tmp_path, capsys):
    assert generate(base, tmp_path, "A dog", "A cat", "--num-images", 2, "--grid") == 0
    assert f"grid: {tmp_path / 'grid.png'}" in capsys.readouterr().out
    sheet = pixels(tmp_path / "grid.png")
    last = pixels(tmp_path / "a-cat_seed1.png")
    assert np.array_equal(sheet[-8 - 64 : -8, -4 - 64 : -4], last)  # behind gaps of 4 pixels
    assert sheet[: -8 - 64 - 4 - 64].min() < 128  # seeds as headings


@pytest.mark.integration
def test_count_of_a_resumed_comparison_is_what_is_missing(base, graft, tmp_path, capsys):
    options = ["compare", "A dog", "A cat", "--graft", "teacher", "--graft", f"mine={graft}", "--base", base]
    options += ["--steps", 1, "--out", tmp_path]
    assert call(*options) == 0
    (tmp_path / "mine" / "a-dog_seed0.png").unlink()
    capsys.readouterr()
    assert call(*options, "--dry-run") == 0
    assert "1 image, 1 step" in capsys.readouterr().err


@pytest.mark.integration
def test_grid_has_every_combination_labelled(base, graft, tmp_path, capsys):
    axes = ["--axis", "guidance=1,3", "--axis", "seed=0-2", "--axis", f"graft=teacher,mine={graft}"]
    assert call("grid", "A dog", *axes, "--steps", 1, "--base", base, "--out", tmp_path) == 0
    printed = capsys.readouterr()
    assert "12 images, 12 steps" in printed.err
    assert "12 generated" in printed.out
    settings = {(row["variant"], row["guidance_scale"], row["seed"]) for row in rows_of(tmp_path)}
    assert len(settings) == 12
    page = (tmp_path / "grid.html").read_text()
    assert page.count("<img ") == 12
    assert all(label in page for label in ("guidance 1", "seed 2", "mine", "2 x guidance"))
    assert {path.name for path in tmp_path.glob("grid-*.png")} == {"grid-1.png", "grid-2.png"}


@pytest.mark.integration
def test_grid_cell_is_the_image_of_its_labels(base, tmp_path):
    axes = ["--axis", "seed=4,2", "--axis", "steps=1,2"]
    assert call("grid", "A dog", *axes, "--base", base, "--out", tmp_path) == 0
    sheet = pixels(tmp_path / "grid.png")
    row = next(row for row in rows_of(tmp_path) if (row["seed"], row["num_inference_steps"]) == (2, 2))
    second_column_second_row = sheet[-8 - 64 : -8, -4 - 64 : -4]  # behind gaps of 4 pixels
    assert np.array_equal(second_column_second_row, pixels(tmp_path / row["file"]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "size=1",
            "with a name of prompt, seed, guidance_scale, num_inference_steps, scheduler, loras, graft; got",
        ),
        ("seed", "--axis takes NAME=VALUE,VALUE"),
        ("seed=", "axis 'seed' has no value"),
        ("seed=a", "no whole number: a"),
        ("seed=5-1", "the second must be above the first"),
        ("guidance=x", "no number: x"),
        ("steps=2,2", "axis 'num_inference_steps' has a value twice"),
        ("graft=a/graft,b=", "a graft is given as NAME=FOLDER, FOLDER or teacher; got 'b='"),
        ("graft=x/a/graft,y/a/graft", "two grafts are called 'a'"),
    ],
)
def test_bad_axis_is_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_axis(text)


def test_variant_is_named_by_its_folder_or_as_given():
    found = parse_encoders(["teacher", "runs/mine/graft", "own=teacher", "other=b"])
    assert found == {"teacher": None, "mine": Path("runs/mine/graft"), "own": None, "other": Path("b")}


def test_axis_that_comes_twice_or_has_bad_values_is_refused(base, tmp_path, capsys):
    options = ["--base", base, "--out", tmp_path]
    assert "an axis comes twice" in refused(
        capsys, "grid", "A dog", "--axis", "seed=1", "--axis", "seed=2", *options
    )
    assert "setting 'num_inference_steps': input should be greater than or equal to 1; got 0" in refused(
        capsys, "grid", "A dog", "--axis", "steps=0,1", *options
    )
    assert "no prompt; " in refused(capsys, "grid", "--axis", "seed=1", *options)


@pytest.mark.integration
def test_compare_puts_text_encoders_of_a_run_side_by_side(base, graft, tmp_path, capsys):
    for stage_name in ("bridge_before", "bridge", "refine"):
        (tmp_path / "run" / stage_name).mkdir(parents=True)
        (tmp_path / "run" / stage_name / "graft").symlink_to(graft)
    options = ["--run", tmp_path / "run", "--num-images", 2, "--steps", 1, "--base", base]
    assert call("compare", "A dog", "A cat", *options, "--out", tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert {row["variant"] for row in rows} == {"teacher", "before", "after", "refined"}
    assert len(rows) == 16
    page = (tmp_path / "out" / "grid.html").read_text()
    for label in ("CLIP before fine-tuning", "CLIP after fine-tuning, graft refined", "A cat, seed 1"):
        assert label in page
    assert (tmp_path / "out" / "grid.png").is_file()


def test_compare_of_one_or_of_no_run_is_refused(base, graft, tmp_path, capsys):
    options = ["compare", "A dog", "--base", base, "--out", tmp_path / "out"]
    assert "fewer than two text encoders" in refused(capsys, *options, "--graft", "teacher")
    assert "'num_images_per_prompt': input should be greater than or equal to 1; got 0" in refused(
        capsys, *options, "--graft", "teacher", "--graft", graft, "--num-images", 0
    )
    assert "is an empty folder, not a run; name a folder" in refused(capsys, *options, "--run", tmp_path)
