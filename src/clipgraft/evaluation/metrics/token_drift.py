"""Drift: how far the token states of a text tower have moved from where they began, by token class.

A contrastive loss reads the state at EOS alone; a U-Net reads all 77. Captions are cut and padded to the 77
positions of the tokenizer; one caption is enough.
"""

import torch
from torch import Tensor, nn

from clipgraft.models.bridge import CLASS_NAMES, token_classes
from clipgraft.models.clip import text_hidden_states
from clipgraft.models.token_stats import EmbedError

BATCH_SIZE = 64


@torch.no_grad()
def token_drift(
    before: nn.Module, after: nn.Module, input_ids: Tensor, eos_token_id: int
) -> dict[str, float]:
    """Compare two text towers of one shape on the same captions.

    Args:
        before: The tower as it was, on the device of `after`.
        after: The tower as it is; both in eval mode.
        input_ids: (B, L) int64, padded with EOS to all the positions that are to be compared.
        eos_token_id: Tells words from padding.

    Returns:
        For each token class met (bos, words, eos, padding) `drift_<class>`: root of the squared difference
        over the states' power before. 0 = unmoved, 1 = as far as from the origin.
    """
    error = EmbedError()
    device = next(after.parameters()).device
    for batch in input_ids.split(BATCH_SIZE):
        ids = batch.to(device)
        now, then = (text_hidden_states(tower, ids).float() for tower in (after, before))
        error.add(now, then, token_classes(batch, eos_token_id))
    return {f"drift_{name}": value for name, value in error.relative_error().items()}


def caption_errors(states: Tensor, teacher: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Compare token states with the teacher's, caption by caption.

    Args:
        states: (B, L, W), what a graft gives.
        teacher: (B, L, W), what the base's own text encoder gives.
        classes: (B, L) from `token_classes`.

    Returns:
        For each token class (bos, words, eos, padding) the root of the squared difference over the teacher's
        power (B,), float64; 0 = equal, NaN where a caption has no token of that class.
    """
    squared = (states.double() - teacher.double()).square().sum(-1)  # (B, L)
    power = teacher.double().square().sum(-1)
    errors = {}
    for number, name in enumerate(CLASS_NAMES):
        chosen = classes == number
        errors[name] = ((squared * chosen).sum(1) / (power * chosen).sum(1)).sqrt()
    return errors
