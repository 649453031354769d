"""Training steps of CLIP B/32's shape on a GPU, beside a plain loop and transformers' Trainer."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import CLIPImageProcessorPil

from bench_training import Step, build_clip, operations, our_step, photographs
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import draw_data
from clipgraft.data.transforms import cut_crops
from clipgraft.device import PRECISION_DTYPES
from gpu_turns import Scale, Turn, matmul_peak, seconds_of, take_turns
from rival_training import PlainLoop, held_items, trainer_run

NUM_HELD = 2


def measure_training(batch_size: int, is_compiled: bool, scale: Scale) -> dict[str, Any]:
    """Samples a second, memory and share of peak: ours beside rivals, or ours compiled beside ours.

    "held" stands for batches that are decoded before: the step alone, without the reading of images.
    """
    if scale.is_rehearsal:
        batch_size //= 16
    with tempfile.TemporaryDirectory() as folder:
        images = draw_images(Path(folder), NUM_HELD * batch_size)
        crops = cut_crops([image.file for image in images], CLIPImageProcessorPil(), Path(folder) / "crops")
        ours = partial(
            our_step, images, crops, scale.is_rehearsal, batch_size=batch_size, device=scale.device
        )
        precisions = ("bf16",) if scale.is_rehearsal else ("fp16", "bf16")
        flops = operations(ours(mixed_precision="bf16", num_held=1))
        num_steps = max(2, min(4, 128 // batch_size))
        makers = our_turns(ours, precisions, num_steps, is_compiled, scale)
        if not is_compiled:
            makers |= rival_turns(images, batch_size, precisions, num_steps, scale)
        results = take_turns(makers, scale)
    peaks = {name: matmul_peak(PRECISION_DTYPES[name], scale) for name in precisions}
    for name, result in results.items():
        add_rates(name, result, batch_size, flops, peaks)
    return {
        "batch_size": batch_size,
        "steps_a_turn": num_steps,
        "flops_a_step": flops,
        "matmul_peak_flops": peaks,
        "contenders": results,
    }


def draw_images(folder: Path, number: int) -> list[CaptionedImage]:
    """Flatland's images at a photograph's size, a caption each."""
    draw_data(folder / "drawn", seed=0, num_images=max(16, number))
    (folder / "photographs").mkdir()
    images = photographs(folder / "photographs", number, str(folder / "drawn"))
    return [replace(image, captions=image.captions[:1]) for image in images]


def our_turns(
    ours: Callable[..., Step], precisions: Sequence[str], num_steps: int, is_compiled: bool, scale: Scale
) -> dict[str, Callable[[], Turn]]:
    makers = {}
    for precision in precisions:
        for is_held in (True, False) if not is_compiled else (True,):
            for compiled in {False, is_compiled}:
                name = f"ours {precision}{', compiled' * compiled}{', held' * is_held}"
                step = partial(
                    ours,
                    mixed_precision=precision,
                    is_compiled=compiled,
                    num_held=NUM_HELD * is_held,
                )
                makers[name] = partial(in_precision, step, precision, num_steps, scale)
    return makers


def in_precision(make: Callable[[], Step], precision: str, num_steps: int, scale: Scale) -> Turn:
    """A turn of our steps; accelerate keeps one half precision for all of a process's Accelerators."""
    turn = steps_of(make, num_steps, scale)

    def with_precision() -> float | None:
        AcceleratorState._reset_state(reset_partial_state=True)
        Accelerator(mixed_precision=precision, cpu=scale.is_rehearsal)
        return turn()

    return with_precision


def steps_of(make: Callable[[], Step], num_steps: int, scale: Scale) -> Turn:
    """A turn of some steps."""
    step = make()

    def some() -> None:
        for _ in range(num_steps):
            step()

    return lambda: seconds_of(some, scale) / num_steps


def rival_turns(
    images: Sequence[CaptionedImage],
    batch_size: int,
    precisions: Sequence[str],
    num_steps: int,
    scale: Scale,
) -> dict[str, Callable[[], Turn]]:
    """A plain loop and the Trainer with items decoded before, and the Trainer with its data."""
    device = scale.device
    clip = partial(build_clip, images, scale.is_rehearsal, device)
    items = held_items(images, clip())

    def plain(bf16: bool) -> Turn:
        def make() -> Step:
            return PlainLoop(images, clip(), batch_size, device=device, bf16=bf16, items=items).step

        return steps_of(make, num_steps, scale)

    def trainer(**settings: Any) -> Turn:
        parts = clip()
        return lambda: trainer_run(images, parts, batch_size, num_steps, device=device, **settings)[0]

    return {
        "plain loop float32, held": partial(plain, bf16=False),
        "plain loop bf16, held": partial(plain, bf16=True),
        **{f"Trainer {name}, held": partial(trainer, **{name: True}, items=items) for name in precisions},
        "Trainer bf16": partial(trainer, bf16=True),
    }


def add_rates(
    name: str, result: dict[str, Any], batch_size: int, flops: int, peaks: dict[str, float]
) -> None:
    """Add samples a second, and our step's operations a second over the peak of the contender's precision."""
    if "seconds" not in result:
        return
    result["samples_a_second"] = batch_size / result["seconds"]
    for precision, peak in peaks.items():
        if precision in name:
            result["share_of_peak"] = flops / result["seconds"] / peak
