"""Training steps of CLIP ViT-B/32's shape (random weights), side by side, on photographs' sizes and formats.

    python benchmarks/bench_training.py [--steps 1] [--repeats 5] [--tiny]

Variants take turns, a few steps each; medians and ratios are printed and written to
benchmarks/results/training.json. `--tiny` tries everything in a minute on a small model and writes nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from clipgraft.config import DataSettings
from clipgraft.data.crops import cut_crops
from clipgraft.data.loader import CaptionedBatches, EpochSampler
from clipgraft.data.records import CaptionedImage
from clipgraft.models.clip import ClipParts, encode_images
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.runtime import choose_mixed_precision, describe_environment
from clipgraft.stages.data import load_source, select
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.optimization import parameter_groups
from clipgraft.training.stepper import Stepper

RESULT = Path(__file__).parent / "results" / "training.json"
NUM_IMAGES, BATCH_SIZE, LEARNING_RATE = 256, 32, 1e-5
PHOTOGRAPH = (500, 375)
"""Flickr8k's most frequent size."""
Step = Callable[[], float]
"""Makes one optimizer step; gives its loss."""


def photographs(folder: Path) -> list[CaptionedImage]:
    """Flatland's pictures at a photograph's size as JPEG, with five captions each."""
    images = []
    for image in select(load_source(DataSettings()), "train", NUM_IMAGES):
        path = folder / f"{Path(image.image_id).stem}.jpg"
        with Image.open(image.path) as picture:
            picture.convert("RGB").resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(path, quality=90)
        images.append(CaptionedImage(path.name, path, image.captions, "train"))
    return images


def build_clip(images: list[CaptionedImage], tiny: bool) -> ClipParts:
    """B/32's shape with random weights, the same in every call."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer((c for image in images for c in image.captions), vocab_size=1000)
    config = CLIPConfig()
    if tiny:
        for tower in (config.text_config, config.vision_config):
            tower.num_hidden_layers = 1
    for name in ("bos", "eos", "pad"):
        setattr(config.text_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return ClipParts(CLIPModel(config), tokenizer, CLIPImageProcessorPil())


class PlainDataset(Dataset):
    """As tutorials have it: each item opened and processed by itself, captions padded to 77."""

    def __init__(self, images: list[CaptionedImage], clip: ClipParts):
        self.images, self.clip = images, clip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.images[index]
        text = self.clip.tokenizer(
            image.captions[0], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        with Image.open(image.path) as picture:
            pixels = self.clip.image_processor(picture.convert("RGB"), return_tensors="pt").pixel_values[0]
        return {"input_ids": text.input_ids[0], "pixel_values": pixels}


def plain_step(images: list[CaptionedImage], tiny: bool) -> Step:
    """The loop of tutorials: float32, AdamW, transformers' own loss."""
    clip = build_clip(images, tiny)
    batches = endless(DataLoader(PlainDataset(images, clip), BATCH_SIZE))
    optimizer = torch.optim.AdamW(clip.model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)

    def step() -> float:
        loss = clip.model(**next(batches), return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def trainer_seconds(
    images: list[CaptionedImage], tiny: bool, steps: int, bf16: bool
) -> tuple[float, list[float]]:
    """Seconds a step of transformers' `Trainer`, without the first, and its losses."""
    clip = build_clip(images, tiny)
    times, losses = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            losses.extend([logs["loss"]] if logs and "loss" in logs else [])

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH_SIZE,
            max_steps=steps + 1,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            bf16=bf16,
            use_cpu=True,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )

        def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
            stacked = {name: torch.stack([item[name] for item in items]) for name in items[0]}
            return {**stacked, "return_loss": True}

        dataset = PlainDataset(images, clip)
        trainer = Trainer(clip.model, arguments, collate, dataset, callbacks=[Clock()])
        trainer._get_train_sampler = lambda *_: None  # the images' own order, as in the other variants
        trainer.train()
    return (times[-1] - times[0]) / steps, losses


def our_step(
    images: list[CaptionedImage],
    tiny: bool,
    cache: Path,
    *,
    mixed_precision: str = "no",
    captions_per_image: int = 1,
    is_vision_frozen: bool = False,
    accumulation: int = 1,
) -> Step:
    """A step of clipgraft's trainer, its data with it."""
    clip = build_clip(images, tiny)
    crops = cut_crops([image.path for image in images], clip.image_processor, cache)
    batches = CaptionedBatches(
        images,
        None if is_vision_frozen else crops,
        tokenizer=clip.tokenizer,
        processor=clip.image_processor,
        batch_size=BATCH_SIZE,
        seed=0,
        captions_per_image=captions_per_image,
    )
    table = None
    if is_vision_frozen:
        clip.model.vision_model.requires_grad_(False)
        clip.model.visual_projection.requires_grad_(False)
        with torch.no_grad():
            table = torch.cat([encode_images(clip.model, torch.zeros(64, 3, 224, 224))] * (NUM_IMAGES // 64))
    objective = ContrastiveObjective(clip.model, image_table=table)
    stepper = Stepper(
        objective,
        parameter_groups(objective, 0.01),
        learning_rate=LEARNING_RATE,
        max_grad_norm=1.0,
        accumulation="joint",
        mixed_precision=mixed_precision,
        ema_decay=0.0,
        device="cpu",
        fingerprint="",
    )
    source = epochs(batches)
    return lambda: stepper.step([next(source) for _ in range(accumulation)], LEARNING_RATE)["loss"]


def epochs(batches: CaptionedBatches) -> Iterator[dict[str, Any]]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch, 0)
        epoch += 1


def endless(loader: DataLoader) -> Iterator[Any]:
    """A loader's batches again and again."""
    while True:
        yield from loader


def take_turns(variants: dict[str, Step], steps: int, repeats: int) -> dict[str, float]:
    """Median seconds a step of each variant; the first turn of each is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, step in variants.items():
            begun = time.perf_counter()
            for _ in range(steps):
                step()
            if turn:
                seconds[name].append((time.perf_counter() - begun) / steps)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_peak(dtype: torch.dtype) -> float:
    """Operations a second of a product of two 2048 x 2048 matrices, the best of a few."""
    matrix = torch.ones(2048, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        begun = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048**3 / best


def operations(step: Step) -> int:
    """Floating-point operations of a step, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def peak_memory(accumulation: int, tiny: bool, folder: Path) -> int:
    """Peak resident bytes of a process that makes one step."""
    words = [sys.executable, __file__, "--memory-of", str(accumulation), "--folder", str(folder)]
    output = subprocess.run(
        [*words, *(["--tiny"] if tiny else [])], check=True, capture_output=True, text=True
    )
    return int(output.stdout.split()[-1])


def peak_of_this_process() -> int:
    """Peak resident bytes since this program began; `getrusage` would count the parent's before that."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--memory-of", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        our_step(
            photographs(options.folder),
            options.tiny,
            options.folder / "crops",
            accumulation=options.memory_of,
        )()
        print(peak_of_this_process())
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Measure everything, print it, write it."""
    five, tiny = photographs(folder), options.tiny
    images = [replace(image, captions=image.captions[:1]) for image in five]
    order = EpochSampler(NUM_IMAGES, BATCH_SIZE, seed=0)
    ordered = [images[where.image_index] for batch in order for where in batch]
    begun = time.perf_counter()
    clip = build_clip(images, tiny=True)
    cut_crops([image.path for image in images], clip.image_processor, folder / "crops")
    cut_seconds = (time.perf_counter() - begun) * 1000 / NUM_IMAGES
    precision = choose_mixed_precision("auto", torch.device("cpu"))
    best = "clipgraft, float32" if precision == "no" else f"clipgraft, {precision}"

    def ours(**settings: Any) -> Step:
        return our_step(images, tiny, folder / "crops", **settings)

    variants = {
        "plain loop, float32": plain_step(ordered, tiny),
        "clipgraft, float32": ours(),
        best: ours(mixed_precision=precision),
        "clipgraft, five captions": our_step(
            five, tiny, folder / "crops", mixed_precision=precision, captions_per_image=5
        ),
        "clipgraft, frozen vision tower": ours(mixed_precision=precision, is_vision_frozen=True),
    }
    medians = take_turns(variants, options.steps, options.repeats)
    trainer, trainer_losses = trainer_seconds(ordered, tiny, max(2, options.steps), precision == "bf16")
    losses = {"Trainer": trainer_losses}
    for name, step in (("plain loop", plain_step(ordered, tiny)), ("clipgraft", ours())):
        losses[name] = [step() for _ in trainer_losses]
    own = medians[best]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peak = matmul_peak(dtype)
    memory = {name: peak_memory(count, tiny, folder) for name, count in (("batch 32", 1), ("16 x 32", 16))}
    result = {
        "batch_size": BATCH_SIZE,
        "median_seconds_a_step": medians,
        "trainer_seconds_a_step": trainer,
        "ratios": {
            "plain loop / ours": medians["plain loop, float32"] / own,
            "Trainer / ours": trainer / own,
            "five steps of one caption / one step of five": 5 * own / medians["clipgraft, five captions"],
            "whole / frozen vision tower": own / medians["clipgraft, frozen vision tower"],
            "memory of 16 x 32 / batch 32": memory["16 x 32"] / memory["batch 32"],
        },
        "matmul_peak_flops": peak,
        "share_of_peak": operations(variants[best]) / own / peak,
        "losses_in_the_same_order": losses,
        "largest_loss_difference": max(
            abs(a - b)
            for name in ("Trainer", "plain loop")
            for a, b in zip(losses["clipgraft"], losses[name], strict=True)
        ),
        "crops_seconds_per_1000_images": cut_seconds,
        "open_clip": open_clip_or_why_not(),
        "environment": describe_environment(torch.device("cpu"))
        | {"command": "python benchmarks/bench_training.py"},
    }
    print(json.dumps(result, indent=2))
    if not tiny:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def open_clip_or_why_not() -> str:
    """Why open_clip's loop is not among the variants."""
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        return f"skipped: {error}"
    return "skipped: installed here, but no variant is written for it"


if __name__ == "__main__":
    main()
