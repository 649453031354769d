"""Validation of a CLIP in training: recall, loss, token drift, previews."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import Tensor

from clipgraft.console import say, track
from clipgraft.data.batch_reader import Collate, Item, content_number
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionedImage, merge_duplicates
from clipgraft.data.image_file import content_checksums
from clipgraft.data.images import open_image
from clipgraft.data.transforms import clip_crop, clip_pixel_values, encode_captions, tokenize
from clipgraft.errors import UserError
from clipgraft.evaluation.metrics.retrieval import paired_recall, retrieval_metrics
from clipgraft.evaluation.metrics.token_drift import token_drift
from clipgraft.generation.contact_sheet import FAILURES
from clipgraft.generation.generator import load_generators
from clipgraft.generation.image_encoding import write_image
from clipgraft.generation.requests import image_requests
from clipgraft.models.clip import ClipParts, encode_images, encode_text
from clipgraft.models.graft import GraftedTextEncoder
from clipgraft.settings import FinetuneSettings, GenerateSettings
from clipgraft.training.exchange import alone, gather_of, in_shares
from clipgraft.training.grad_cache import concatenated, joint_loss
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.trainer import StepReport

ENCODE_BATCH_SIZE = 64
COMPILED_LENGTHS = 8
"""Padding multiple with compiled towers: ten lengths in all."""
NUM_DRIFT_CAPTIONS = 256
"""Captions for drift, which was 0.963 of words over 256 and 0.967 over 1,000 (flatland)."""

Recall = dict[str, int | float]
"""Retrieval metrics by name, e.g. `text_to_image_recall@1` (a share), and sizes of the gallery."""


@torch.no_grad()
def measure_retrieval(
    clip: ClipParts,
    images: Sequence[CaptionedImage],
    description: str,
    processes: PartialState | None = None,
) -> Recall | None:
    """Measure recall over images and all their captions (None without images).

    Both directions; copies of a photograph count as one image. `paired_recall` is for comparison with other
    trainers' logs.

    Args:
        clip: Both towers.
        images: With captions.
        description: Of the progress.
        processes: Those that call this together, each to encode its share; None = this one alone.
    """
    if not images:
        return None
    images = merge_duplicates(images)
    clip.model.eval()
    captions = [caption for image in images for caption in image.captions]
    image_index = torch.tensor([i for i, image in enumerate(images) for _ in image.captions])
    number = processes.num_processes if processes else 1
    with track(description, len(images) + len(captions)) as update:
        image_embeds = in_shares(
            images,
            lambda part: embed_images(clip, part, lambda done: update(done * number, "images")),
            processes,
        )

        def embed_captions(part: Sequence[str]) -> Tensor:
            embeds = []
            for start in range(0, len(part), ENCODE_BATCH_SIZE):
                ids = tokenize(part[start : start + ENCODE_BATCH_SIZE], clip.tokenizer)
                embeds.append(encode_text(clip.model, ids.to(clip.model.device)).cpu())
                update(len(images) + min(len(part), start + ENCODE_BATCH_SIZE) * number, "captions")
            return torch.cat(embeds)

        text_embeds = in_shares(captions, embed_captions, processes)
    embeds = text_embeds, image_embeds, image_index
    return retrieval_metrics(*embeds) | paired_recall(*embeds)


@torch.no_grad()
def embed_images(
    clip: ClipParts, images: Sequence[CaptionedImage], update: Callable[[int], None] = lambda _: None
) -> Tensor:
    """Encode images with a CLIP: unit-norm float32 (N, P) on the CPU.

    The CLIP is in eval mode; `update` is called with the number of images done.
    """
    embeds = []
    for start in range(0, len(images), ENCODE_BATCH_SIZE):
        opened = (open_image(image.file) for image in images[start : start + ENCODE_BATCH_SIZE])
        pixels = clip_pixel_values(opened, clip.image_processor).to(clip.model.device)
        embeds.append(encode_images(clip.model, pixels).cpu())
        update(start + len(pixels))
    return torch.cat(embeds)


def passes_per_loss(settings: FinetuneSettings) -> int:
    """Return the number of forward passes in one contrastive loss."""
    return settings.gradient_accumulation_steps if settings.accumulation == "joint" else 1


def length_multiple(settings: FinetuneSettings) -> int:
    """Return the length multiple for padding captions."""
    if settings.distill_weight:
        return CONTEXT_LENGTH  # a U-Net reads padding too, so its states are distilled
    # Any is correct, as no position up to EOS attends to padding; each length is compiled anew.
    return COMPILED_LENGTHS if settings.compile else 1


class Validator:
    """Validation of a CLIP in training on fixed images and captions.

    Args:
        clip: The CLIP in training; drift is measured from its present text tower.
        objective: The training's; its loss is measured over as many images as in training.
        images: The validation split, at least one image.
        settings: Of the fine-tuning.
        processes: Those that measure together, each its share.
    """

    def __init__(
        self,
        clip: ClipParts,
        objective: ContrastiveObjective,
        images: Sequence[CaptionedImage],
        settings: FinetuneSettings,
        processes: PartialState,
    ):
        self.clip, self.objective, self.images, self.processes = clip, objective, images, processes
        self.batch_size = settings.batch_size
        self.before = deepcopy(clip.model.text_model).eval()
        # At least two, for a negative.
        fixed = images[: max(2, settings.batch_size * passes_per_loss(settings))]
        size, first, self.gather = len(fixed) // processes.num_processes, 0, gather_of(processes)
        if not size:  # fewer images than processes: each measures all
            size, self.gather = len(fixed), alone
        elif processes.num_processes > 1:
            first = size * processes.process_index
        own = fixed[first : first + size]
        eos_token_id = clip.tokenizer.eos_token_id
        self.collate = Collate(clip.image_processor, eos_token_id, length_multiple(settings))
        self.items = []
        contents = content_checksums([image.file for image in own])
        for index, (image, content) in enumerate(zip(own, contents, strict=True), start=first):
            crop = clip_crop(open_image(image.file), clip.image_processor)
            # As in training an image with fewer captions repeats some.
            captions = [*islice(cycle(image.captions), settings.captions_per_image)]
            ids, _ = encode_captions(captions, clip.tokenizer)
            self.items.append(Item(crop, ids, index, content_number(content), image.image_id))
        captions = [caption for image in images for caption in image.captions][:NUM_DRIFT_CAPTIONS]
        self.drift_ids = tokenize(captions, clip.tokenizer, pad_to_context_length=True)

    @torch.no_grad()
    def measure(self) -> dict[str, Any]:
        """Return recall, `val_loss` and drift by token class."""
        self.objective.eval()
        device = self.clip.model.device
        starts = range(0, len(self.items), self.batch_size)
        batches = (self.collate(self.items[start : start + self.batch_size]) for start in starts)
        embeds = [self.objective.embed(send_to_device(batch, device)) for batch in batches]
        loss, _ = joint_loss(self.objective, concatenated(embeds), self.gather)
        drift = token_drift(
            self.before, self.clip.model.text_model, self.drift_ids, self.clip.tokenizer.eos_token_id
        )
        recall = measure_retrieval(self.clip, self.images, "recall on val", self.processes) or {}
        return {**recall, "val_loss": float(loss), **drift}


class ValidationImages:
    """Previews of fixed prompts and seeds every so many steps.

    Args:
        clip: The CLIP in training; its text tower replaces the graft's.
        graft: Folder with the bridge and the record of the base.
        settings: Prompts and sampling.
        folder: Gets `step-<step>/<number>.png`; failed images are reported.
        every: Steps between previews.
        device: Device of the generation.

    Raises:
        UserError: If the graft's text tower has another shape.
    """

    def __init__(
        self,
        clip: ClipParts,
        graft: Path,
        settings: GenerateSettings,
        folder: Path,
        every: int,
        device: torch.device,
    ):
        self.clip, self.folder, self.every = clip, folder, every
        self.requests = image_requests(settings.prompts, settings)
        self.batch_size = settings.batch_size
        _, self.generator = next(load_generators({"graft": graft}, device=device.type, inference=settings))
        self._take_weights()

    def __call__(self, report: StepReport) -> None:
        """Generate images if due."""
        if report.step % self.every:
            return
        self._take_weights()
        folder = self.folder / f"step-{report.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        images = self.generator.sample(self.requests, batch_size=self.batch_size)
        for number, image in enumerate(images):
            if image.status == "ok":
                write_image(image.image, folder / f"{number}.png")
            else:
                reason = FAILURES[image.status]
                say(f"step {report.step}, image {number} of {image.prompt[:60]!r} was not written: {reason}")

    def _take_weights(self) -> None:
        encoder = self.generator.pipeline.text_encoder
        if not isinstance(encoder, GraftedTextEncoder):
            raise UserError("preview_graft names a distilled text encoder, which has no CLIP; name a graft")
        tower = encoder.text_model
        self.generator.prompt_embeds.clear()
        try:
            tower.load_state_dict(self.clip.model.text_model.state_dict())
        except RuntimeError as error:
            raise UserError(
                "preview_graft was made for a text tower of another shape; name a graft of this CLIP"
            ) from error
