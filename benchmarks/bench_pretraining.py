"""A training step of flatland's U-Net on the CPU, with attention in plain steps and with torch's fused one.

    python benchmarks/bench_pretraining.py [--batch-size 32] [--repeats 7]

diffusers' default is torch's fused attention, whose backward pass in bfloat16 is slow on CPUs: `clipgraft
pretrain` takes plain steps there, and the fused one in float32. The two take turns on the same latents, in
this CPU's precision of "auto"; seconds are the processor's, divided by the number of threads, so that a busy
machine counts little. Writes that precision's part of benchmarks/results/pretraining.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

from clipgraft.console import print_line
from clipgraft.device import choose_mixed_precision, describe_environment, quiet_libraries
from clipgraft.flatland import plain_caption, sample_scene
from clipgraft.models.attention import ATTENTION
from clipgraft.models.flatland_config import VOCAB_SIZE
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.pretrain_settings import DenoiserSettings
from clipgraft.pretraining.pretrain import denoising_objective
from clipgraft.training.step import TrainStep

RESULT = Path(__file__).parent / "results" / "pretraining.json"
PRECISION = choose_mixed_precision("auto", torch.device("cpu"))
WAYS = {
    "plain attention": (AttnProcessor(), ATTENTION),
    "torch's fused attention": (AttnProcessor2_0(), "sdpa"),
}
"""Attention of the U-Net and of the text encoder."""


def build_step(way: str, batch: dict[str, torch.Tensor]) -> TrainStep:
    torch.manual_seed(0)
    captions = [plain_caption(sample_scene(0, number, "train")) for number in range(2000)]
    tokenizer = train_tokenizer(captions, vocab_size=VOCAB_SIZE)
    settings = DenoiserSettings(mixed_precision=PRECISION)
    objective = denoising_objective(settings, tokenizer, torch.device("cpu"))
    of_unet, of_text_encoder = WAYS[way]
    objective.unet.set_attn_processor(of_unet)
    objective.text_encoder.set_attn_implementation(of_text_encoder)
    texts = [captions[number] for number in range(len(batch["latents"]))]
    batch["input_ids"] = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    return TrainStep(objective, settings, "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    batch = {"latents": torch.randn(options.batch_size, 4, 16, 16)}
    steps = {way: build_step(way, batch) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    losses: dict[str, float] = {}
    for turn in range(options.repeats + 1):
        for way, step in steps.items():
            torch.manual_seed(turn)
            begun = time.process_time()
            loss = step([batch], 1e-3)["loss"]
            took = (time.process_time() - begun) / torch.get_num_threads()
            losses.setdefault(way, float(loss))
            if turn:
                seconds[way].append(took)
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    result = {
        "seconds_a_step": medians,
        "images_a_second": {way: options.batch_size / median for way, median in medians.items()},
        "fused / plain": medians["torch's fused attention"] / medians["plain attention"],
        "first_loss": losses,
        "environment": describe_environment(torch.device("cpu"))
        | {"command": f"python benchmarks/bench_pretraining.py --batch-size {options.batch_size}"},
    }
    for way, median in medians.items():
        print_line(f"{way:24} {median:.2f} s a step, {options.batch_size / median:.1f} images/s")
    print_line(f"fused / plain {result['fused / plain']:.2f}")
    kept = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    RESULT.write_text(json.dumps(kept | {PRECISION: result}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    quiet_libraries()
    main()
