"""What the parts of the recipe flickr8k_sd15 cost here, at its models' exact shapes with random weights.

    python benchmarks/bench_flickr8k_sd15.py [--repeats 5]

Each part is timed by itself, the parts taking turns; medians, the work in them as torch counts it, and what
the whole recipe makes of both are printed and written to benchmarks/results/flickr8k_sd15.json.
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

from clipgraft.models import sd15
from clipgraft.presets import flickr8k_sd15
from clipgraft.runtime import choose_device, describe_environment, inference_dtype

RESULT = Path(__file__).parent / "results" / "flickr8k_sd15.json"
NUM_TRAIN_IMAGES, NUM_OTHER_IMAGES, CAPTIONS_PER_IMAGE = 6000, 1000, 5
"""Flickr8k's split; validation and test are of one size."""
CAPTION_TOKENS = 32
"""Of the longest caption of a batch; Flickr8k's captions have 11 words in the median, 38 at most."""
BATCH_SIZE = 32
NUM_PICTURES = 6
"""Two prompts with the base's own text encoder, and with CLIP before and after."""


def build(builder: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    """A model with small random weights, without its own slow initialisation."""
    with torch.device("meta"):
        model = builder()
    model = model.to(dtype).to_empty(device="cpu").eval()
    for tensor in model.parameters():
        nn.init.normal_(tensor, std=0.02)
    for buffer in model.buffers():
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return model


def parts(dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], float]]:
    """By name what is timed once, and how often the whole recipe does it."""
    recipe = flickr8k_sd15()
    clip = build(lambda: CLIPModel(CLIPConfig()), torch.float32)
    teacher = build(lambda: CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)), torch.float32)
    unet = build(lambda: UNet2DConditionModel.from_config(sd15.UNET_CONFIG), dtype)
    vae = build(lambda: AutoencoderKL.from_config(sd15.VAE_CONFIG), dtype)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=1e-5)
    pixels = torch.randn(BATCH_SIZE, 3, 224, 224)
    words = torch.randint(0, 49000, (BATCH_SIZE, CAPTION_TOKENS))
    prompts = torch.randint(0, 49000, (BATCH_SIZE, 77))
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

    @torch.no_grad()
    def denoise() -> None:
        unet(latents, 500, states)

    @torch.no_grad()
    def decode() -> None:
        vae.decode(latents[:1])

    steps = recipe.finetune.num_epochs * -(-NUM_TRAIN_IMAGES // BATCH_SIZE)
    fitted = NUM_TRAIN_IMAGES * CAPTIONS_PER_IMAGE * (1 + recipe.bridge.num_epochs)
    measured = 2 * NUM_OTHER_IMAGES * CAPTIONS_PER_IMAGE
    return {
        "a fine-tuning step of 32 images": (finetune, steps),
        "32 captions through CLIP's text tower and the teacher": (encode, 2 * (fitted + measured) / 32),
        "a denoising step of a 512 px picture, with guidance": (
            denoise,
            NUM_PICTURES * recipe.generate.num_inference_steps,
        ),
        "decoding a 512 px picture": (decode, NUM_PICTURES),
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
    device = choose_device("cpu")
    dtype = inference_dtype(device)
    timed = parts(dtype)
    work = {name: count_tflop(run) for name, (run, _) in timed.items()}  # and a first, untimed call
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, (run, _) in timed.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    rows = [
        {
            "part": name,
            "seconds": statistics.median(seconds[name]),
            "tflop": work[name],
            "times": count,
            "hours_in_all": statistics.median(seconds[name]) * count / 3600,
            "tflop_in_all": work[name] * count,
        }
        for name, (_, count) in timed.items()
    ]
    for row in rows:
        print(
            f"{row['part']}: {row['seconds']:.2f} s, {row['tflop']:.2f} TFLOP; {row['times']:.0f} times: "
            f"{row['hours_in_all']:.2f} h, {row['tflop_in_all']:.0f} TFLOP"
        )
    RESULT.parent.mkdir(exist_ok=True)
    result = {"environment": describe_environment(device), "dtype": str(dtype), "parts": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
