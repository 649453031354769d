"""What the parts of the recipe flickr8k_sd15 cost, at its models' exact shapes with random weights.

    python benchmarks/bench_flickr8k_sd15.py [--repeats 5]

The work of each part is counted by torch, then each is timed by itself, the parts taking turns; medians, and
what the whole recipe makes of both, are printed and written to benchmarks/results/flickr8k_sd15.json. With
`--repeats 0` the work is counted alone, in seconds, without memory for the weights; nothing is written.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from clipgraft.bridging.corpus import MAX_HELD_OUT_CAPTIONS
from clipgraft.config import flickr8k_sd15
from clipgraft.device import choose_device, describe_environment, inference_dtype, quiet_libraries
from clipgraft.models import single_file as sd15
from clipgraft.models.bridge import WORD, Bridge
from clipgraft.models.defaults import STABLE_DIFFUSION

RESULT = Path(__file__).parent / "results" / "flickr8k_sd15.json"
NUM_TRAIN_IMAGES, NUM_OTHER_IMAGES, CAPTIONS_PER_IMAGE = 6000, 1000, 5
"""Flickr8k's split; validation and test are of one size."""
CAPTION_TOKENS = 32
"""Of the longest caption of a batch; Flickr8k's captions have 11 words in the median, 38 at most."""
KEPT_POSITIONS = 22
"""Of a caption, for the bridge: BOS, Flickr8k's 12 tokens in the mean, EOS, and eight of the padding."""
BATCH_SIZE = 32
NUM_COLUMNS = 4
"""The base's own text encoder, CLIP before and after, the refined graft."""


def build(builder: Callable[[], nn.Module], dtype: torch.dtype, device: str) -> Any:
    """A model with small random weights, without its own slow initialisation."""
    with torch.device("meta"):
        model = builder()
    model = model.to(dtype).to_empty(device=device).eval()
    for tensor in model.parameters():
        nn.init.normal_(tensor, std=0.02)
    for buffer in model.buffers():
        buffer.copy_(torch.arange(buffer.shape[-1], device=device).expand_as(buffer))
    return model


def parts(dtype: torch.dtype, device: str) -> dict[str, tuple[Callable[[], object], float]]:
    """By name what is done once, and how often the whole recipe does it."""
    recipe = flickr8k_sd15()
    clip = build(lambda: CLIPModel(CLIPConfig()), torch.float32, device)
    teacher = build(lambda: CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)), torch.float32, device)
    unet = build(lambda: UNet2DConditionModel.from_config(sd15.UNET_CONFIG), dtype, device).requires_grad_(
        False
    )
    vae = build(lambda: AutoencoderKL.from_config(sd15.VAE_CONFIG), dtype, device)
    settings = recipe.bridge
    shape = CLIPConfig().text_config.hidden_size, sd15.TEXT_CONFIG["hidden_size"], settings.hidden_size
    bridge = build(
        lambda: Bridge(
            *shape, num_maps=3, num_positions=77, num_attention_blocks=settings.num_attention_blocks
        ),
        torch.float32,
        "cpu",  # small; its attention refuses the device meta
    )
    bridge.linear.requires_grad_(False)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5)
    student = torch.randn(settings.batch_size, KEPT_POSITIONS, shape[0])
    classes = torch.full((settings.batch_size, KEPT_POSITIONS), WORD)
    with torch.device(device):
        pixels = torch.randn(BATCH_SIZE, 3, 224, 224)
        words = torch.randint(0, 49000, (BATCH_SIZE, CAPTION_TOKENS))
        prompts = torch.randint(0, 49000, (BATCH_SIZE, 77))
        picture = torch.randn(1, 3, 512, 512, dtype=dtype)
        latents, states = torch.randn(2, 4, 64, 64, dtype=dtype), torch.randn(2, 77, 768, dtype=dtype)

    def finetune() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            clip(input_ids=words, pixel_values=pixels, return_loss=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def encode() -> None:
        clip.text_model(prompts)
        teacher(prompts)

    def fit_bridge() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            bridge(student, classes).float().square().mean().backward()

    @torch.no_grad()
    def denoise() -> None:
        unet(latents, 500, states)

    def refine() -> None:
        with torch.no_grad():
            unet(latents[:1], 500, states[:1])
        unet(latents[:1], 500, states[:1].detach().requires_grad_()).sample.sum().backward()

    @torch.no_grad()
    def encode_picture() -> None:
        vae.encode(picture)

    @torch.no_grad()
    def decode() -> None:
        vae.decode(latents[:1])

    steps = recipe.finetune.num_epochs * -(-NUM_TRAIN_IMAGES // BATCH_SIZE)
    captions = NUM_TRAIN_IMAGES * CAPTIONS_PER_IMAGE
    measured = 2 * min(NUM_OTHER_IMAGES * CAPTIONS_PER_IMAGE, MAX_HELD_OUT_CAPTIONS)
    bridge_steps = recipe.bridge.num_epochs * (captions // recipe.bridge.batch_size)
    drawn, measured_prompts = NUM_COLUMNS * len(recipe.generate.prompts), recipe.evaluate.num_prompts
    # A column more is the untrained bridge's; the empty prompt's is drawn without guidance, at half the cost.
    own_steps = STABLE_DIFFUSION.num_inference_steps
    guided = drawn * (recipe.generate.num_inference_steps or own_steps)
    guided += (NUM_COLUMNS + 1.5) * measured_prompts * (recipe.evaluate.num_inference_steps or own_steps)
    return {
        "a fine-tuning step of 32 images": (finetune, steps),
        "32 captions through CLIP's text tower and the teacher": (encode, 2 * (captions + measured) / 32),
        "a step of the bridge on 128 captions": (fit_bridge, 2 * bridge_steps),
        "encoding a 512 px picture": (encode_picture, NUM_TRAIN_IMAGES),
        "refining on one picture, without gradient checkpointing": (
            refine,
            NUM_TRAIN_IMAGES * recipe.refine.num_epochs,
        ),
        "a denoising step of a 512 px picture, with guidance": (denoise, guided),
        "decoding a 512 px picture": (decode, drawn + (NUM_COLUMNS + 2) * measured_prompts),
    }


def count_tflop(run: Callable[[], object]) -> float:
    """Work of one call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def main() -> None:
    """Time, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--repeats", type=int, default=5)
    repeats = arguments.parse_args().repeats
    quiet_libraries()
    dtype = inference_dtype(choose_device("cpu"))
    rows = [
        {"part": name, "tflop": count_tflop(run), "times": times}
        for name, (run, times) in parts(dtype, "meta").items()
    ]
    for row, seconds in zip(rows, time_parts(dtype, repeats), strict=True):
        row |= {"seconds": seconds, "hours_in_all": seconds and seconds * row["times"] / 3600}
        row["tflop_in_all"] = row["tflop"] * row["times"]
        timed = f", {seconds:.2f} s, {row['hours_in_all']:.2f} h in all" if seconds else ""
        print(
            f"{row['part']}: {row['tflop']:.3f} TFLOP, {row['times']:.0f} times, "
            f"{row['tflop_in_all']:.0f} TFLOP in all{timed}"
        )
    if repeats:
        environment = describe_environment(choose_device("cpu"))
        RESULT.parent.mkdir(exist_ok=True)
        result = {"environment": environment, "dtype": str(dtype), "parts": rows}
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def time_parts(dtype: torch.dtype, repeats: int) -> list[float | None]:
    """Median seconds of each part on the CPU, None without repeats; the first call of each is not timed."""
    timed = [run for run, _ in parts(dtype, "cpu" if repeats else "meta").values()]
    seconds: list[list[float]] = [[] for _ in timed]
    for _ in range(repeats + 1 if repeats else 0):
        for run, times in zip(timed, seconds, strict=True):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    return [statistics.median(times[1:]) if times else None for times in seconds]


if __name__ == "__main__":
    main()
