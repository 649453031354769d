"""Fit the bridge from CLIP's token states to a base's, in closed form, then by gradient; write the graft."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel

from clipgraft.config import BridgeSettings, Recipe
from clipgraft.data.cache import CaptionBatches
from clipgraft.data.records import Split
from clipgraft.data.transforms import tokenize
from clipgraft.models.base import FrozenBase, check_fit
from clipgraft.models.bridge import Bridge, RidgeRegression, StateError, position_weights, token_classes
from clipgraft.models.clip import load_clip, text_hidden_states
from clipgraft.models.encoder import Graft, GraftedTextEncoder, save_graft
from clipgraft.progress import track
from clipgraft.runtime import choose_device, seed_everything, write_json
from clipgraft.stages.data import load_source, select
from clipgraft.stages.fitting import fit_stage
from clipgraft.training.loop import FitResult
from clipgraft.training.objectives import BridgeObjective

ENCODE_BATCH_SIZE = 32
"""Captions whose states are held at once: the stream's memory, whatever the number of captions."""


def bridge(recipe: Recipe, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Graft `recipe.clip` onto `recipe.base` with the captions of `recipe.data`.

    Args:
        recipe: Its seed, device, data, clip, base and bridge settings are read.
        folder: Gets `graft/`, `metrics.json`, and `log.jsonl` where a residual MLP is trained.
        resume: Go on from the newest checkpoint there.

    Returns:
        The metrics that were written: errors on held-out captions, by token class.
    """
    settings, device = recipe.bridge, choose_device(recipe.device)
    clip = load_clip(recipe.clip.name, revision=recipe.clip.revision or None)
    text_model = clip.model.text_model.eval().to(device)
    base = FrozenBase.load(
        recipe.base.name,
        revision=recipe.base.revision or None,
        components=("tokenizer", "text_encoder"),
        tokenizer=clip.tokenizer,
    )
    check_fit(text_model, clip.tokenizer, base)
    assert base.text_encoder is not None
    source = load_source(recipe.data)

    def input_ids(split: Split, limit: int) -> Tensor:
        images = select(source, split, 0)
        captions = list(dict.fromkeys(caption for image in images for caption in image.captions))
        return tokenize(captions[: limit or None], clip.tokenizer, pad_to_context_length=True).input_ids

    train_ids = input_ids("train", settings.max_captions)
    held_out_ids = input_ids("test" if source.in_split("test") else "train", settings.max_captions)
    towers = _Towers(text_model, base.text_encoder.to(device), clip.tokenizer.eos_token_id)
    seed_everything(recipe.seed)
    fitted = _fit_linear(towers, train_ids, settings)
    metrics: dict[str, Any] = {"linear": _measure(fitted, towers, held_out_ids)}
    if fitted.residual is not None:
        result = _fit_residual(fitted, towers, train_ids, recipe, folder, resume, source.fingerprint)
        metrics |= {"residual": _measure(fitted, towers, held_out_ids), "seconds": result.seconds}
    encoder = GraftedTextEncoder.graft(
        text_model.cpu(), fitted.cpu(), base.empty_states().cpu(), clip.tokenizer.eos_token_id
    )
    save_graft(Graft(encoder, clip.tokenizer, base.record()), folder / "graft")
    metrics |= {"num_captions": len(train_ids), "num_held_out_captions": len(held_out_ids)}
    write_json(folder / "metrics.json", metrics)
    return metrics


class _Towers:
    """CLIP's text tower and the teacher, over batches of token ids."""

    def __init__(self, text_model: CLIPTextModel, teacher: CLIPTextModel, eos_token_id: int):
        self.text_model, self.teacher, self.eos_token_id = text_model, teacher, eos_token_id

    @property
    def are_equal(self) -> bool:
        """Whether CLIP's tower is the teacher itself, weight by weight: then nothing needs a bridge."""
        ours, theirs = self.text_model.state_dict(), self.teacher.state_dict()
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    @torch.no_grad()
    def states(self, input_ids: Tensor, description: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give student states (B, L, D), teacher states (B, L, W) and token classes (B, L) by batch."""
        with track(description, len(input_ids)) as update:
            done = 0
            for batch in input_ids.split(ENCODE_BATCH_SIZE):
                ids = batch.to(self.text_model.device)
                student = text_hidden_states(self.text_model, ids)
                teacher = text_hidden_states(self.teacher, ids)
                yield student, teacher, token_classes(ids, self.eos_token_id)
                done += len(batch)
                update(done, "captions")


def _fit_linear(towers: _Towers, input_ids: Tensor, settings: BridgeSettings) -> Bridge:
    """Solve for the linear map; the residual MLP, where there is one, still adds nothing."""
    width, base_width = towers.text_model.config.hidden_size, towers.teacher.config.hidden_size
    device = towers.text_model.device
    if towers.are_equal:
        fitted = Bridge(width, base_width).to(device)
        fitted.set_identity()
        return fitted
    fitted = Bridge(width, base_width, settings.hidden_size if settings.num_epochs else 0).to(device)
    regression = RidgeRegression(width, base_width)
    for student, teacher, classes in towers.states(input_ids, "fitting the linear bridge"):
        weights = position_weights(classes)
        regression.add(student.flatten(0, 1), teacher.flatten(0, 1), weights.flatten())
    fitted.set_linear(*regression.solve(settings.ridge))
    return fitted


def _fit_residual(
    fitted: Bridge,
    towers: _Towers,
    input_ids: Tensor,
    recipe: Recipe,
    folder: Path,
    resume: bool,
    source_fingerprint: str,
) -> FitResult:
    settings, device = recipe.bridge, choose_device(recipe.device)
    # The linear map is the least-squares optimum already; only what it leaves is learned.
    fitted.linear.requires_grad_(False)
    batches = CaptionBatches(input_ids, batch_size=min(settings.batch_size, len(input_ids)), seed=recipe.seed)
    return fit_stage(
        "training the residual bridge",
        BridgeObjective(fitted, towers.text_model, towers.teacher, towers.eos_token_id),
        batches,
        settings,
        folder=folder,
        device=device,
        source_fingerprint=source_fingerprint,
        seed=recipe.seed,
        resume=resume,
    )


def _measure(fitted: Bridge, towers: _Towers, input_ids: Tensor) -> dict[str, dict[str, float]]:
    """Errors by token class; the BOS row is the teacher's own in the graft, so it is left out here."""
    error = StateError()
    with torch.no_grad():
        for student, teacher, classes in towers.states(input_ids, "measuring the bridge"):
            bridged = fitted(student)
            bridged[:, 0] = teacher[:, 0]
            error.add(bridged, teacher, classes)
    return error.summary()
