"""What one step of fine-tuning is by its definition: one pass over everything, in float64, by loops."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel


class Pass(NamedTuple):
    """What one loss is taken over."""

    pixels: Tensor
    """(N, 3, S, S) float64."""
    input_ids: Tensor
    """(M, 77)."""
    owner: list[int]
    """Row of each caption's image."""
    content: list[bytes]
    """Each image's file."""


def plain_loss(
    model: CLIPModel,
    before: CLIPModel,
    bias: Tensor | None,
    passes: Sequence[Pass],
    *,
    duplicate_images: str,
    distill: float,
) -> Tensor:
    """Mean over the passes' losses; sigmoid where there is a bias, else softmax."""
    losses = []
    for part in passes:
        out = model(input_ids=part.input_ids, pixel_values=part.pixels)
        logits = model.logit_scale.exp() * out.text_embeds @ out.image_embeds.T
        if bias is None:
            loss = softmax_loss(logits, part.owner, part.content, duplicate_images)
        else:
            loss = sigmoid_loss(logits + bias, part.owner, part.content, duplicate_images)
        if distill:
            with torch.no_grad():
                kept = before.text_model(part.input_ids).last_hidden_state
            states = out.text_model_output.last_hidden_state
            loss = loss + distill * distill_loss(states, kept, part.input_ids)
        losses.append(loss)
    return torch.stack(losses).mean()


def softmax_loss(logits: Tensor, owner: list[int], content: list[bytes], duplicate_images: str) -> Tensor:
    captions, images = range(len(owner)), range(len(content))
    if duplicate_images == "negative":
        pairs = logits[:, owner]  # each caption with an image of its own
        own = pairs.diagonal()
        return ((pairs.logsumexp(1) - own).mean() + (pairs.logsumexp(0) - own).mean()) / 2
    is_same = [[content[n] == content[owner[m]] for n in images] for m in captions]
    if duplicate_images == "positive":
        by_text = [-logits[m].log_softmax(0)[is_same[m]].mean() for m in captions]
        by_image = [-logits[:, n].log_softmax(0)[[row[n] for row in is_same]].mean() for n in images]
    else:
        by_text, by_image = [], []
        for m in captions:
            own = logits[m, owner[m]]
            images_left = [n for n in images if not is_same[m][n]]
            captions_left = [k for k in captions if not is_same[k][owner[m]]]
            by_text.append(torch.cat([own[None], logits[m, images_left]]).logsumexp(0) - own)
            by_image.append(torch.cat([own[None], logits[captions_left, owner[m]]]).logsumexp(0) - own)
    return (torch.stack(by_text).mean() + torch.stack(by_image).mean()) / 2


def sigmoid_loss(logits: Tensor, owner: list[int], content: list[bytes], duplicate_images: str) -> Tensor:
    terms = []
    for m, own in enumerate(owner):
        for n in range(len(content)):
            is_right = n == own
            if not is_right and content[n] == content[own]:
                if duplicate_images == "mask":
                    continue
                is_right = duplicate_images == "positive"
            terms.append(F.softplus(-logits[m, n] if is_right else logits[m, n]))
    return torch.stack(terms).sum() / len(owner)


def distill_loss(states: Tensor, kept: Tensor, input_ids: Tensor) -> Tensor:
    """Words and EOS count 1 each, BOS nothing, a caption's padding 8 in all and no position above 1."""
    sums = []
    for now, then, ids in zip(states, kept, input_ids.tolist(), strict=True):
        length = ids.index(ids[-1]) + 1  # with EOS, which pads too
        padding = len(ids) - length
        weight = torch.tensor(
            [0.0] + [1.0] * (length - 1) + [min(1.0, 8 / max(1, padding))] * padding
        ).double()
        cosine = (now * then).sum(1) / now.norm(dim=1) / then.norm(dim=1)
        errors = [(now - then).square().mean(1), then.square().mean(1), 1 - cosine, torch.ones_like(cosine)]
        sums.append(torch.stack([weight @ error for error in errors]))
    squared, power, distance, total = torch.stack(sums).sum(0)
    return squared / power + distance / total


@torch.no_grad()
def expected_pairs(model: CLIPModel, part: Pass, bias: float) -> float:
    """Images a caption that SigLIP's loss expects to belong to it."""
    out = model(input_ids=part.input_ids, pixel_values=part.pixels)
    logits = model.logit_scale.exp() * out.text_embeds @ out.image_embeds.T
    return float(torch.sigmoid(logits + bias).sum(1).mean())
