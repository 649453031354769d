"""What is measured of a CLIP: retrieval on a split, validation loss, drift of its token states."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from clipgraft.console import track
from clipgraft.data.dataset import CaptionedImage, merge_duplicates
from clipgraft.data.images import open_image
from clipgraft.data.loader import Collate, Item, duplicate_ids
from clipgraft.data.transforms import clip_crop, clip_pixel_values, encode_captions, tokenize
from clipgraft.evaluation.metrics.retrieval import paired_recall, retrieval_metrics
from clipgraft.evaluation.metrics.token_drift import token_drift
from clipgraft.models.clip import ClipParts, encode_images, encode_text
from clipgraft.training.grad_cache import concatenated
from clipgraft.training.objectives import ContrastiveObjective

ENCODE_BATCH_SIZE = 64
NUM_DRIFT_CAPTIONS = 512
"""Captions on which drift is measured: its figures for 512 and for 5,000 agree in three digits (flatland)."""


@torch.no_grad()
def measure_retrieval(
    clip: ClipParts, images: Sequence[CaptionedImage], description: str
) -> dict[str, Any] | None:
    """Recall at 1, 5 and 10 in both directions over images and all of their captions; None without images.

    Copies of a photograph are one image with the captions of all (`merge_duplicates`).

    `paired_recall`'s figures are beside them, for comparison with other trainers' logs.
    """
    if not images:
        return None
    images = merge_duplicates(images)
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
        objective: Whose loss is measured, at fixed images and captions.
        images: The validation split, at least one image.
        batch_size: Images in a forward pass.
        num_passes: That the loss is taken over. Of one image in all, 2 are taken: alone it has no wrong
            answer, and its loss is always 0.
        captions_per_image: Of each image the first ones.
        length_multiple: See `Collate`.
    """

    def __init__(
        self,
        clip: ClipParts,
        objective: ContrastiveObjective,
        images: Sequence[CaptionedImage],
        batch_size: int,
        *,
        num_passes: int = 1,
        captions_per_image: int = 1,
        length_multiple: int = 1,
    ):
        self.clip, self.objective, self.images, self.batch_size = clip, objective, images, batch_size
        self.before = deepcopy(clip.model.text_model).eval()
        fixed = images[: max(2, batch_size * num_passes)]
        # What makes training's batches makes these.
        self.collate = Collate(
            clip.image_processor, clip.tokenizer.eos_token_id, tuple(duplicate_ids(fixed)), length_multiple
        )
        self.items = []
        for index, image in enumerate(fixed):
            crop = clip_crop(open_image(image.path), clip.image_processor)
            ids, _ = encode_captions(image.captions[:captions_per_image], clip.tokenizer)
            self.items.append(Item(crop, ids, index, image.image_id))
        captions = [caption for image in images for caption in image.captions][:NUM_DRIFT_CAPTIONS]
        self.drift_ids = tokenize(captions, clip.tokenizer, pad_to_context_length=True).input_ids

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """Return recall, `val_loss` and drift by token class; weights and random state stay as they are."""
        self.objective.eval()
        device = self.clip.model.device
        starts = range(0, len(self.items), self.batch_size)
        batches = (self.collate(self.items[start : start + self.batch_size]) for start in starts)
        embeds = [self.objective.embed(send_to_device(batch, device)) for batch in batches]
        loss, _ = self.objective.joint_loss(concatenated(embeds))
        drift = token_drift(
            self.before, self.clip.model.text_model, self.drift_ids, self.clip.tokenizer.eos_token_id
        )
        recall = measure_retrieval(self.clip, self.images, "recall on val") or {}
        return {**recall, "val_loss": float(loss), **drift}
