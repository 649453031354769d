"""CLIP's text tower beside the teacher: linear fit and bridge errors."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import AliasChoices, BaseModel, Field
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from clipgraft.config import Recipe
from clipgraft.console import track
from clipgraft.data.batches import TokenStates
from clipgraft.data.transforms import tokenize
from clipgraft.device import PRECISION_DTYPES, choose_device, choose_mixed_precision
from clipgraft.models.base import FrozenBase, check_fit
from clipgraft.models.bridge import (
    NUM_CLASS_MAPS,
    PADDING,
    PADDING_WEIGHT,
    Bridge,
    position_weights,
    token_classes,
)
from clipgraft.models.clip import ClipParts, load_clip, text_hidden_states
from clipgraft.models.cross_attention import kv_metric_sqrt, read_cross_attention
from clipgraft.models.graft import Graft, GraftedTextEncoder
from clipgraft.models.lineage import NO_LINEAGE, Lineage
from clipgraft.models.ridge import ClassRidgeRegression
from clipgraft.models.token_stats import Diversity, EmbedError
from clipgraft.models.weights import module_sha256, tensors_sha256

ENCODE_BATCH_SIZE = 128
"""Captions encoded at once, to bound the memory."""
WHOLE_EVERY = 4
"""One of this many batches to fit to has padding: three in four of a caption's 77 positions are padding of
little weight and would take most of the time."""
NUM_KEPT_PADDING = PADDING_WEIGHT
"""Positions sampled from a whole caption's padding for the residual, equal to its total weight."""

ByClass = Mapping[str, float | None]


class BridgeError(BaseModel):
    """Errors of bridged prompt embeds on held-out captions, by token class.

    BOS is the teacher's own, as in the graft.
    """

    relative_error: ByClass
    """Root of the squared error over the teacher's power; 1 = no better than zero."""
    cosine: ByClass
    key_value_error: ByClass
    """Relative error of the keys and values in the U-Net's cross-attention."""
    diversity: ByClass = Field(validation_alias=AliasChoices("diversity", "spread"))
    """Mean cosine distance between captions at the same position."""
    teacher_diversity: ByClass = Field(validation_alias=AliasChoices("teacher_diversity", "teacher_spread"))


class Positions(NamedTuple):
    """A batch of captions, token by token."""

    student: Tensor
    """CLIP's hidden states, (B, L, D)."""
    teacher: Tensor
    """(B, L, W)."""
    classes: Tensor
    """(B, L)."""
    weights: Tensor
    """Importance, (B, L)."""


class LinearFit(NamedTuple):
    """Result of one pass over captions."""

    regression: ClassRidgeRegression
    kv_metric_sqrt: Tensor
    """(W, W); see `models.cross_attention`."""
    states: TokenStates | None
    """Training data of the residual, if given a file."""


class Towers:
    """CLIP's text tower, a matching base's teacher, and its key-value maps.

    Raises:
        CheckpointError: If CLIP's tower does not match the base's text encoder.
    """

    def __init__(
        self, clip: ClipParts, base: FrozenBase, *, device: str = "auto", mixed_precision: str = "auto"
    ):
        self.device = choose_device(device)
        check_fit(clip.model.text_model, clip.tokenizer, base)
        self.tokenizer: CLIPTokenizer = clip.tokenizer
        self.empty_prompt_embeds = base.empty_prompt_embeds().cpu()
        self.record = base.record()
        self.key_value_maps = list(read_cross_attention(base.origin.path).values())
        self.text_model: CLIPTextModel = clip.model.text_model.eval().to(self.device)
        self.teacher: CLIPTextModel = base.text_encoder.to(self.device)
        dtype = PRECISION_DTYPES[choose_mixed_precision(mixed_precision, self.device)]
        # Copies, as the graft takes float32 weights. CPUs with bfloat16 encode twice as fast in it, and its
        # rounding, 4e-3, is far below the error of any bridge.
        is_full = dtype == torch.float32
        self.encoders = [
            tower if is_full else deepcopy(tower).to(dtype) for tower in (self.text_model, self.teacher)
        ]

    @property
    def are_equal(self) -> bool:
        """Whether CLIP's tower equals the teacher, so that no bridge is needed."""
        ours, theirs = self.text_model.state_dict(), self.teacher.state_dict()
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def checksums(self) -> dict[str, str]:
        """Return checksums of all weights behind a bridge's fit."""
        base = {f"map {index}": weight for index, weight in enumerate(self.key_value_maps)}
        return {
            "weights of CLIP": module_sha256(self.text_model),
            "weights of the base": module_sha256(self.teacher) + tensors_sha256(base),
        }

    def input_ids(self, captions: list[str]) -> Tensor:
        """Return token ids of captions, (N, 77) int64."""
        return tokenize(captions, self.tokenizer, pad_to_context_length=True)

    @torch.no_grad()
    def positions(self, input_ids: Tensor, description: str, *, whole_every: int = 1) -> Iterator[Positions]:
        """Encode captions (N, L) in batches, one in `whole_every` with padding."""
        lengths = self.lengths(input_ids)
        # The longest first: shorter ones reuse their memory.
        batches = lengths.argsort(descending=True, stable=True).split(ENCODE_BATCH_SIZE)
        whole = whole_batches(len(batches), whole_every)
        stands_for = len(input_ids) / sum(len(batches[index]) for index in whole)
        with track(description, len(input_ids)) as update:
            done = 0
            for index, rows in enumerate(batches):
                is_whole = index in whole
                ids = input_ids[rows][:, : None if is_whole else int(lengths[rows].max())].to(self.device)
                classes = token_classes(ids, self.tokenizer.eos_token_id)
                weights = position_weights(classes)
                weights[classes == PADDING] *= stands_for if is_whole else 0
                states = [text_hidden_states(encoder, ids) for encoder in self.encoders]
                yield Positions(states[0].float(), states[1].float(), classes, weights)
                done += len(rows)
                update(done, "captions")

    def lengths(self, input_ids: Tensor) -> Tensor:
        """Return the number of positions from BOS to EOS, (N,) int64."""
        return (input_ids == self.tokenizer.eos_token_id).int().argmax(1) + 1

    def fit_linear(
        self,
        input_ids: Tensor,
        states_file: Path | None = None,
        generator: torch.Generator | None = None,
    ) -> LinearFit:
        """Gather normal equations and key-value metric in one pass over captions.

        Args:
            input_ids: Training captions, (N, 77).
            states_file: Gets hidden states for training a residual, if given.
            generator: For the choice of their padding; None = torch's own.
        """
        sizes = self.text_model.config.hidden_size, self.teacher.config.hidden_size
        regression, kept = ClassRidgeRegression(*sizes, input_ids.shape[1]), None
        if states_file is not None:
            kept = TokenStates(states_file, self.kept_counts(input_ids), sizes)
        for student, teacher, classes, weights in self.positions(
            input_ids, "fitting the linear bridge", whole_every=WHOLE_EVERY
        ):
            regression.add(student, teacher, weights, classes)
            if kept is not None:
                chosen = kept_positions(classes.cpu(), weights.cpu(), generator)
                kept.add(student.cpu(), teacher.cpu(), classes.cpu(), chosen)
        metric = kv_metric_sqrt(self.key_value_maps, regression.target_moment)
        return LinearFit(regression, metric, kept)

    def kept_counts(self, input_ids: Tensor) -> Tensor:
        """Count the positions kept of each caption, the longest first, (N,) int64."""
        lengths = self.lengths(input_ids).sort(descending=True).values
        padding = (input_ids.shape[1] - lengths).clamp(max=NUM_KEPT_PADDING).split(ENCODE_BATCH_SIZE)
        whole = whole_batches(len(padding), WHOLE_EVERY)
        return lengths + torch.cat([part * (index in whole) for index, part in enumerate(padding)])

    def new_bridge(
        self, *, hidden_size: int = 0, num_attention_blocks: int = 0, by_class: bool = True
    ) -> Bridge:
        """Return a bridge between the towers with random linear maps."""
        return Bridge(
            self.text_model.config.hidden_size,
            self.teacher.config.hidden_size,
            hidden_size,
            num_maps=NUM_CLASS_MAPS if by_class else 1,
            num_positions=self.text_model.config.max_position_embeddings if by_class else 1,
            num_attention_blocks=num_attention_blocks,
        ).to(self.device)

    @torch.no_grad()
    def measure(self, bridge: Bridge, input_ids: Tensor, metric_sqrt: Tensor) -> BridgeError:
        """Measure a bridge's error on captions (N, 77); see `kv_metric_sqrt`."""
        error, key_value_error = EmbedError(), EmbedError()
        diversities = [Diversity(input_ids.shape[1], len(metric_sqrt)) for _ in range(2)]
        metric_sqrt = metric_sqrt.to(self.device)
        for student, teacher, classes, _ in self.positions(input_ids, "measuring the bridge"):
            bridged = bridge(student, classes)
            bridged[:, 0] = teacher[:, 0]
            error.add(bridged, teacher, classes)
            key_value_error.add(bridged @ metric_sqrt.T, teacher @ metric_sqrt.T, classes)
            for diversity, embeds in zip(diversities, (bridged, teacher), strict=True):
                diversity.add(embeds, classes)
        return BridgeError(
            relative_error=error.relative_error(),
            cosine=error.mean_cosine(),
            key_value_error=key_value_error.relative_error(),
            diversity=diversities[0].summary(),
            teacher_diversity=diversities[1].summary(),
        )

    def graft(self, bridge: Bridge, lineage: Lineage = NO_LINEAGE) -> Graft:
        """Return a graft of tower, bridge and the teacher's empty prompt."""
        encoder = GraftedTextEncoder.graft(
            self.text_model, bridge, self.empty_prompt_embeds, self.tokenizer.eos_token_id
        )
        return Graft(encoder, self.tokenizer, self.record, lineage)


def load_models(recipe: Recipe) -> tuple[ClipParts, FrozenBase]:
    """Load a recipe's CLIP, and its base's tokenizer and text encoder."""
    clip = load_clip(recipe.clip.name, revision=recipe.clip.revision)
    base = FrozenBase.load(
        recipe.base.name,
        revision=recipe.base.revision,
        components=("tokenizer", "text_encoder"),
        tokenizer=clip.tokenizer,
    )
    return clip, base


def load_towers(recipe: Recipe) -> Towers:
    """Load the CLIP and the base of a recipe as `Towers`."""
    clip, base = load_models(recipe)
    return Towers(clip, base, device=recipe.device, mixed_precision=recipe.bridge.mixed_precision)


def whole_batches(num_batches: int, whole_every: int) -> set[int]:
    """Choose one batch of every `whole_every`, from their middle, to have padding."""
    num_whole = -(-num_batches // whole_every)
    return {(2 * k + 1) * num_batches // (2 * num_whole) for k in range(num_whole)}


def kept_positions(classes: Tensor, weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Choose words and `NUM_KEPT_PADDING` padding positions with weight: bool (B, L)."""
    is_padding = classes == PADDING
    can_be_drawn = is_padding & (weights > 0)
    draws = torch.rand(classes.shape, generator=generator)
    rows = draws.masked_fill(~can_be_drawn, -1.0).topk(min(NUM_KEPT_PADDING, classes.shape[1]), dim=1).indices
    return ~is_padding | torch.zeros_like(is_padding).scatter(1, rows, True) & can_be_drawn
