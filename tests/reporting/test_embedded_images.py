"""Images on the page: grouped, embedded, and named where they cannot be shown."""

import base64

from example_run import (
    picture_row,
    write_json,
    write_picture,
    write_pictures,
)
from read_page import read_page


def test_columns_of_one_prompt_and_seed_stand_side_by_side(run_dir):
    rows = [
        picture_row(f"{seed}-{column}.png", "a red disc", seed=seed, column=column)
        for seed in (0, 1)
        for column in ("teacher", "before", "after")
    ]
    write_pictures(run_dir / "generate", rows)
    page = read_page(run_dir)
    labels = "the base's own text encoder CLIP before fine-tuning CLIP after fine-tuning"
    assert page.text.count(f"{labels} a red disc seed") == 2
    assert page.text.index("a red disc seed 0") < page.text.index("a red disc seed 1")


def test_seeds_of_one_prompt_stand_together(run_dir):
    rows = [picture_row(f"{seed}.png", "a red disc", seed=seed) for seed in (4, 5)]
    write_pictures(run_dir / "generate", rows)
    assert "seed 4 seed 5 a red disc 25 steps" in read_page(run_dir).text


def test_failed_picture_is_called_failed(run_dir):
    write_pictures(run_dir / "generate", [picture_row("a.png", "a red disc", status="failed_black")])
    assert "failed: all black" in read_page(run_dir).text


def test_file_outside_the_run_is_not_taken_into_the_page(run_dir):
    write_picture(run_dir.parent / "secret.png")
    write_json(run_dir / "generate" / "images.json", [picture_row("../../secret.png", "a red disc")])
    page = read_page(run_dir)
    assert "../../secret.png lies outside the run's folder and is not shown" in page.text
    assert len(page.all("img")) == 1  # the loss


def test_damaged_picture_is_named(run_dir):
    (run_dir / "generate" / "dog_seed0.png").write_bytes(b"no picture")
    text = read_page(run_dir).text
    assert "dog_seed0.png: is no image of a known format" in text


def test_small_picture_is_embedded_byte_for_byte(run_dir):
    content = (run_dir / "generate" / "dog_seed0.png").read_bytes()
    assert (
        read_page(run_dir).all("img")[0]["src"]
        == f"data:image/png;base64,{base64.b64encode(content).decode()}"
    )
