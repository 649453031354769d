"""Matplotlib figures, without pyplot's shared state; equal data gives equal bytes."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from clipgraft.files import write_bytes
from clipgraft.reporting.run_data import is_number, read_log

MAX_POINTS = 5_000
"""Above this, only the lowest and highest batch loss of every few steps are plotted."""
FEW_POINTS = 300
"""Lines with fewer points are drawn thicker."""
MAX_EPOCH_TICKS = 10
FIGURE_INCHES = (6.0, 3.75)
FONT_POINTS = 11
"""9 px high on a figure 350 px wide, as on a phone."""
PNG_DPI = 200


class Theme(NamedTuple):
    """Colours of a figure."""

    background: str
    text: str
    grid: str
    batch: str
    mean: str


LIGHT = Theme(background="#ffffff", text="#3b4048", grid="#e6e8ec", batch="#3b7dd8", mean="#d1242f")
DARK = Theme(background="#1b1e23", text="#b6bdc8", grid="#31363e", batch="#5b9bf0", mean="#ff7b72")


def plot_loss(log_path: Path, out_dir: Path) -> tuple[Path, Path]:
    """Write `loss.png` (1200 x 750 pixels) and `loss.svg` of a `log.jsonl`."""
    rows = read_log(log_path, problems=[])
    png, svg = out_dir / "loss.png", out_dir / "loss.svg"
    write_bytes(png, render_loss(rows, "png"))
    write_bytes(svg, render_loss(rows, "svg"))
    return png, svg


def render_loss(rows: Sequence[dict[str, Any]], image_format: str) -> bytes:
    """Return the loss figure (batches, epoch means) as "png" or "svg".

    Non-finite losses leave gaps. Above 5,000 steps, the lowest and highest loss of every few steps are
    plotted in order, so that no spike is lost; the legend says so.
    """
    return render_figure(lambda axes: draw_loss(axes, rows), image_format)


def render_figure(
    draw: Callable[[Axes], None], image_format: str, inches: tuple[float, float] = FIGURE_INCHES
) -> bytes:
    """Render a figure of one plot as "png" or "svg", in `LIGHT`."""
    figure = Figure(figsize=inches, layout="constrained", facecolor=LIGHT.background)
    FigureCanvasAgg(figure)
    with matplotlib.rc_context({"font.size": FONT_POINTS, "svg.hashsalt": "clipgraft"}):
        draw(figure.add_subplot(facecolor=LIGHT.background))
        content = io.BytesIO()
        # Without date and version in it, the same rows give the same bytes.
        metadata = {"Date": None} if image_format == "svg" else {"Software": None}
        figure.savefig(content, format=image_format, dpi=PNG_DPI, metadata=metadata)
    return content.getvalue()


def darkened(svg: bytes) -> bytes:
    """Return an SVG in `DARK` in place of `LIGHT` (100 times faster than rendering)."""
    for light, dark in zip(LIGHT, DARK, strict=True):
        svg = svg.replace(light.encode(), dark.encode())
    return svg


def epoch_means(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int, float]]:
    """Return number (from 0), last step and mean loss of complete epochs.

    An epoch with fewer steps than the first is incomplete. Non-finite losses are left out, and so are epochs
    without a finite one.
    """
    epochs: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        epochs.setdefault(row["epoch"], []).append(row)
    num_steps = len(next(iter(epochs.values()), []))
    means = []
    for epoch, steps in epochs.items():
        losses = [row["loss"] for row in steps if is_number(row["loss"])]
        if losses and len(steps) >= num_steps:
            means.append((epoch, steps[-1]["step"], sum(losses) / len(losses)))
    return means


def thin_out(
    steps: np.ndarray, losses: np.ndarray, max_points: int = MAX_POINTS
) -> tuple[np.ndarray, np.ndarray, int]:
    """Keep the lowest and highest loss of every few steps, in order.

    Args:
        steps: Shape (n,).
        losses: Shape (n,), NaN where missing.
        max_points: Maximum number of points.

    Returns:
        Steps and losses kept, and the number of steps per two points; 1 if all are kept.
    """
    if len(steps) <= max_points:
        return steps, losses, 1
    size = -(-len(steps) // (max_points // 2))
    kept: list[int] = []
    for start in range(0, len(steps), size):
        part = losses[start : start + size]
        if np.isnan(part).all():
            kept.append(start)
        else:
            kept.extend(sorted({start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}))
    return steps[kept], losses[kept], size


def plot_interpolation(rows: Sequence[dict[str, Any]], out_dir: Path) -> None:
    """Plot recall@1 and word drift over the fine-tuned share.

    Args:
        rows: One per `alpha`, with recall and drift; see `finetuning.wise_ft`.
        out_dir: Receives `interpolation.png` and `.svg`.
    """
    for image_format in ("png", "svg"):
        content = render_figure(lambda axes: _draw_interpolation(axes, rows), image_format)
        write_bytes(out_dir / f"interpolation.{image_format}", content)


def _draw_interpolation(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    style_axes(axes, "%", x_label="share of fine-tuned weights")
    lines = (
        ("text_to_image_recall@1", "text to image R@1", LIGHT.batch),
        ("image_to_text_recall@1", "image to text R@1", LIGHT.mean),
        ("drift_words", "drift: words", LIGHT.text),
    )
    for key, label, color in lines:
        values = [100 * row[key] for row in rows]
        axes.plot([row["alpha"] for row in rows], values, color=color, marker="o", markersize=4, label=label)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.1f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.legend(loc="best", frameon=False, labelcolor=LIGHT.text, fontsize=FONT_POINTS - 1)


def draw_loss(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Draw batch loss and epoch means on axes."""
    steps = np.array([row["step"] for row in rows], dtype=float)
    losses = np.array([row["loss"] if is_number(row["loss"]) else np.nan for row in rows], dtype=float)
    style_axes(axes, "loss")
    if not np.isfinite(losses).any():
        note = "no loss was finite" if rows else "no step was logged"
        axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center", color=LIGHT.text)
        return
    shown_steps, shown_losses, size = thin_out(steps, losses)
    label = "batch loss" if size == 1 else f"batch loss (lowest and highest of every {size} steps)"
    # One step alone makes no line.
    axes.plot(
        shown_steps,
        shown_losses,
        color=LIGHT.batch,
        linewidth=0.8 if len(shown_steps) > FEW_POINTS else 1.5,
        alpha=0.85,
        label=label,
        marker="." if len(rows) == 1 else "",
    )
    means = epoch_means(rows)
    if means:
        _, ends, values = zip(*means, strict=True)
        axes.plot(ends, values, color=LIGHT.mean, linewidth=1.8, marker="o", markersize=5, label="epoch mean")
        _add_epoch_axis(axes, means)
    axes.legend(loc="upper right", frameon=False, labelcolor=LIGHT.text, fontsize=FONT_POINTS - 1)


def style_axes(axes: Axes, y_label: str, *, legend: bool = False, x_label: str = "optimizer step") -> None:
    """Label axes, with a light grid, integer steps and an optional legend."""
    axes.set_xlabel(x_label, color=LIGHT.text)
    axes.set_ylabel(y_label, color=LIGHT.text)
    axes.grid(color=LIGHT.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.tick_params(which="both", colors=LIGHT.text, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(LIGHT.grid)
    if legend:
        axes.legend(
            loc="upper right",
            frameon=False,
            labelcolor=LIGHT.text,
            fontsize=FONT_POINTS - 1,
            ncols=3,
            columnspacing=1.2,
            handlelength=1.4,
        )


def _add_epoch_axis(axes: Axes, means: Sequence[tuple[int, int, float]]) -> None:
    """Number epochs above the figure, evenly spaced if there are many."""
    every = -(-len(means) // MAX_EPOCH_TICKS)
    shown = means[every - 1 :: every]
    above = axes.secondary_xaxis("top")
    above.set_ticks([end for _, end, _ in shown], [str(epoch + 1) for epoch, _, _ in shown])
    above.set_xlabel("end of epoch", color=LIGHT.text)
    above.tick_params(colors=LIGHT.text, length=3, color=LIGHT.grid)
    above.spines["top"].set_visible(False)
