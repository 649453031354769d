"""WiSE-FT: weights between those before and after fine-tuning, with recall and drift of each.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from clipgraft.config import Recipe
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import tokenize
from clipgraft.device import choose_device
from clipgraft.errors import CheckpointError, UserError
from clipgraft.evaluation.metrics.token_drift import token_drift
from clipgraft.files import write_json
from clipgraft.finetuning.validate import NUM_DRIFT_CAPTIONS, measure_retrieval
from clipgraft.models.clip import load_clip, save_clip
from clipgraft.reporting.plots import plot_interpolation

ALPHAS = tuple(step / 10 for step in range(11))


def interpolate(recipe: Recipe, after: str, folder: Path, *, alpha: float = 0.5) -> dict[str, Any]:
    """Measure CLIPs between `recipe.clip` and a fine-tuned one, and write the one at `alpha`.

    Args:
        recipe: Its device, data and clip settings are read; clip is the model before fine-tuning.
        after: Folder of the fine-tuned CLIP.
        folder: Gets `clip/`, `metrics.json`, `interpolation.png` and `interpolation.svg`.
        alpha: Share of the fine-tuned weights in what is written, in [0, 1].

    Returns:
        The metrics that were written: `rows`, one an alpha, with recall on the validation split and drift.

    Raises:
        ValueError: If alpha is outside, or there is no validation split.
        CheckpointError: If the two models differ in shape.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must be between 0 (before) and 1 (after); got {alpha}")
    dataset = load_dataset(recipe.data.source, include_unsplit=recipe.data.include_unsplit)
    images = dataset.val[: recipe.data.max_val_images or None]
    if not images:
        raise UserError("weights are compared on a validation split, and the source has none; add one")
    clip = load_clip(recipe.clip.name, revision=recipe.clip.revision or None)
    first, last = deepcopy(clip.model), load_clip(after).model
    _refuse_other_shapes(first, last)
    device = choose_device(recipe.device)
    for model in (clip.model, first, last):
        model.to(device)
    captions = [caption for image in images for caption in image.captions][:NUM_DRIFT_CAPTIONS]
    drift_ids = tokenize(captions, clip.tokenizer, pad_to_context_length=True).input_ids
    rows = []
    for share in ALPHAS:
        set_between(clip.model, first, last, share)
        recall = measure_retrieval(clip, images, f"recall at alpha {share}") or {}
        towers = first.text_model, clip.model.text_model
        drift = token_drift(*towers, drift_ids, clip.tokenizer.eos_token_id)
        rows.append({"alpha": share, **recall, **drift})
    set_between(clip.model, first, last, alpha)
    save_clip(clip, folder / "clip")
    metrics = {"rows": rows, "alpha": alpha}
    write_json(folder / "metrics.json", metrics)
    plot_interpolation(rows, folder)
    Console().print(_table(rows))
    return metrics


@torch.no_grad()
def set_between(target: nn.Module, first: nn.Module, last: nn.Module, alpha: float) -> None:
    """Give `target` the weights `first + alpha * (last - first)`; 0 and 1 give those of either to the bit."""
    for mine, from_, to in zip(target.parameters(), first.parameters(), last.parameters(), strict=True):
        mine.copy_(torch.lerp(from_, to, alpha))


def _refuse_other_shapes(first: nn.Module, last: nn.Module) -> None:
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (first, last)]
    differing = sorted(name for name in shapes[0] if shapes[1].get(name) != shapes[0][name])
    if differing or len(shapes[0]) != len(shapes[1]):
        raise CheckpointError(
            "the two CLIPs are not of one shape, so nothing lies between them; differing: "
            + ", ".join(differing[:3] or sorted(shapes[1].keys() - shapes[0].keys())[:3])
        )


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"between before (0) and after (1), {rows[0]['num_images']} validation images")
    for head in ("alpha", "image R@1", "text R@1", "words", "eos", "padding"):
        table.add_column(head, justify="right")
    for row in rows:
        recalls = [f"{100 * row[f'{name}_recall@1']:.1f} %" for name in ("text_to_image", "image_to_text")]
        drifts = [f"{row[f'drift_{name}']:.3f}" for name in ("words", "eos", "padding")]
        table.add_row(f"{row['alpha']:.1f}", *recalls, *drifts)
    table.caption = "R@1: images found by text, texts found by image. The rest: drift of token states"
    return table
