"""Images of Stable Diffusion v1.5's shape (random weights) on a GPU, beside stock diffusers."""

import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import clipgraft
from bench_generation import PROMPTS, SD15, unet_flops
from clipgraft.generation.generator import load_base
from clipgraft.generation.pipeline import build_pipeline
from clipgraft.generation.requests import image_requests
from clipgraft.sampling_params import InferenceConfig, SamplingParams
from gpu_turns import Scale, Turn, matmul_peak, take_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny
from real_size import write_sd15_checkpoint

NUM_STEPS = 25


class StepClock:
    """Seconds a denoising step of each image or batch, between its first and its last step."""

    def __init__(self, scale: Scale) -> None:
        self.scale, self.num_steps = scale, 3 if scale.is_rehearsal else NUM_STEPS
        self.begun, self.seconds = 0.0, list[float]()
        self.statuses: set[str] = set()

    def tick(self, step: int) -> None:
        """Take the time after a step (1-based)."""
        if step in (1, self.num_steps):
            self.scale.synchronize()
            now = time.perf_counter()
            if step == self.num_steps:
                self.seconds.append((now - self.begun) / (self.num_steps - 1))
            self.begun = now


def measure_generation(batch_size: int, is_compiled: bool, scale: Scale) -> dict[str, Any]:
    """Iterations and images a second, and memory, of stock diffusers and ours, eager or compiled."""
    if scale.is_rehearsal:
        batch_size = min(2, batch_size)
    folder = write_base(scale)
    prompts = (list(PROMPTS) * 2)[:batch_size]
    kind = "compiled" if is_compiled else "eager"
    clocks = {f"stock {kind}": StepClock(scale), f"ours {kind}": StepClock(scale)}
    makers = {
        name: partial(make, folder, prompts, is_compiled, clock)
        for make, (name, clock) in zip((stock_turn, our_turn), clocks.items(), strict=True)
    }
    results = take_turns(makers, scale)
    peak = matmul_peak(scale.half, scale)
    flops = 2 * batch_size * unet_flops()
    for name, result in results.items():
        if "seconds" in result:
            step = statistics.median(clocks[name].seconds[-len(result["turns"]) :])
            result["statuses"] = sorted(clocks[name].statuses)
            result["images_a_second"] = batch_size / result["seconds"]
            result["iterations_a_second"] = 1 / step
            result["share_of_peak"] = None if scale.is_rehearsal else flops / step / peak
    return {
        "batch_size": batch_size,
        "num_inference_steps": clocks[f"ours {kind}"].num_steps,
        "dtype": str(scale.half).removeprefix("torch."),
        "flops_a_guided_step": flops,
        "matmul_peak_flops": peak,
        "contenders": results,
    }


def write_base(scale: Scale) -> Path:
    """Folder of a base, written once on this machine."""
    folder = SD15.with_name("rehearsal-base") if scale.is_rehearsal else SD15
    if not (folder / "model_index.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if scale.is_rehearsal:
            tiny.write_base(folder)
        else:
            write_sd15_checkpoint(folder, torch.bfloat16)
    return folder


def stock_turn(folder: Path, prompts: Sequence[str], is_compiled: bool, clock: StepClock) -> Turn:
    """Diffusers' own pipeline in half precision, as its guide to speed has it."""
    half = clock.scale.half
    base = load_base([], str(folder), half, with_teacher=True)
    pipeline = build_pipeline(base, base.text_encoder).to(clock.scale.device)  # type: ignore[arg-type]
    if is_compiled:
        mode = "default" if clock.scale.is_rehearsal else "reduce-overhead"
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.unet = torch.compile(pipeline.unet, mode=mode)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode=mode)

    def tick(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        clock.tick(step + 1)
        return tensors

    def turn() -> None:
        pipeline(
            list(prompts),
            num_inference_steps=clock.num_steps,
            generator=torch.Generator("cpu").manual_seed(0),
            callback_on_step_end=tick,
        )

    return turn


def our_turn(folder: Path, prompts: Sequence[str], is_compiled: bool, clock: StepClock) -> Turn:
    """What `clipgraft generate` does, but for the files."""
    inference = InferenceConfig(engine="torch", compile=is_compiled)
    generator = clipgraft.load(folder, device=clock.scale.device, inference=inference)
    requests = image_requests(prompts, SamplingParams(num_inference_steps=clock.num_steps))

    def turn() -> None:
        size = len(requests)
        images = generator.sample(requests, batch_size=size, on_step=lambda done, _: clock.tick(done // size))
        clock.statuses |= {image.status for image in images}

    return turn
