"""What is measured of a CLIP: retrieval on a split, validation loss, drift of its token states."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from clipgraft.data.content import merge_copies
from clipgraft.data.images import open_image
from clipgraft.data.loader import content_numbers
from clipgraft.data.records import CaptionedImage
from clipgraft.data.transforms import clip_pixel_values, tokenize
from clipgraft.evaluation.drift import token_drift
from clipgraft.evaluation.retrieval import paired_recall, retrieval_metrics
from clipgraft.models.clip import ClipParts, encode_images, encode_text
from clipgraft.progress import track
from clipgraft.training.objectives import ContrastiveObjective

ENCODE_BATCH_SIZE = 64
NUM_DRIFT_CAPTIONS = 512
"""Captions on which drift is measured: its figures for 512 and for 5,000 agree in three digits (flatland)."""


@torch.no_grad()
def measure_retrieval(
    clip: ClipParts, images: Sequence[CaptionedImage], description: str
) -> dict[str, Any] | None:
    """Recall at 1, 5 and 10 in both directions over images and all of their captions; None without images.

    Copies of a photograph are one image with the captions of all (`merge_copies`).

    `paired_recall`'s figures are beside them, for comparison with other trainers' logs.
    """
    if not images:
        return None
    images = merge_copies(images)
    clip.model.eval()
    captions = [caption for image in images for caption in image.captions]
    image_index = torch.tensor([i for i, image in enumerate(images) for _ in image.captions])
    total = len(images) + len(captions)
    with track(description, total) as update:
        image_embeds = embed_images(clip, images, lambda done: update(done, "images"))
        text_embeds = []
        for start in range(0, len(captions), ENCODE_BATCH_SIZE):
            part = captions[start : start + ENCODE_BATCH_SIZE]
            ids = tokenize(part, clip.tokenizer).input_ids.to(clip.model.device)
            text_embeds.append(encode_text(clip.model, ids).cpu())
            update(len(images) + start + len(part), "captions")
    embeds = torch.cat(text_embeds), image_embeds, image_index
    return retrieval_metrics(*embeds) | paired_recall(*embeds)


@torch.no_grad()
def embed_images(
    clip: ClipParts, images: Sequence[CaptionedImage], update: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Encode images in the joint space: unit-norm float32 (N, P) on the CPU.

    Args:
        clip: In eval mode.
        images: Opened and decoded here, some at a time.
        update: Called with the number of images done.
    """
    embeds = []
    for start in range(0, len(images), ENCODE_BATCH_SIZE):
        opened = (open_image(image.path) for image in images[start : start + ENCODE_BATCH_SIZE])
        pixels = clip_pixel_values(opened, clip.image_processor).to(clip.model.device)
        embeds.append(encode_images(clip.model, pixels).cpu())
        update(start + len(pixels))
    return torch.cat(embeds)


class ClipWatch:
    """Measures a CLIP in training on the validation split, always in the same way.

    Args:
        clip: The model as it is now; its text tower is remembered.
        objective: Whose loss is measured, at one fixed batch.
        images: The validation split, at least one image.
        batch_size: Images of the fixed batch, each with its first caption; of one, 2 are taken: alone it has
            no wrong answer, and its loss is always 0.
    """

    def __init__(
        self,
        clip: ClipParts,
        objective: ContrastiveObjective,
        images: Sequence[CaptionedImage],
        batch_size: int,
    ):
        self.clip, self.objective, self.images = clip, objective, images
        self.before = deepcopy(clip.model.text_model).eval()
        fixed = images[: max(2, batch_size)]
        opened = (open_image(image.path) for image in fixed)
        rows = torch.arange(len(fixed))
        captions = [image.captions[0] for image in fixed]
        self.batch = {
            "clip_pixel_values": clip_pixel_values(opened, clip.image_processor),
            "input_ids": tokenize(captions, clip.tokenizer).input_ids,
            "image_index": rows,
            "caption_image": rows,
            "image_content": torch.tensor(content_numbers(fixed)),
        }
        captions = [caption for image in images for caption in image.captions][:NUM_DRIFT_CAPTIONS]
        self.drift_ids = tokenize(captions, clip.tokenizer, pad_to_context_length=True).input_ids

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """Return recall, `val_loss` and drift by token class; weights and random state stay as they are."""
        self.objective.eval()
        device = self.clip.model.device
        loss, _ = self.objective({name: tensor.to(device) for name, tensor in self.batch.items()})
        drift = token_drift(
            self.before, self.clip.model.text_model, self.drift_ids, self.clip.tokenizer.eos_token_id
        )
        recall = measure_retrieval(self.clip, self.images, "recall on val") or {}
        return {**recall, "val_loss": float(loss), **drift}
