"""What a fine-tuning trains on: splits, batches, their start, notes."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, send_to_device

from clipgraft.config import Recipe
from clipgraft.console import is_first_process, say
from clipgraft.data.batch_reader import Crops
from clipgraft.data.check import check_dataset, leakage_note
from clipgraft.data.crop_reader import NoCrops, crops_of
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionDataset, CaptionedImages, TrainingImages
from clipgraft.data.loader import CaptionedBatches, choose_num_workers
from clipgraft.data.random_crops import RandomCrops, without_crop
from clipgraft.data.transforms import encode_captions
from clipgraft.errors import UserError
from clipgraft.files import read_json, write_bytes, write_json
from clipgraft.finetuning.validate import embed_images, length_multiple, passes_per_loss
from clipgraft.models.clip import ClipParts
from clipgraft.settings import FinetuneSettings
from clipgraft.training.checkpoints import FOLDER_NAME
from clipgraft.training.exchange import in_shares
from clipgraft.training.grad_cache import concatenated
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.trainer import Resume, grouped

NUM_MEASURED_CAPTIONS = 10_000
"""Training captions measured in tokens before the first step, in less than a second."""


def split_images(
    data: CaptionDataset, recipe: Recipe
) -> tuple[TrainingImages, CaptionedImages, CaptionedImages]:
    """Return images to train on, to validate on and to test on."""
    limits = recipe.data
    train = data.train.first(limits.max_train_images) if limits.max_train_images else data.train
    val = data.val.first(limits.max_val_images or len(data.val))
    test = data.test.first(limits.max_test_images or len(data.test))
    check_settings(recipe.finetune, num_train=len(train), has_val=bool(val))
    captions = some_captions(train, recipe.seed)
    first = next(captions, "")
    if len(train) and all(caption == first for caption in captions):
        raise UserError(f"every training caption is {first!r}; captions have to tell images apart")
    return train, val, test


def some_captions(images: TrainingImages, seed: int) -> Iterator[str]:
    """Yield captions; of images not in memory those that training reads first."""
    if isinstance(images, CaptionedImages):
        return images.iter_captions()
    return (caption for _, image in images.epoch(seed, 0) for caption in image.captions)


def check_settings(settings: FinetuneSettings, *, num_train: int, has_val: bool) -> None:
    """Refuse settings in conflict with each other or the data."""
    passes = passes_per_loss(settings)
    if settings.batch_size == passes == 1:
        raise UserError("a batch of one image has no negatives; set batch_size to 2 or more")
    if settings.batch_size == 1 and num_train % passes == 1:
        raise UserError(
            f"batch_size=1 and gradient_accumulation_steps={passes} leave one of {num_train} training images "
            "to an epoch's last step, without negatives; change either"
        )
    if settings.patience and not settings.best_metric:
        raise UserError("patience needs a best_metric: name one, e.g. text_to_image_recall@1")
    if settings.best_metric and not has_val:
        raise UserError(
            f"best_metric {settings.best_metric!r} is measured on a validation split, and the source has "
            "none; leave best_metric empty, or add a val split"
        )
    if bool(settings.preview_steps) != bool(settings.preview_graft):
        raise UserError("preview_steps and preview_graft belong together: set both, or neither")
    if settings.preview_steps and settings.lora_rank:
        raise UserError(
            "preview_steps needs whole weights, which lora_rank has at the end only; set one to 0"
        )
    if settings.frozen_vision_layers == -1 and settings.crop_scale < 1:
        raise UserError(
            "crop_scale below 1 augments images, and with frozen_vision_layers=-1 each is encoded once for "
            "all epochs; set crop_scale=1"
        )


def is_encoded_once(images: TrainingImages, settings: FinetuneSettings) -> bool:
    """Whether a table holds all images' embeds: vision frozen, images in memory."""
    return settings.frozen_vision_layers == -1 and isinstance(images, CaptionedImages)


def training_batches(
    images: TrainingImages, clip: ClipParts, recipe: Recipe, processes: PartialState
) -> CaptionedBatches:
    """Return this process's share of the training batches."""
    settings = recipe.finetune
    crops: Crops = NoCrops()
    processor, random_crops = clip.image_processor, None
    if settings.crop_scale < 1:
        random_crops = RandomCrops(processor, settings.crop_scale, recipe.seed)
        processor = without_crop(processor)
    if not is_encoded_once(images, settings):
        with processes.main_process_first():  # the others find them cached
            crops = crops_of(images, processor)
    return CaptionedBatches(
        images,
        crops,
        tokenizer=clip.tokenizer,
        processor=clip.image_processor,
        batch_size=settings.batch_size,
        seed=recipe.seed,
        captions_per_image=settings.captions_per_image,
        length_multiple=length_multiple(settings),
        num_workers=choose_num_workers(settings.num_workers, crops, processes.num_processes),
        process_index=processes.process_index,
        num_processes=processes.num_processes,
        skips_damaged=recipe.data.on_damaged == "skip",
        random_crops=random_crops,
    )


def set_start(
    objective: ContrastiveObjective,
    clip: ClipParts,
    images: TrainingImages,
    batches: CaptionedBatches,
    settings: FinetuneSettings,
    processes: PartialState,
) -> None:
    """Encode images in memory for a frozen vision tower; initialize SigLIP's bias."""
    device = clip.model.device
    if is_encoded_once(images, settings):
        assert isinstance(images, CaptionedImages)
        clip.model.eval()
        table = in_shares(images, lambda part: embed_images(clip, part), processes)
        objective.image_table = table.to(device)
    if settings.loss == "sigmoid":
        first = next(grouped(batches.epoch(0, 0), passes_per_loss(settings)))
        with torch.no_grad():
            embeds = concatenated([objective.embed(send_to_device(batch, device)) for batch in first])
            objective.start_bias(embeds, gather)  # in all processes the same


def say_notes(
    data: CaptionDataset,
    train: TrainingImages,
    clip: ClipParts,
    seed: int,
    folder: Path | None,
    resume: bool | Resume,
) -> None:
    """Report leaked photographs, truncated captions, a missing checkpoint; write `data.json`."""
    counts = check_dataset(data, tokenizer=clip.tokenizer, read_images=False)
    if folder:
        write_bytes(folder / "data.json", counts.to_json().encode())
    if note := leakage_note(counts):
        say(note)
    is_from_newest = resume is True or (isinstance(resume, Resume) and resume.step is None)
    if folder and is_from_newest and not any((folder / FOLDER_NAME).glob("step-*")):
        say(f"no checkpoint in {folder} to resume from; training starts over")
    captions = list(islice(some_captions(train, seed), NUM_MEASURED_CAPTIONS + 1))
    _, num_truncated = encode_captions(captions[:NUM_MEASURED_CAPTIONS], clip.tokenizer)
    if num_truncated:
        of = f" of the first {NUM_MEASURED_CAPTIONS:,}" if len(captions) > NUM_MEASURED_CAPTIONS else ""
        say(
            f"{num_truncated:,}{of} training captions are longer than {CONTEXT_LENGTH} tokens; their ends "
            "are cut"
        )


def gather_damaged(batches: CaptionedBatches, folder: Path | None) -> dict[str, str]:
    """Return the damaged images that all processes met; add them to `data.json`."""
    damaged = {name: why for found in gather_object([batches.damaged]) for name, why in found.items()}
    if damaged and folder and is_first_process():
        check = read_json(folder / "data.json")
        write_json(folder / "data.json", {**check, "damaged": {**check["damaged"], **damaged}})
    return damaged
