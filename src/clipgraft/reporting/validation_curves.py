"""What the page says of the evaluations made while CLIP was in training."""

from typing import Any

from clipgraft.reporting.format import NO_NUMBER, Table, count, decimal, percent
from clipgraft.reporting.run_data import Run, is_number

MAX_ROWS = 12
"""Of more evaluations, evenly spaced ones are shown, the first and the last among them."""
COLUMNS = {
    "text_to_image_recall@1": ("image R@1", percent),
    "image_to_text_recall@1": ("text R@1", percent),
    "val_loss": ("loss", decimal),
    "drift_words": ("drift of words", decimal),
    "drift_eos": ("of EOS", decimal),
    "drift_padding": ("of padding", decimal),
}


def evaluations_table(run: Run) -> Table | None:
    """Lay out recall, loss and drift on the validation split by epoch; None where nothing was evaluated."""
    rows = run.evaluations
    if not rows:
        return None
    columns = {key: shown for key, shown in COLUMNS.items() if any(is_number(row.get(key)) for row in rows)}
    spaced = min(len(rows), MAX_ROWS)
    chosen = [rows[round(k * (len(rows) - 1) / max(1, spaced - 1))] for k in range(spaced)]
    cells = [_cells(row, columns) for row in chosen]
    note = (
        f"On {count(rows[-1].get('num_images'))} validation images, before the first step and after epochs. "
        "R@1: recall@1, the image found by a caption and a caption found by an image. Loss: of one fixed "
        "batch. Drift: how far the text tower's states have moved from where they began; 0 is unmoved, 1 as "
        "far as from the origin. A diffusion model reads words, EOS and padding; the contrastive loss reads "
        "EOS alone."
    )
    return Table(("after epoch", *(label for label, _ in columns.values())), cells, note)


def _cells(row: dict[str, Any], columns: dict[str, Any]) -> tuple[str, ...]:
    epoch = str(row["epoch"]) if is_number(row.get("epoch")) else NO_NUMBER
    return (epoch, *(shown(row.get(key)) for key, (_, shown) in columns.items()))
