"""Training steps of CLIP ViT-B/32's shape (random weights), side by side with other trainers.

    python benchmarks/bench_training.py [--repeats 5] [--open-clip PYTHON] [--tiny]

On flatland's pictures at a photograph's size, as JPEG. Variants take turns; medians and ratios are printed
and written to benchmarks/results/training.json. `--open-clip` names the Python of an environment with
open_clip_torch, webdataset and pandas. `--tiny` tries everything on a small model and writes nothing.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from clipgraft.cached_arrays import CachedArrays
from clipgraft.data.crop_reader import KeptCrops, NoCrops
from clipgraft.data.dataset import CaptionedImage, CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.data.loader import CaptionedBatches, EpochSampler
from clipgraft.data.transforms import cut_crops
from clipgraft.device import choose_mixed_precision, describe_environment, quiet_libraries
from clipgraft.models.attention import ATTENTION, attend
from clipgraft.models.clip import ClipParts, encode_images
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.settings import OptimConfig
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.step import TrainStep
from rival_training import LEARNING_RATE, PlainLoop, open_clip_seconds, trainer_run, why_no_open_clip

RESULT = Path(__file__).parent / "results" / "training.json"
NUM_IMAGES, BATCH_SIZE = 256, 32
GROWTH = (500, 2000, 8000)
"""Numbers of images at which step and cache are measured."""
STEPS_A_TURN = 2
PHOTOGRAPH = (500, 375)
"""Flickr8k's most frequent size."""
Step = Callable[[], float]
"""Makes one optimizer step; gives its loss."""


def photographs(folder: Path, number: int, source: str = "") -> list[CaptionedImage]:
    """Flatland's pictures at a photograph's size as JPEG, with five captions each."""
    images = []
    for image in load_dataset(source).images[:number]:
        path = folder / f"{Path(image.image_id).stem}.jpg"
        if not path.is_file():
            with Image.open(image.file) as picture:
                picture.convert("RGB").resize(PHOTOGRAPH, Image.Resampling.BICUBIC).save(path, quality=90)
        images.append(CaptionedImage(path.name, path, image.captions, "train"))
    return images


def build_clip(images: Sequence[CaptionedImage], tiny: bool, device: str = "cpu") -> ClipParts:
    """B/32's shape with random weights, the same in every call on the device."""
    torch.manual_seed(0)
    captions = (caption for image in images[:NUM_IMAGES] for caption in image.captions)
    tokenizer = train_tokenizer(captions, vocab_size=1000)
    config = CLIPConfig()
    if tiny:
        for tower in (config.text_config, config.vision_config):
            tower.num_hidden_layers = 1
    for name in ("bos", "eos", "pad"):
        setattr(config.text_config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    with torch.device(device):
        model = CLIPModel(config)
    return ClipParts(model, tokenizer, CLIPImageProcessorPil())


def our_step(
    images: Sequence[CaptionedImage],
    crops: CachedArrays,
    tiny: bool,
    *,
    mixed_precision: str = "no",
    captions_per_image: int = 1,
    is_vision_frozen: bool = False,
    accumulation: int = 1,
    batch_size: int = BATCH_SIZE,
    device: str = "cpu",
    is_compiled: bool = False,
    num_held: int = 0,
) -> Step:
    """A step of clipgraft's trainer, its data with it, or `num_held` batches in turn that are made before."""
    clip = build_clip(images, tiny, device)
    clip.model.set_attn_implementation(ATTENTION)  # as `load_clip` does
    batches = CaptionedBatches(
        CaptionedImages(images),
        NoCrops() if is_vision_frozen else KeptCrops(images, crops),
        tokenizer=clip.tokenizer,
        processor=clip.image_processor,
        batch_size=batch_size,
        seed=0,
        captions_per_image=captions_per_image,
    )
    if is_compiled:  # as `finetune` does
        clip.model.vision_model.compile()
        clip.model.text_model.compile()
    table = None
    if is_vision_frozen:
        clip.model.vision_model.requires_grad_(False)
        clip.model.visual_projection.requires_grad_(False)
        with torch.no_grad():
            embeds = encode_images(clip.model, torch.zeros(1, 3, 224, 224))
        table = embeds.repeat(len(images), 1)
    objective = ContrastiveObjective(clip.model, image_table=table)
    optim = OptimConfig(learning_rate=LEARNING_RATE, mixed_precision=mixed_precision)
    stepper = TrainStep(objective, optim, device)
    source = epochs(batches)
    if num_held:
        source = cycle(list(islice(source, num_held)))
    return lambda: stepper([next(source) for _ in range(accumulation)], LEARNING_RATE)["loss"]


def epochs(batches: CaptionedBatches) -> Iterator[dict[str, Any]]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch, 0)
        epoch += 1


def seconds_a_step(step: Step, steps: int = STEPS_A_TURN) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begun) / steps


def take_turns(variants: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds a step of each variant; the first turn of each is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, measure in variants.items():
            found = measure()
            if turn:
                seconds[name].append(found)
            print(f"turn {turn} of {repeats}: {name} {found:.2f} s a step", flush=True)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_peak(dtype: torch.dtype) -> float:
    """Operations a second of a product of two 2048 x 2048 matrices, the best of a few."""
    matrix = torch.ones(2048, 2048, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        begun = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begun)
    return 2 * 2048**3 / best


def measure_attention(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of attention and its gradients in bfloat16: torch's own, and ours, in turns."""
    rows = {}
    for name, (heads, length) in {"12 heads, 50 patches": (12, 50), "8 heads, 77 tokens": (8, 77)}.items():
        query, key, value = (
            torch.randn(BATCH_SIZE, length, heads, 64, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
            for _ in range(3)
        )
        ways = {"torch": functional.scaled_dot_product_attention, "ours": attend}

        def measure(way: Callable[..., Tensor], inputs: Sequence[Tensor]) -> float:
            begun = time.perf_counter()
            way(*inputs).sum().backward()
            return time.perf_counter() - begun

        inputs = (query, key, value)
        variants = {way: partial(measure, function, inputs) for way, function in ways.items()}
        rows[name] = {way: 1000 * seconds for way, seconds in take_turns(variants, 4 * repeats).items()}
    return rows


def operations(step: Step) -> int:
    """Floating-point operations of a step, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure_growth(folder: Path, tiny: bool, precision: str) -> list[dict[str, float]]:
    """Seconds to cut a thousand crops, and seconds a step, at growing numbers of images."""
    rows = []
    for number in (size // 10 if tiny else size for size in GROWTH):
        images = photographs(folder, number)
        processor = CLIPImageProcessorPil()
        begun = time.perf_counter()
        crops = cut_crops([image.file for image in images], processor, folder / f"crops{number}")
        cut = time.perf_counter() - begun
        begun = time.perf_counter()
        cut_crops([image.file for image in images], processor, folder / f"crops{number}")
        found_again = time.perf_counter() - begun
        step = our_step(images, crops, tiny, mixed_precision=precision)
        step()
        rows.append(
            {
                "num_images": number,
                "cut_seconds_per_1000_images": 1000 * cut / number,
                "verify_seconds_per_1000_images": 1000 * found_again / number,
                "seconds_a_step": statistics.median(seconds_a_step(step, 1) for _ in range(5)),
            }
        )
        print(rows[-1], flush=True)
    return rows


def loss_differences(images: Sequence[CaptionedImage], crops: CachedArrays, tiny: bool) -> dict[str, float]:
    """Largest difference of the losses of three float32 steps on the same images in the same order."""
    order = [
        image
        for share in EpochSampler(CaptionedImages(images), BATCH_SIZE, seed=0)
        for _, image in share.images
    ]
    step = our_step(images, crops, tiny)
    ours = [step() for _ in range(3)]
    plain = PlainLoop(order, build_clip(images, tiny), BATCH_SIZE)
    others = {
        "plain loop": [plain.step() for _ in ours],
        "Trainer": trainer_run(order, build_clip(images, tiny), BATCH_SIZE, len(ours) - 1, bf16=False)[1],
    }
    return {
        name: max(abs(a - b) for a, b in zip(ours, losses, strict=True)) for name, losses in others.items()
    }


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Measure everything, print it, write it."""
    five, tiny = photographs(folder, NUM_IMAGES), options.tiny
    images = [replace(image, captions=image.captions[:1]) for image in five]
    crops = cut_crops([image.file for image in images], CLIPImageProcessorPil(), folder / "crops")
    precision = choose_mixed_precision("auto", torch.device("cpu"))
    is_bf16 = precision == "bf16"
    steps = {
        "ours": our_step(images, crops, tiny, mixed_precision=precision),
        "ours, float32": our_step(images, crops, tiny),
        "ours, five captions": our_step(five, crops, tiny, mixed_precision=precision, captions_per_image=5),
        "ours, frozen vision tower": our_step(
            images, crops, tiny, mixed_precision=precision, is_vision_frozen=True
        ),
        "plain loop, float32": PlainLoop(images, build_clip(images, tiny), BATCH_SIZE).step,
    }
    variants: dict[str, Callable[[], float]] = {
        name: lambda step=step: seconds_a_step(step) for name, step in steps.items()
    }
    variants["Trainer"] = lambda: trainer_run(
        images, build_clip(images, tiny), BATCH_SIZE, STEPS_A_TURN, bf16=is_bf16
    )[0]
    why_not = "open_clip has no tiny model" if tiny else why_no_open_clip(options.open_clip)
    if why_not:
        print(f"open_clip left out: {why_not}")
    else:
        some = images[: BATCH_SIZE * (STEPS_A_TURN + 1)]
        variants["open_clip"] = lambda: statistics.median(
            open_clip_seconds(options.open_clip, some, BATCH_SIZE, folder, bf16=is_bf16)
        )
    medians = take_turns(variants, options.repeats)
    own = medians["ours"]
    peak = matmul_peak(torch.bfloat16 if is_bf16 else torch.float32)
    others = {f"{name} / ours": medians[name] / own for name in medians if not name.startswith("ours")}
    result = {
        "batch_size": BATCH_SIZE,
        "mixed_precision": precision,
        "median_seconds_a_step": medians,
        "pairs_a_second": BATCH_SIZE / own,
        "ratios": others
        | {
            "pairs a second of five captions / of one": 5 * own / medians["ours, five captions"],
            "whole / frozen vision tower": own / medians["ours, frozen vision tower"],
        },
        "matmul_peak_flops": peak,
        "share_of_peak": operations(steps["ours"]) / own / peak,
        "largest_loss_difference": loss_differences(images, crops, tiny),
        "attention_milliseconds": measure_attention(options.repeats),
        "growth": measure_growth(folder, tiny, precision),
        "open_clip": why_not or "its own training program, ViT-B-32, in another environment's torch",
        "environment": describe_environment(torch.device("cpu"))
        | {"command": "python benchmarks/bench_training.py --open-clip PYTHON"},
    }
    print(json.dumps(result, indent=2))
    if not tiny:
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--open-clip", default="", metavar="PYTHON")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options)


if __name__ == "__main__":
    main()
