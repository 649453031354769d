"""A training step of flatland's U-Net on the CPU: as `clipgraft pretrain` makes it, and with fused attention.

    python benchmarks/bench_pretraining.py [--batch-size 32] [--repeats 7]

diffusers' default is torch's fused attention, whose backward pass in bfloat16 is slow on CPUs. The two take
turns on the same random latents; seconds are the processor's, divided by the number of threads, so that a
busy machine counts little. Writes benchmarks/results/pretraining.json.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor2_0

from clipgraft.console import print_line
from clipgraft.device import choose_mixed_precision, describe_environment, quiet_libraries
from clipgraft.flatland import plain_caption, sample_scene
from clipgraft.models.flatland_config import VOCAB_SIZE
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.pretrain_settings import DenoiserSettings
from clipgraft.pretraining.pretrain import denoising_objective
from clipgraft.training.step import TrainStep

RESULT = Path(__file__).parent / "results" / "pretraining.json"
WAYS = ("clipgraft", "torch's fused attention")


def build_step(way: str, batch: dict[str, torch.Tensor]) -> TrainStep:
    torch.manual_seed(0)
    captions = [plain_caption(sample_scene(0, number, "train")) for number in range(2000)]
    tokenizer = train_tokenizer(captions, vocab_size=VOCAB_SIZE)
    objective = denoising_objective(DenoiserSettings(), tokenizer, torch.device("cpu"))
    if way != WAYS[0]:
        objective.unet.set_attn_processor(AttnProcessor2_0())
        objective.text_encoder.set_attn_implementation("sdpa")
    texts = [captions[number] for number in range(len(batch["latents"]))]
    batch["input_ids"] = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids
    precision = choose_mixed_precision("auto", torch.device("cpu"))
    return TrainStep(objective, DenoiserSettings(mixed_precision=precision), "cpu")


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
        "speed_up": medians[WAYS[1]] / medians[WAYS[0]],
        "first_loss": losses,
        "mixed_precision": choose_mixed_precision("auto", torch.device("cpu")),
        "environment": describe_environment(torch.device("cpu"))
        | {"command": f"python benchmarks/bench_pretraining.py --batch-size {options.batch_size}"},
    }
    for way, median in medians.items():
        print_line(f"{way:24} {median:.2f} s a step, {options.batch_size / median:.1f} images/s")
    print_line(f"speed-up {result['speed_up']:.2f}")
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    quiet_libraries()
    main()
