"""Fine-tune CLIP on captioned images, and measure retrieval before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from clipgraft.config import Recipe
from clipgraft.data.check import check_source, to_json
from clipgraft.data.images import open_image
from clipgraft.data.loader import CaptionedBatches
from clipgraft.data.records import CaptionedImage
from clipgraft.data.transforms import clip_pixel_values, tokenize
from clipgraft.evaluation.retrieval import retrieval_metrics
from clipgraft.models.clip import ClipParts, encode_images, encode_text, load_clip, save_clip
from clipgraft.progress import track
from clipgraft.reporting.plots import plot_loss
from clipgraft.runtime import choose_device, choose_mixed_precision, seed_everything, write_json
from clipgraft.stages.data import load_source, select
from clipgraft.stages.fitting import fit_stage
from clipgraft.training.objectives import ContrastiveObjective

ENCODE_BATCH_SIZE = 64


def finetune(recipe: Recipe, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Fine-tune `recipe.clip` on the train split of `recipe.data`.

    Args:
        recipe: Its seed, device, data, clip and finetune settings are read.
        folder: Gets `clip/`, `log.jsonl`, `metrics.json`, `loss.png`, `loss.svg` and `checkpoints/`.
        resume: Go on from the newest checkpoint there.

    Returns:
        The metrics that were written.
    """
    settings, device = recipe.finetune, choose_device(recipe.device)
    mixed_precision = choose_mixed_precision(settings.mixed_precision, device)
    source = load_source(recipe.data)
    clip = load_clip(recipe.clip.name, revision=recipe.clip.revision or None)
    clip.model.to(device)
    train = select(source, "train", recipe.data.max_train_images)
    test = select(source, "test", recipe.data.max_test_images)
    counts = check_source(source, tokenizer=clip.tokenizer, read_images=False)
    (folder / "data.json").write_text(to_json(counts), encoding="utf-8")
    seed_everything(recipe.seed)
    batches = CaptionedBatches(
        train,
        tokenizer=clip.tokenizer,
        processor=clip.image_processor,
        batch_size=settings.batch_size,
        seed=recipe.seed,
        num_workers=settings.num_workers,
    )
    before = measure_retrieval(clip, test, "recall before")
    result = fit_stage(
        "fine-tuning CLIP",
        ContrastiveObjective(clip.model),
        batches,
        settings,
        folder=folder,
        device=device,
        source_fingerprint=source.fingerprint,
        seed=recipe.seed,
        resume=resume,
    )
    save_clip(clip, folder / "clip")
    metrics = {
        "before": before,
        "after": measure_retrieval(clip, test, "recall after"),
        "num_steps": result.num_steps,
        "skipped_steps": result.skipped_steps,
        "num_epochs": settings.num_epochs,
        "num_train_images": len(train),
        "epoch_mean_loss": result.epoch_mean_loss,
        "mixed_precision": mixed_precision,
        "seconds": result.seconds,
    }
    plot_loss(folder / "log.jsonl", folder)
    write_json(folder / "metrics.json", metrics)
    return metrics


@torch.no_grad()
def measure_retrieval(
    clip: ClipParts, images: Sequence[CaptionedImage], description: str
) -> dict[str, Any] | None:
    """Recall at 1, 5 and 10 in both directions over images and all of their captions; None without images."""
    if not images:
        return None
    clip.model.eval()
    device = clip.model.device
    captions = [caption for image in images for caption in image.captions]
    image_index = torch.tensor([i for i, image in enumerate(images) for _ in image.captions])
    image_embeds, text_embeds = [], []
    with track(description, len(images) + len(captions)) as update:
        for start in range(0, len(images), ENCODE_BATCH_SIZE):
            opened = [open_image(image.path) for image in images[start : start + ENCODE_BATCH_SIZE]]
            image_embeds.append(
                encode_images(clip.model, clip_pixel_values(opened, clip.image_processor).to(device))
            )
            update(start + len(opened), "images")
        for start in range(0, len(captions), ENCODE_BATCH_SIZE):
            part = captions[start : start + ENCODE_BATCH_SIZE]
            text_embeds.append(encode_text(clip.model, tokenize(part, clip.tokenizer).input_ids.to(device)))
            update(len(images) + start + len(part), "captions")
    return retrieval_metrics(torch.cat(text_embeds).cpu(), torch.cat(image_embeds).cpu(), image_index)
