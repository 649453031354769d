"""Objective for distilling a graft into the base's own text encoder."""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedModel

from clipgraft.distilling.null_space import NullSpace
from clipgraft.models.bridge import PADDING, position_weights, token_classes
from clipgraft.models.clip import text_hidden_states
from clipgraft.training.objectives import StateObjective


class DistillObjective(StateObjective):
    """Error against the graft's states for new words, else the base's.

    Positions weigh as for the bridge. BOS has no weight, as its state is that of the empty prompt, which the
    null space keeps.

    Args:
        encoder: Copy of the base's own text encoder; parameters with gradients are trained.
        graft: The graft's text encoder, in eval mode and on the device; it is not changed.
        teacher: The base's own text encoder, likewise.
        null_space: Projects each step's update.
        eos_token_id: The tokenizer's.
        **weights: Those of `StateObjective`.
    """

    def __init__(
        self,
        encoder: CLIPTextModel,
        graft: PreTrainedModel,
        teacher: CLIPTextModel,
        null_space: NullSpace,
        *,
        eos_token_id: int,
        **weights: Any,
    ):
        super().__init__(**weights)
        self.encoder = encoder
        self._targets = graft, teacher  # in a tuple, so that they are no part of what is trained
        self.null_space, self.eos_token_id = null_space, eos_token_id

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the errors of a batch of `CaptionBatches`."""
        input_ids = batch["input_ids"]
        target = self.target(input_ids, batch["has_new_word"])
        classes = token_classes(input_ids, self.eos_token_id)
        weights = position_weights(classes)
        weights[classes == PADDING] *= batch["padding_scale"]
        return self.errors(text_hidden_states(self.encoder, input_ids), target, weights)

    @torch.no_grad()
    def target(self, input_ids: Tensor, has_new_word: Tensor) -> Tensor:
        """Return the states to give for captions (B, L), (B, L, W) float32."""
        target = torch.empty(*input_ids.shape, self.encoder.config.hidden_size, device=input_ids.device)
        for rows, model in zip((has_new_word, ~has_new_word), self._targets, strict=True):
            if rows.any():
                target[rows] = text_hidden_states(model, input_ids[rows]).float()
        return target

    def after_step(self) -> None:
        """Take back what the step changed of the empty prompt's states."""
        self.null_space.project()
