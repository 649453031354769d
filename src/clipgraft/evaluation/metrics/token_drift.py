"""Drift of a text tower's hidden states by token class."""

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
        before, after: Text towers in eval mode on one device.
        input_ids: (B, L) int64, padded with EOS to the length to compare.

    Returns:
        `drift_<class>` for each token class present (bos, words, eos, padding): relative root squared
        difference; 0 = unmoved, 1 = as large as the states before.
    """
    error = EmbedError()
    device = next(after.parameters()).device
    for batch in input_ids.split(BATCH_SIZE):
        ids = batch.to(device)
        now, then = (text_hidden_states(tower, ids).float() for tower in (after, before))
        error.add(now, then, token_classes(batch, eos_token_id))
    return {f"drift_{name}": value for name, value in error.relative_error().items()}


def caption_errors(states: Tensor, teacher: Tensor, classes: Tensor) -> dict[str, Tensor]:
    """Compare hidden states with the teacher's, caption by caption.

    Args:
        states: (B, L, W) of a graft.
        teacher: (B, L, W) of the base's own text encoder.
        classes: (B, L) from `token_classes`.

    Returns:
        Token class -> relative root squared difference (B,), float64; 0 = equal, NaN where a caption has no
        token of that class.
    """
    squared = (states.double() - teacher.double()).square().sum(-1)  # (B, L)
    power = teacher.double().square().sum(-1)
    errors = {}
    for number, name in enumerate(CLASS_NAMES):
        chosen = classes == number
        errors[name] = ((squared * chosen).sum(1) / (power * chosen).sum(1)).sqrt()
    return errors
