"""Fine-tune CLIP on captioned images, and measure retrieval before and after."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, send_to_device

from clipgraft.config import FinetuneSettings, Recipe
from clipgraft.console import print_line, say
from clipgraft.data.check import check_dataset, leakage_note
from clipgraft.data.dataset import CONTEXT_LENGTH, CaptionDataset, CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.loader import CaptionedBatches
from clipgraft.data.transforms import load_crops
from clipgraft.device import choose_device, seed_everything
from clipgraft.errors import UserError
from clipgraft.files import write_bytes, write_json
from clipgraft.finetuning.previews import Samples
from clipgraft.finetuning.validate import ClipWatch, embed_images, measure_retrieval
from clipgraft.models.clip import ClipParts, load_clip, save_clip
from clipgraft.reporting.plots import plot_loss
from clipgraft.training.checkpoints import sum_of_clip, sums_of_images
from clipgraft.training.freezing import add_lora, freeze_layers, merge_lora
from clipgraft.training.grad_cache import Batch, concatenated
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.step import seed_step
from clipgraft.training.trainer import FitResult, Resume, fit, grouped
from clipgraft.training.validation import ValidationPlan

COMPILED_LENGTHS = 8
"""Where towers are compiled, captions are padded to a multiple of it: ten lengths in all."""


def finetune(recipe: Recipe, folder: Path, *, resume: bool | Resume = False) -> dict[str, Any]:
    """Fine-tune `recipe.clip` on the train split of `recipe.data`.

    In several processes (started by `accelerate launch`) the first one measures and writes.

    Args:
        recipe: Its seed, device, data, clip and finetune settings are read.
        folder: Gets `clip/`, `log.jsonl`, `evaluations.jsonl`, `metrics.json`, `data.json`, `loss.png`,
            `loss.svg` and `checkpoints/`.
        resume: Go on from the newest checkpoint there, or as a `Resume` says.

    Returns:
        The metrics that were written; empty in the other processes.

    Raises:
        ValueError: If settings contradict each other or the data.
    """
    settings, device = recipe.finetune, choose_device(recipe.device)
    processes = PartialState(cpu=device.type == "cpu")
    device = processes.device if processes.num_processes > 1 else device
    dataset = load_dataset(recipe.data.source, include_unsplit=recipe.data.include_unsplit)
    clip = load_clip(recipe.clip.name, revision=recipe.clip.revision or None)
    clip.model.to(device)
    splits = _splits(dataset, recipe)
    data = {
        **sums_of_images({"train": splits["train"], "val": splits["val"]}),
        "weights of CLIP": sum_of_clip(clip),
    }
    seed_everything(recipe.seed)
    objective = build_objective(clip, settings)
    batches = training_batches(splits["train"], clip, recipe, processes)
    before = None
    if processes.is_main_process:
        counts = check_dataset(dataset, tokenizer=clip.tokenizer, read_images=False)
        write_bytes(folder / "data.json", counts.to_json().encode())
        if note := leakage_note(counts):
            say(note)
        _say_notes(batches, folder, resume)
        before = measure_retrieval(clip, splits["test"], "recall before")
    seed_step(recipe.seed, 0, processes.process_index)  # SigLIP's bias is of the first step's own crops
    set_start(objective.to(device), clip, splits["train"], batches, settings)
    watch = watch_validation(clip, objective, splits["val"], settings) if splits["val"] else None
    samples = _samples(clip, recipe, folder, device) if processes.is_main_process else None
    result = fit(
        objective,
        batches,
        settings,
        output_dir=folder,
        device=device,
        data=data,
        seed=recipe.seed,
        resume=resume,
        on_step=samples,
        validation=ValidationPlan(watch.measure, settings.best_metric, settings.patience) if watch else None,
        description="fine-tuning CLIP",
    )
    if not processes.is_main_process:
        return {}
    metrics = {"before": before} | _finish(clip, splits, settings, folder, result)
    write_json(folder / "metrics.json", metrics)
    return metrics


def print_result(metrics: dict[str, Any]) -> None:
    """Print in one line what fine-tuning brought."""
    before, after = metrics["before"], metrics["after"]
    if before is None:
        print_line("recall was not measured: the source has no test split")
        return
    directions = ("text_to_image", "image_to_text")
    figures = (
        f"{name.replace('_', ' ')} {before[key]:.1%} -> {after[key]:.1%}"
        for name, key in ((name, f"{name}_recall@1") for name in directions)
    )
    gallery = f"{after['num_images']} test images, {after['num_captions']} captions"
    print_line(f"recall@1 among {gallery}: {', '.join(figures)}")


def _say_notes(batches: CaptionedBatches, folder: Path, resume: bool | Resume) -> None:
    """Say what is not as one may think it is."""
    is_from_newest = resume is True or (isinstance(resume, Resume) and resume.step is None)
    if is_from_newest and not any((folder / "checkpoints").glob("step-*")):
        say(f"no checkpoint in {folder} to go on from; training begins anew")
    num_truncated = batches.dataset.num_truncated
    if num_truncated:
        say(
            f"{num_truncated} training captions are longer than {CONTEXT_LENGTH} tokens; the words beyond "
            "them are not read"
        )


def set_start(
    objective: ContrastiveObjective,
    clip: ClipParts,
    images: tuple[CaptionedImage, ...],
    batches: CaptionedBatches,
    settings: FinetuneSettings,
) -> None:
    """Set what training starts from: a frozen vision tower's embeds, SigLIP's bias.

    Args:
        objective: From `build_objective`, on its device.
        clip: What it trains.
        images: The train split, each encoded where the vision tower is frozen.
        batches: Of them; the first loss's are read for the bias.
        settings: Of the fine-tuning.
    """
    device = clip.model.device
    if settings.frozen_vision_layers == -1:
        clip.model.eval()
        objective.image_table = embed_images(clip, images).to(device)
    if settings.loss == "sigmoid":
        first = next(grouped(batches.epoch(0, 0), passes_in_a_loss(settings)))
        start_bias(objective, send_to_device(first, device))


def passes_in_a_loss(settings: FinetuneSettings) -> int:
    """Return the forward passes that one contrastive loss is taken over."""
    return settings.gradient_accumulation_steps if settings.accumulation == "joint" else 1


def start_bias(objective: ContrastiveObjective, batches: Sequence[Batch]) -> None:
    """Start SigLIP's bias from the passes of the first loss, in all processes together.

    Args:
        objective: Its `logit_bias` is set, to the same value in each process.
        batches: This process's share, on the objective's device.
    """
    with torch.no_grad():
        embeds = concatenated([objective.embed(batch) for batch in batches])
        objective.start_bias(gather(embeds))


def watch_validation(
    clip: ClipParts,
    objective: ContrastiveObjective,
    images: tuple[CaptionedImage, ...],
    settings: FinetuneSettings,
) -> ClipWatch:
    """Return what measures the validation split: its loss is over as much as one of the training's is."""
    return ClipWatch(
        clip,
        objective,
        images,
        settings.batch_size,
        num_passes=passes_in_a_loss(settings),
        captions_per_image=settings.captions_per_image,
        length_multiple=_length_multiple(settings),
    )


def _splits(dataset: CaptionDataset, recipe: Recipe) -> dict[str, tuple[CaptionedImage, ...]]:
    """Images to train on, to watch by and to measure on; refuses those that nothing can be learned from."""
    data = recipe.data
    splits = {
        "train": dataset.train[: data.max_train_images or None],
        "val": dataset.val[: data.max_val_images or None],
        "test": dataset.test[: data.max_test_images or None],
    }
    check_settings(recipe.finetune, num_train=len(splits["train"]), has_val=bool(splits["val"]))
    captions = {caption for image in splits["train"] for caption in image.captions}
    if len(captions) == 1:
        raise UserError(f"every training caption is {captions.pop()!r}; captions have to tell images apart")
    return splits


def _samples(clip: ClipParts, recipe: Recipe, folder: Path, device: torch.device) -> Samples | None:
    settings = recipe.finetune
    if not settings.preview_steps:
        return None
    graft, out = Path(settings.preview_graft), folder / "previews"
    return Samples(clip, graft, recipe.generate, out, settings.preview_steps, device)


def _finish(
    clip: ClipParts,
    splits: dict[str, tuple[CaptionedImage, ...]],
    settings: FinetuneSettings,
    folder: Path,
    result: FitResult,
) -> dict[str, Any]:
    """Write the model and the loss figure; measure what came out."""
    if settings.lora_rank:
        merge_lora(clip.model)
    save_clip(clip, folder / "clip")
    plot_loss(folder / "log.jsonl", folder)
    return {
        "after": measure_retrieval(clip, splits["test"], "recall after"),
        "num_steps": result.num_steps,
        "skipped_steps": result.skipped_steps,
        "mixed_precision": result.mixed_precision,
        "num_epochs": settings.num_epochs,
        "num_train_images": len(splits["train"]),
        "epoch_mean_loss": result.epoch_mean_loss,
        "seconds": result.seconds,
    }


def training_batches(
    images: tuple[CaptionedImage, ...], clip: ClipParts, recipe: Recipe, processes: PartialState
) -> CaptionedBatches:
    """Return this process's share of the training batches."""
    settings = recipe.finetune
    crops = None
    if settings.frozen_vision_layers != -1:
        with processes.main_process_first():  # the others find them cut
            crops = load_crops(images, clip.image_processor)
    return CaptionedBatches(
        images,
        crops,
        tokenizer=clip.tokenizer,
        processor=clip.image_processor,
        batch_size=settings.batch_size,
        seed=recipe.seed,
        captions_per_image=settings.captions_per_image,
        length_multiple=_length_multiple(settings),
        num_workers=settings.num_workers,
        process_index=processes.process_index,
        num_processes=processes.num_processes,
    )


def _length_multiple(settings: FinetuneSettings) -> int:
    """To what length captions are padded, as far as it is free: no state up to EOS sees what comes after."""
    if settings.distill_weight:
        return CONTEXT_LENGTH  # what is not in the batch cannot be held, and a U-Net reads padding too
    # Each further length would be compiled anew.
    return COMPILED_LENGTHS if settings.compile else 1


def check_settings(settings: FinetuneSettings, *, num_train: int, has_val: bool) -> None:
    """Refuse settings that contradict each other or the data.

    Args:
        settings: Of the fine-tuning.
        num_train: Images to train on.
        has_val: Whether there is a validation split.

    Raises:
        ValueError: Names the settings and what to do.
    """
    passes = passes_in_a_loss(settings)
    if settings.batch_size == passes == 1:
        raise UserError("a batch of one image has no wrong answer to learn from; set batch_size to 2 or more")
    if settings.batch_size == 1 and num_train % passes == 1:
        raise UserError(
            f"batch_size=1 and gradient_accumulation_steps={passes} leave one of {num_train} training images "
            "to an epoch's last step, with no wrong answer to learn from; change either"
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


def build_objective(clip: ClipParts, settings: FinetuneSettings) -> ContrastiveObjective:
    """Prepare CLIP as the settings say: what is frozen, what is kept, what is compiled.

    Args:
        clip: Changed in place.
        settings: Of the fine-tuning.

    Raises:
        ValueError: If layers that the model lacks are to be frozen, or nothing is left to train.
    """
    reference = deepcopy(clip.model.text_model).eval() if settings.distill_weight else None
    if settings.lora_rank:
        add_lora(clip.model, settings.lora_rank)
    freeze_layers(clip.model, vision=settings.frozen_vision_layers, text=settings.frozen_text_layers)
    if settings.compile:
        clip.model.vision_model.compile()
        clip.model.text_model.compile()
    return ContrastiveObjective(
        clip.model,
        loss=settings.loss,
        duplicate_images=settings.duplicate_images,
        reference_text_model=reference,
        distill_weight=settings.distill_weight,
        crop_scale=settings.crop_scale,
    )
