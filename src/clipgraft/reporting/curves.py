"""Training curves: loss, gradient norm, learning rate, time per step, validation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clipgraft.reporting.format import percent
from clipgraft.reporting.plots import (
    FIGURE_INCHES,
    LIGHT,
    draw_loss,
    epoch_means,
    render_figure,
    style_axes,
    thin_out,
)
from clipgraft.reporting.provenance import setting
from clipgraft.reporting.run_data import RunData, is_number

SHORT_INCHES = (4.6, 2.5)
MAX_CURVE_POINTS = 1_500
NUM_BINS = 120
"""Maximum number of bars in the time-per-step figure; each is a mean over steps."""
LOG_ABOVE = 20.0
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""


@dataclass(frozen=True)
class RunFigure:
    """A figure of a run, rendered on demand."""

    name: str
    """File name without extension."""
    title: str
    alt: str
    notes: list[str]
    draw: Callable[[Axes], None]
    inches: tuple[float, float] = SHORT_INCHES

    @cached_property
    def svg(self) -> bytes:
        """The figure as SVG in light colours."""
        return self.render("svg")

    def render(self, image_format: str) -> bytes:
        """Return the figure as "png" or "svg"."""
        return render_figure(self.draw, image_format, self.inches)


def run_figures(run: RunData) -> list[RunFigure]:
    """Return the loss figure and all others that have values."""
    candidates = (_loss(run), _gradient_norm(run), _learning_rate(run), _step_time(run), _validation(run))
    return [figure for figure in candidates if figure]


def _loss(run: RunData) -> RunFigure | None:
    if not run.log:
        return None
    return RunFigure(
        "loss",
        "Loss",
        "Loss of each batch in blue and mean of each epoch in red, over optimizer steps",
        loss_notes(run),
        lambda axes: draw_loss(axes, run.log),
        FIGURE_INCHES,
    )


def loss_notes(run: RunData) -> list[str]:
    """Explain gaps, single points and unfinished epochs of the loss figure."""
    notes = []
    num_gaps = sum(not is_number(row["loss"]) for row in run.log)
    if num_gaps:
        verb = "has" if num_gaps == 1 else "have"
        notes.append(
            f"{num_gaps:,} of {len(run.log):,} steps {verb} no finite loss; the line has gaps there."
        )
    skipped = run.finetune.get("skipped_steps")
    if is_number(skipped) and skipped:
        notes.append(f"{skipped:,} steps were skipped because their gradients were not finite.")
    epochs = {row["epoch"] for row in run.log}
    for epoch in sorted(epochs - {epoch for epoch, _, _ in epoch_means(run.log)})[:1]:
        notes.append(f"Epoch {epoch + 1} has no mean: it was not finished, or none of its losses was finite.")
    if len(epochs) == 1:
        notes.append("With a single epoch, the red mean is one point.")
    return notes


def _column(rows: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Values of a key, NaN where missing."""
    return np.array([row[key] if is_number(row.get(key)) else np.nan for row in rows], dtype=float)


def _gradient_norm(run: RunData) -> RunFigure | None:
    steps, norms = _column(run.log, "step"), _column(run.log, "grad_norm")
    if not np.isfinite(norms).any():
        return None
    is_skipped = ~(np.isfinite(norms) & np.isfinite(_column(run.log, "loss")))
    limit = setting(run, "finetune.max_grad_norm")
    num_clipped = int((norms > limit).sum()) if is_number(limit) else 0

    def draw(axes: Axes) -> None:
        shown_steps, shown, _ = thin_out(steps, norms, MAX_CURVE_POINTS)
        axes.plot(shown_steps, shown, color=LIGHT.batch, linewidth=1, label="norm")
        positive = norms[np.isfinite(norms) & (norms > 0)]
        if len(positive) and positive.max() / positive.min() > LOG_ABOVE:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if is_number(limit):
            axes.axhline(limit, color=LIGHT.text, linewidth=1, linestyle=(0, (4, 3)), label="clipped to")
        if is_skipped.any():
            at = steps[is_skipped]
            axes.plot(
                at,
                np.full(len(at), 0.03),
                "|",
                color=LIGHT.mean,
                transform=axes.get_xaxis_transform(),
                label="skipped",
            )
        style_axes(axes, "norm before clipping", legend=True)

    notes = []
    if is_number(limit) and num_clipped:
        share = percent(num_clipped / len(norms))
        notes.append(
            f"{num_clipped:,} of {len(norms):,} steps ({share}) were scaled down to a norm of {limit:g}."
        )
    if len(steps) > MAX_CURVE_POINTS:
        notes.append("Only the lowest and the highest norm of every few steps are shown.")
    if is_skipped.any():
        num_skipped = int(is_skipped.sum())
        notes.append(f"Red marks: steps skipped because loss or gradient was not finite ({num_skipped:,}).")
    return RunFigure("figures/grad_norm", "Gradient norm", "Gradient norm over optimizer steps", notes, draw)


def _learning_rate(run: RunData) -> RunFigure | None:
    steps, rates = _column(run.log, "step"), _column(run.log, "learning_rate")
    if not np.isfinite(rates).any():
        return None

    def draw(axes: Axes) -> None:
        shown_steps, shown, _ = thin_out(steps, rates, MAX_CURVE_POINTS)
        axes.plot(shown_steps, shown, color=LIGHT.batch, linewidth=1.5)
        axes.set_ylim(bottom=0, top=1.15 * np.nanmax(rates) or 1)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        style_axes(axes, "learning rate")

    return RunFigure("figures/learning_rate", "Learning rate", "Learning rate over optimizer steps", [], draw)


def _step_time(run: RunData) -> RunFigure | None:
    steps = _column(run.log, "step")
    data, compute = _column(run.log, "data_seconds"), _column(run.log, "step_seconds")
    is_known = np.isfinite(data) & np.isfinite(compute)
    if not is_known.any():
        return None
    steps, data, compute = steps[is_known], data[is_known], compute[is_known]

    def draw(axes: Axes) -> None:
        bins = np.array_split(np.arange(len(steps)), min(NUM_BINS, len(steps)))
        starts = [steps[part[0]] - 0.5 for part in bins]
        edges = [*starts, steps[-1] + 0.5]
        means = [np.array([values[part].mean() for part in bins]) for values in (compute, data)]
        axes.stairs(means[0], edges, fill=True, color=LIGHT.batch, label="computing")
        axes.stairs(
            means[0] + means[1],
            edges,
            baseline=means[0],
            fill=True,
            color=LIGHT.mean,
            label="waiting for data",
        )
        axes.set_ylim(bottom=0, top=1.3 * (means[0] + means[1]).max() or 1)
        style_axes(axes, "seconds per step", legend=True)

    share = data.sum() / max(data.sum() + compute.sum(), 1e-9)
    note = (
        f"Median step: {np.median(data + compute):.3g} s. {percent(float(share))} of the time was spent "
        "waiting for data."
    )
    return RunFigure(
        "figures/step_time",
        "Time per step",
        "Seconds per step: computing, and waiting for data",
        [note],
        draw,
    )


def _validation(run: RunData) -> RunFigure | None:
    lines = (
        ("text_to_image_recall@1", "image R@1", LIGHT.batch),
        ("image_to_text_recall@1", "text R@1", LIGHT.mean),
        ("drift_words", "drift of words", LIGHT.text),
    )
    epochs = _column(run.validation, "epoch")
    known = {key: 100 * _column(run.validation, key) for key, _, _ in lines}
    if len(epochs) < 2 or not any(np.isfinite(values).sum() > 1 for values in known.values()):
        return None

    def draw(axes: Axes) -> None:
        for key, label, color in lines:
            if np.isfinite(known[key]).any():
                axes.plot(epochs, known[key], color=color, marker="o", markersize=3.5, label=label)
        axes.set_ylim(
            bottom=0, top=1.3 * max(np.nanmax(v) for v in known.values() if np.isfinite(v).any()) or 1
        )
        style_axes(axes, "%", legend=True, x_label="after epoch")

    return RunFigure(
        "figures/validation", "Validation", "Recall at 1 and drift of words after each epoch", [], draw
    )
