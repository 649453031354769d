"""The loss figure: what is drawn, and that equal rows draw equal bytes."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from clipgraft.reporting import plots
from clipgraft.reporting.plots import DARK, LIGHT, darkened, epoch_means, plot_loss, render_loss, thin_out


def rows_of(losses, steps_per_epoch):
    return [{"step": i + 1, "epoch": i // steps_per_epoch, "loss": loss} for i, loss in enumerate(losses)]


def pixels_near(image, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(np.asarray(image, dtype=int) - wanted).max(axis=2) < 40).sum()


def draw(rows):
    return Image.open(io.BytesIO(render_loss(rows, "png"))).convert("RGB")


def test_batch_loss_is_blue_and_epoch_mean_is_red_on_white():
    image = draw(rows_of([3.0, 2.5, 2.0, 1.5, 1.2, 1.0], 2))
    assert image.size == (1200, 750)
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert pixels_near(image, LIGHT.batch) > 500
    assert pixels_near(image, LIGHT.mean) > 500


def test_dark_figure_has_the_dark_colours_alone():
    svg = darkened(render_loss(rows_of([2.0, 1.0], 1), "svg")).decode()
    assert all(colour in svg for colour in DARK)
    assert not any(colour in svg for colour in LIGHT)


@pytest.mark.parametrize("image_format", ["png", "svg"])
def test_equal_rows_give_equal_bytes(image_format):
    rows = rows_of([3.0, 2.0, 1.5, 1.0], 2)
    assert render_loss(rows, image_format) == render_loss(rows, image_format)


def test_epoch_mean_stands_at_the_epochs_last_step():
    assert epoch_means(rows_of([4.0, 2.0, 1.0, 0.5], 2)) == [(0, 2, 3.0), (1, 4, 0.75)]


def test_epoch_without_all_its_steps_has_no_mean_yet():
    assert epoch_means(rows_of([4.0, 2.0, 1.0], 2)) == [(0, 2, 3.0)]


def test_losses_that_are_no_numbers_stay_out_of_the_mean():
    assert epoch_means(rows_of([4.0, None, float("nan"), float("inf")], 2)) == [(0, 2, 4.0)]


def test_few_steps_are_all_drawn():
    steps, losses = np.arange(5000.0), np.ones(5000)
    assert thin_out(steps, losses) == (steps, losses, 1)


@pytest.mark.parametrize("num_steps", [5001, 7919, 100_000])
def test_many_steps_are_thinned_without_losing_a_spike(num_steps):
    losses = np.random.default_rng(0).random(num_steps)
    losses[num_steps // 3], losses[num_steps // 2] = 99.0, -99.0
    steps, shown, size = thin_out(np.arange(num_steps), losses)
    assert len(steps) <= plots.MAX_POINTS
    assert (np.diff(steps) > 0).all()
    assert (losses[steps] == shown).all()
    assert {99.0, -99.0} <= set(shown.tolist())
    assert size == -(-num_steps // 2500)


def test_long_stretch_without_a_loss_stays_a_gap():
    losses = np.ones(10_000)
    losses[2000:4000] = np.nan
    steps, shown, _ = thin_out(np.arange(10_000), losses)
    assert np.isnan(shown[(steps >= 2000) & (steps < 4000)]).all()


def test_thinned_figure_says_so(monkeypatch):
    monkeypatch.setattr(plots, "MAX_POINTS", 4)
    assert render_loss(rows_of([1.0] * 9, 3), "png") != render_loss(rows_of([1.0] * 4, 3), "png")


@pytest.mark.parametrize("losses", [[], [None], [None] * 6, [1.0], [1.0, None]])
def test_figure_of_hardly_anything_is_still_a_figure(losses):
    assert draw(rows_of(losses, 3)).size == (1200, 750)


def test_plot_loss_writes_both_files_and_nothing_else(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows_of([2.0, 1.0], 1)), encoding="utf-8")
    out = tmp_path / "out"
    out.mkdir()
    assert plot_loss(log, out) == (out / "loss.png", out / "loss.svg")
    assert sorted(path.name for path in out.iterdir()) == ["loss.png", "loss.svg"]
    assert b"<svg" in (out / "loss.svg").read_bytes()[:1000]
