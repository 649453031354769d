"""Real photographs: recall of CLIPs trained on eight hundred of them, and what of each they should see.

    python benchmarks/bench_photographs.py [--photographs ../shared/flickr8k-1000] [--part flatland]

What the base's square and its aspect-ratio buckets lose of each photograph, at Stable Diffusion's sizes. Then
nine epochs of flatland's CLIP and of B/32's shape with random weights; then flatland's with each
`resize_mode`. Recall is that of the test split, with its interval over photographs and what
chance would find. Results are added to benchmarks/results/photographs.json.
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from clipgraft.data.buckets import Bucket, make_buckets, nearest_bucket, num_bucket_batches
from clipgraft.data.dataset import CaptionDataset, CaptionedImage, CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import tokenize
from clipgraft.device import describe_environment
from clipgraft.evaluation.metrics.retrieval import RECALL_AT, retrieval_ranks
from clipgraft.evaluation.metrics.shares import paired_share_interval, share_interval
from clipgraft.finetuning.finetune import finetune
from clipgraft.finetuning.validate import embed_images
from clipgraft.models.attention import ATTENTION
from clipgraft.models.clip import ClipParts, encode_text, load_clip
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.settings import RefineSettings

RESULT = Path(__file__).parent / "results" / "photographs.json"
PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "flickr8k-1000"
SIDE, BUCKET_STEP = 512, 64
NUM_EPOCHS, VOCAB_SIZE, BATCH_SIZE = 9, 2000, 64
MODES, SEEDS = ("shortest", "longest", "squash"), (0,)
FLATLAND = {"learning_rate": 1e-4, "lr_schedule": "cosine", "warmup_steps": 20}
B32 = {"learning_rate": 2e-4, "lr_schedule": "cosine", "warmup_steps": 40}
"""The first gave the validation split a recall@10 of 23 %; the second is a guess, not tried yet."""
Hits = dict[str, torch.Tensor]
"""By direction and k the share of each photograph's queries that are answered, (N,)."""


def lost_shares(data: CaptionDataset) -> dict[str, Any]:
    """Share of a photograph's area that is cropped away, and steps of an epoch."""
    found: dict[str, Any] = {}
    for crop, buckets in (("center", (Bucket(SIDE, SIDE),)), ("buckets", make_buckets(SIDE, BUCKET_STEP))):
        lost, bucket_of = [], []
        for image in data.train.first(len(data.train)):
            with Image.open(image.file) as photograph:
                width, height = ImageOps.exif_transpose(photograph).size
            bucket_of.append(nearest_bucket(height, width, buckets))
            bucket = buckets[bucket_of[-1]]
            ratios = sorted((width / height, bucket.width / bucket.height))
            lost.append(1 - ratios[0] / ratios[1])
        steps = num_bucket_batches(np.array(bucket_of), RefineSettings().batch_size)
        found[crop] = {
            "mean": statistics.mean(lost),
            "most": max(lost),
            "steps": steps,
            "sizes": len(set(bucket_of)),
        }
        print(
            f"{crop}: {found[crop]['mean']:.1%} of a photograph is lost on average, {max(lost):.1%} at most;"
        )
        print(f"  {len(set(bucket_of))} sizes, {steps} steps an epoch")
    return found


def random_b32(data: CaptionDataset) -> ClipParts:
    """CLIP B/32's architecture with random weights, and a tokenizer of the training captions."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(data.train.iter_captions(), vocab_size=VOCAB_SIZE)
    config = CLIPConfig()
    for name in ("bos", "eos", "pad"):
        setattr(config.text_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    model = CLIPModel(config)
    model.set_attn_implementation(ATTENTION)
    return ClipParts(model, tokenizer, CLIPImageProcessorPil())


@torch.no_grad()
def hits(clip: ClipParts, images: Sequence[CaptionedImage]) -> Hits:
    """What is found among photographs and their captions."""
    clip.model.eval()
    captions = [caption for image in images for caption in image.captions]
    image_index = torch.tensor([index for index, image in enumerate(images) for _ in image.captions])
    parts = [captions[start : start + BATCH_SIZE] for start in range(0, len(captions), BATCH_SIZE)]
    texts = torch.cat([encode_text(clip.model, tokenize(part, clip.tokenizer)) for part in parts])
    ranks = retrieval_ranks(texts, embed_images(clip, images), image_index)
    found = {}
    for k in RECALL_AT:
        hit = (ranks["text_to_image"][:, 0] < k).double()
        counts = torch.bincount(image_index)
        found[f"text_to_image_recall@{k}"] = torch.bincount(image_index, hit) / counts
        found[f"image_to_text_recall@{k}"] = (ranks["image_to_text"][:, 0] < k).double()
    return found


def chance(name: str, images: Sequence[CaptionedImage]) -> float:
    """Expected recall of a random order."""
    direction, k = name.split("_recall@")
    if direction == "text_to_image":
        return int(k) / len(images)
    total = sum(len(image.captions) for image in images)
    misses = [math.comb(total - len(image.captions), int(k)) / math.comb(total, int(k)) for image in images]
    return 1 - statistics.mean(misses)


def figures(found: Hits, images: Sequence[CaptionedImage]) -> dict[str, dict[str, Any]]:
    """Recall with its interval, and chance."""
    return {
        name: {
            "recall": values.mean().item(),
            "interval": share_interval(values.numpy()),
            "chance": chance(name, images),
        }
        for name, values in found.items()
    }


def train(clip: ClipParts, data: CaptionDataset, **settings: Any) -> tuple[ClipParts, list[float]]:
    """Nine epochs; the CLIP and each epoch's mean loss. Recall is measured here, once, and not by the run."""
    alone = replace(data, images=CaptionedImages(image for image in data.images if image.split == "train"))
    result = finetune(clip, alone, device="cpu", num_epochs=NUM_EPOCHS, **settings)
    return result.clip, result.epoch_mean_loss


def run(name: str, clip: ClipParts, data: CaptionDataset, settings: dict[str, Any]) -> dict[str, Any]:
    """Recall before and after nine epochs, printed."""
    before = figures(hits(clip, data.test), data.test)
    tuned, losses = train(clip, data, **settings)
    after = figures(hits(tuned, data.test), data.test)
    print(f"{name}: mean loss of epochs {', '.join(f'{loss:.2f}' for loss in losses)}")
    for metric, found in after.items():
        low, high = found["interval"]
        print(
            f"{name}: {metric} {before[metric]['recall']:.1%} -> {found['recall']:.1%} "
            f"({low:.1%} to {high:.1%}), by chance {found['chance']:.1%}"
        )
    return {"settings": settings, "epoch_mean_loss": losses, "before": before, "after": after}


def compare_modes(clip: ClipParts, data: CaptionDataset) -> dict[str, Any]:
    """Recall by `resize_mode`, means over seeds, with paired differences from `shortest`."""
    found: dict[str, Hits] = {}
    for mode in MODES:
        each = [
            hits(train(clip, data, seed=seed, resize_mode=mode, **FLATLAND)[0], data.test) for seed in SEEDS
        ]
        found[mode] = {name: torch.stack([one[name] for one in each]).mean(0) for name in each[0]}
    result: dict[str, Any] = {}
    for mode, own in found.items():
        result[mode] = {}
        for name, values in own.items():
            result[mode][name] = values.mean().item()
            if mode == "shortest":
                continue
            difference = (values - found["shortest"][name]).numpy()
            low, high = interval = paired_share_interval(difference)
            result[mode][f"{name}: difference"] = {"mean": difference.mean().item(), "interval": interval}
            print(f"{mode}: {name} {values.mean():.1%}, {difference.mean():+.1%} ({low:+.1%} to {high:+.1%})")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--part", choices=("buckets", "flatland", "b32", "modes"))
    options = parser.parse_args()
    if not options.photographs.is_dir():
        print(f"left out: no photographs in {options.photographs}")
        return
    data = load_dataset(options.photographs)
    parts = {
        "buckets": lambda: lost_shares(data),
        "flatland": lambda: run("flatland's CLIP", load_clip("flatland"), data, FLATLAND),
        "b32": lambda: run("B/32, random weights", random_b32(data), data, B32),
        "modes": lambda: compare_modes(load_clip("flatland"), data),
    }
    for name in [options.part] if options.part else parts:
        found = parts[name]()
        written = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
        environment = describe_environment(torch.device("cpu"))
        written |= {
            name: found,
            "environment": environment | {"command": "python benchmarks/bench_photographs.py"},
        }
        RESULT.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
