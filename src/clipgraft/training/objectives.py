"""Objectives: each an nn.Module with `forward(batch) -> (loss, metrics)`; only what is trained has gradients.

B batch, L tokens, D hidden width, P joint width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import encode_images, encode_text, text_hidden_states
from clipgraft.training.losses import contrastive_loss, state_loss

LOGIT_SCALE_MAX = math.log(100)
"""Radford et al. 2021, section 2.5: the multiplier is kept from passing 100 for a stable training."""

Result = tuple[Tensor, dict[str, Any]]


class ContrastiveObjective(nn.Module):
    """CLIP's contrastive loss over the pairs of a batch; both towers and `logit_scale` are trained.

    Args:
        clip: The model to train, float32.
    """

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss of `clip_pixel_values` (B, 3, S, S) against `input_ids` (B, L), row by row."""
        image_embeds = encode_images(self.clip, batch["clip_pixel_values"])  # (B, P)
        text_embeds = encode_text(self.clip, batch["input_ids"])  # (B, P)
        loss = contrastive_loss(image_embeds, text_embeds, self.clip.logit_scale)
        return loss, {"logit_scale": self.clip.logit_scale.detach().exp()}

    @torch.no_grad()
    def after_step(self) -> None:
        """Clamp the parameter itself: clamping it in `forward` would end its gradient at the bound."""
        self.clip.logit_scale.clamp_(0, LOGIT_SCALE_MAX)


class BridgeObjective(nn.Module):
    """Error of the bridged token states against the teacher's, computed on the way from `input_ids`.

    Args:
        bridge: Trained.
        text_model: The fine-tuned CLIP's text tower, frozen.
        teacher: The base's own text encoder, frozen.
    """

    def __init__(self, bridge: Bridge, text_model: nn.Module, teacher: nn.Module):
        super().__init__()
        self.bridge = bridge
        self.text_model = text_model.requires_grad_(False)
        self.teacher = teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> "BridgeObjective":
        """Switch the bridge alone: frozen towers stay in eval."""
        super().train(mode)
        self.text_model.eval()
        self.teacher.eval()
        return self

    def forward(self, batch: dict[str, Any]) -> Result:
        """Return the loss over `input_ids` (B, L) with the positions' `weights` (B, L)."""
        with torch.no_grad():
            student = text_hidden_states(self.text_model, batch["input_ids"])  # (B, L, D of CLIP)
            teacher = text_hidden_states(self.teacher, batch["input_ids"])  # (B, L, D of the base)
        return state_loss(self.bridge(student), teacher, batch["weights"]), {}
