"""A distilled text encoder as a LoRA, with its error."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel

from clipgraft.data.caption_words import holds_any
from clipgraft.data.transforms import tokenize
from clipgraft.distilling.distill import load_marked_captions
from clipgraft.errors import UserError
from clipgraft.exporting.file_metadata import DIFFUSERS_NAMES, STABLE_DIFFUSION, ModelFile, describe_file
from clipgraft.exporting.plain_pipeline import load_distilled_base
from clipgraft.models.bridge import token_classes
from clipgraft.models.clip import text_hidden_states
from clipgraft.models.graft import Graft
from clipgraft.models.lineage import Figures
from clipgraft.models.single_file import is_stable_diffusion
from clipgraft.models.text_lora import LinearDifference, changed_outside
from clipgraft.models.token_stats import EmbedError
from clipgraft.reporting.model_card import public_name
from clipgraft.section import GIVEN

RANKS = (4, 8, 16, 32, 64)
"""Ranks whose error is reported beside that of the written one."""
ENCODE_BATCH_SIZE = 32
MAX_CAPTIONS = 128
"""Of each kind; the error of a share of captions is known well enough."""
NO_LORA, ANY_RANK = "no LoRA", "any rank"
POOR_SHARE = 0.5
"""Of the error without a LoRA (a guess)."""
KINDS = {True: "with new words", False: "without"}


def held_out_captions(distilled: Graft) -> list[str]:
    """Read captions held out of distilling, with new words and without.

    Raises:
        UserError: If they cannot be read any more.
    """
    stage = distilled.lineage.find("distill")
    remedy = "name some with --prompts-file, to measure the LoRA's error on"
    if stage is None or stage.recipe is None or stage.recipe.distill.captions == GIVEN:
        raise UserError(f"it is not recorded which captions the text encoder learned from; {remedy}")
    try:
        held_out = load_marked_captions(stage.recipe).held_out
    except UserError as error:
        raise UserError(f"captions of the distilling cannot be read ({error}); {remedy}") from error
    return [caption for captions in held_out.values() for caption in captions[:MAX_CAPTIONS]]


@dataclass(frozen=True)
class LoraErrors:
    """Errors of a LoRA's states against the distilled text encoder's."""

    num_captions: int
    rows: Figures
    """Relative error of words by rank, in captions with and without new words; 0 = the same states."""
    left_out: Mapping[str, float]
    """Relative change of weights that no LoRA holds, by kind."""

    def lines(self) -> list[str]:
        """Return the errors as lines of text."""
        width = max(map(len, self.rows))
        lines = [f"relative error of word states against the distilled ones, {self.num_captions:,} captions:"]
        for name, row in self.rows.items():
            lines.append(
                f"  {name:{width}}  " + ", ".join(f"{value:.3f} {kind}" for kind, value in row.items())
            )
        changes = ", ".join(f"{kind} (changed by {value:.1%})" for kind, value in self.left_out.items())
        return [*lines, f"not in a LoRA: {changes}"]

    @property
    def is_poor(self) -> bool:
        """Whether even all linear layers leave most of the change out."""
        without, whole = (self.rows[name] for name in (NO_LORA, ANY_RANK))
        kind = next(iter(without))
        return (whole[kind] or 0.0) > POOR_SHARE * (without[kind] or 0.0)


def build_lora(
    distilled: Graft, base: str, title: str, rank: int, dtype: torch.dtype | None, captions: Sequence[str]
) -> tuple[ModelFile, LoraErrors]:
    """Return a LoRA in kohya's names, and its error by rank.

    Args:
        distilled: With a plain `CLIPTextModel`.
        base: Present location of the base; empty = the recorded one.
        title: For its metadata.
        rank: At least 1.
        dtype: Of the tensors; None = float32.
        captions: To measure errors on.

    Raises:
        CheckpointError: If the base is another one.
    """
    frozen = load_distilled_base(distilled, base, ("tokenizer", "text_encoder"))
    before, after = frozen.text_encoder, distilled.text_encoder
    difference = LinearDifference(before, after)
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in difference.lora(rank).items()}
    states = _States(distilled, captions)
    rows = {NO_LORA: states.errors(before)}
    for each in sorted({*RANKS, rank}):
        rows[f"rank {each}"] = states.errors(
            difference.applied(tensors if each == rank else difference.lora(each))
        )
    rows[ANY_RANK] = states.errors(difference.applied(difference.lora(difference.full_rank)))
    size = str(max(len(tensor) for name, tensor in tensors.items() if name.endswith("lora_down.weight")))
    is_known = is_stable_diffusion(before)
    architecture = f"{STABLE_DIFFUSION if is_known else public_name(distilled.base.name)}/lora"
    metadata = describe_file(distilled, title, architecture=architecture, implementation=DIFFUSERS_NAMES)
    metadata |= {"ss_network_module": "networks.lora", "ss_network_dim": size, "ss_network_alpha": size}
    if is_known:
        metadata |= {"ss_base_model_version": "sd_v1", "ss_v2": "False"}
    return ModelFile(tensors, metadata), LoraErrors(len(captions), rows, changed_outside(before, after))


class _States:
    """A distilled text encoder's states of captions, to compare others with."""

    def __init__(self, distilled: Graft, captions: Sequence[str]):
        stage = distilled.lineage.find("distill")
        words = stage.words if stage else ()
        self._target: CLIPTextModel = distilled.text_encoder
        self._ids: dict[str, Tensor] = {}
        for is_new, kind in KINDS.items():
            texts = [caption for caption in captions if holds_any(caption, words) == is_new]
            if texts:
                self._ids[kind] = tokenize(texts, distilled.tokenizer, pad_to_context_length=True)

    @torch.no_grad()
    def errors(self, text_encoder: CLIPTextModel) -> dict[str, float | None]:
        """Return another text encoder's relative error by kind of caption."""
        found: dict[str, float | None] = {}
        for kind, input_ids in self._ids.items():
            error = EmbedError()
            for ids in input_ids.split(ENCODE_BATCH_SIZE):
                states, target = (text_hidden_states(model, ids) for model in (text_encoder, self._target))
                error.add(states, target, token_classes(ids, int(ids[0, -1])))
            found[kind] = error.relative_error()["words"]
        return found
