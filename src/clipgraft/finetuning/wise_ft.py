"""WiSE-FT: interpolation of weights before and after fine-tuning.

Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models".
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType

import torch
from pydantic import PrivateAttr
from rich.table import Table
from torch import nn
from transformers import CLIPModel

from clipgraft.config import Recipe, mark_given_clip
from clipgraft.console import print_table
from clipgraft.data.dataset import CaptionDataset, CaptionedImage
from clipgraft.data.transforms import tokenize
from clipgraft.device import choose_device, put_back, quiet_libraries
from clipgraft.errors import CheckpointError, UserError
from clipgraft.evaluation.metrics.token_drift import token_drift
from clipgraft.finetuning.finetune import recipe_of
from clipgraft.finetuning.validate import NUM_DRIFT_CAPTIONS, Recall, measure_retrieval
from clipgraft.models.clip import ClipParts, save_clip
from clipgraft.reporting.plots import plot_interpolation
from clipgraft.runs.run import Run, StageResult

ALPHAS = tuple(step / 10 for step in range(11))


class InterpolationResult(StageResult):
    """Recall and drift of eleven interpolations between two CLIPs."""

    stage: str = "interpolate"
    rows: list[Recall]
    """Recall on the validation split and token drift, by `alpha` (share of the fine-tuned weights)."""
    alpha: float
    """Of `.clip`."""
    _clip: ClipParts | None = PrivateAttr(None)

    @property
    def clip(self) -> ClipParts:
        """The CLIP at `alpha` (only of a new result)."""
        assert self._clip is not None
        return self._clip

    def print(self) -> None:
        """Print the rows as a table."""
        num_images = self.rows[0]["num_images"]
        table = Table(title=f"between before (0) and after (1), {num_images} validation images")
        for head in ("alpha", "image R@1", "text R@1", "words", "eos", "padding"):
            table.add_column(head, justify="right")
        for row in self.rows:
            recalls = [
                f"{100 * row[f'{name}_recall@1']:.1f} %" for name in ("text_to_image", "image_to_text")
            ]
            drifts = [f"{row[f'drift_{name}']:.3f}" for name in ("words", "eos", "padding")]
            table.add_row(f"{row['alpha']:.1f}", *recalls, *drifts)
        table.caption = "R@1: images found by text, texts found by image. The rest: drift of token states"
        print_table(table)


def interpolate(
    before: ClipParts,
    after: ClipParts,
    data: CaptionDataset,
    *,
    alpha: float = 0.5,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
    recipe: Recipe | None = None,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
) -> InterpolationResult:
    """Measure interpolations of a CLIP and its fine-tuned version; return one.

    Args:
        before: The CLIP before fine-tuning.
        after: The fine-tuned CLIP.
        data: A dataset with a val split.
        alpha: Share of the fine-tuned weights in the result, in [0, 1].
        output_dir: Gets `clip/`, `metrics.json` and the figure; None = nothing is written.
        overwrite: Replace the run in `output_dir`.
        device: "auto", "cpu", "cuda" or "mps".
        recipe: Settings of a whole run, for device and limits of splits.
        inputs: Files by name, forbidden inside `output_dir`.

    Raises:
        UserError: If alpha is out of range, or there is no val split.
        CheckpointError: If the two models differ in shape.
    """
    quiet_libraries()
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha must be between 0 (before) and 1 (after); got {alpha}")
    recipe = mark_given_clip(recipe or recipe_of(before, data, device=device), before.origin)
    images = data.val[: recipe.data.max_val_images or None]
    if not images:
        raise UserError("weights are compared on a validation split, and the source has none; add one")
    _refuse_other_shapes(before.model, after.model)
    model, processor = deepcopy(before.model), after.image_processor  # fine-tuning may have set resize_mode
    clip = before._replace(model=model, image_processor=processor, origin=None)
    if output_dir is None:
        return _interpolate(clip, before.model, after.model, images, recipe.device, alpha)
    place = Path(output_dir).expanduser()
    with Run.begin(place, recipe, stage="interpolate", inputs=inputs, overwrite=overwrite) as run:
        result = _interpolate(clip, before.model, after.model, images, recipe.device, alpha)
        save_clip(clip, run.path / "clip")
        result.save(run.path)
        plot_interpolation(result.rows, run.path)
    return result


def _interpolate(
    clip: ClipParts,
    first: CLIPModel,
    last: CLIPModel,
    images: Sequence[CaptionedImage],
    device: str,
    alpha: float,
) -> InterpolationResult:
    captions = [caption for image in images for caption in image.captions][:NUM_DRIFT_CAPTIONS]
    drift_ids = tokenize(captions, clip.tokenizer, pad_to_context_length=True)
    rows = []
    with put_back(first, last):
        for model in (clip.model, first, last):
            model.to(choose_device(device)).eval()
        for share in ALPHAS:
            set_between(clip.model, first, last, share)
            recall = measure_retrieval(clip, images, f"recall at alpha {share}") or {}
            towers = first.text_model, clip.model.text_model
            drift = token_drift(*towers, drift_ids, clip.tokenizer.eos_token_id)
            rows.append({"alpha": share, **recall, **drift})
        set_between(clip.model, first, last, alpha)
    result = InterpolationResult(rows=rows, alpha=alpha)
    result._clip = clip
    return result


@torch.no_grad()
def set_between(target: nn.Module, first: nn.Module, last: nn.Module, alpha: float) -> None:
    """Set the weights of `target` to `first + alpha * (last - first)` (exact at 0 and 1)."""
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
