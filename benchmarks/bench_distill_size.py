"""Distilling at Stable Diffusion v1.5's and CLIP B/32's exact shapes, with random weights.

    python benchmarks/bench_distill_size.py [--steps 20] [--flickr8k FILE] [--work DIR]

A bridge is fitted in closed form and its graft distilled by the command line, in processes of their own, for
some steps of 32 captions of Flickr8k (FILE: ../shared/flickr8k/Flickr8k.token.txt). Prints and writes to
benchmarks/results/distill_size.json: captions a second (median step, the first left out), peak memory
(VmHWM, which counts the parts of weight files that were read), the hours that all
40,460 captions in two epochs take, and a step's work, counted by torch.

Checkpoints are written once into DIR (runs/bench_distill_size), 3 GB.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

import real_size  # noqa: E402
from clipgraft.device import describe_environment, quiet_libraries  # noqa: E402
from clipgraft.files import read_json, write_json  # noqa: E402
from clipgraft.models import single_file as sd15  # noqa: E402

RESULT = REPOSITORY / "benchmarks" / "results" / "distill_size.json"
FLICKR8K = REPOSITORY.parent / "shared" / "flickr8k" / "Flickr8k.token.txt"
NUM_CAPTIONS, NUM_EPOCHS, BATCH_SIZE = 40_460, 2, 32
"""All of Flickr8k's, as often as distilling sees them, at the default batch size."""
NEW_WORD = "dog"
"""Any frequent word will do: it only says whose states a caption is to have."""
GPU_SHARE = 0.3
"""Of a GPU's peak, which training of small transformers reaches (a guess); the H100's in bfloat16:"""
H100_TFLOPS = 989


def write_models(work: Path) -> tuple[Path, Path]:
    """Write base and CLIP with random weights, unless they are there."""
    base, clip = work / "sd15", work / "clip"
    if not (base / "model_index.json").is_file():
        real_size.write_sd15_checkpoint(base, torch.float16)
    if not (clip / "config.json").is_file():
        real_size.write_clip_b32(clip)
    return base, clip


def run(*arguments: object) -> None:
    """Run the command line in a process of its own."""
    subprocess.run([sys.executable, "-m", "clipgraft", *map(str, arguments)], check=True)


def step_seconds(folder: Path) -> list[float]:
    """Seconds of each step but the first, which also warms up."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["step_seconds"] for row in rows[1:]]


def step_tflop() -> float:
    """Work of a step, by torch's count: target by the graft's tower or the base's, and training."""
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG))
        tower = CLIPTextModel(CLIPConfig().text_config)
        input_ids = torch.zeros(BATCH_SIZE, 77, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            # As many captions to hold as to learn: half a batch each.
            tower(input_ids[: BATCH_SIZE // 2])
            encoder(input_ids[: BATCH_SIZE // 2])
        encoder(input_ids).last_hidden_state.sum().backward()
    return counter.get_total_flops() / 1e12


def measure(work: Path, flickr8k: Path, num_steps: int) -> dict[str, Any]:
    """Fit a bridge; distill for some steps with activations kept and recomputed."""
    base, clip = write_models(work)
    lines = flickr8k.read_text(encoding="utf-8").splitlines()
    texts = [line.partition("\t")[2].strip() for line in lines]
    (work / "captions.txt").write_text("\n".join(texts[: num_steps * BATCH_SIZE * 10 // 9 + 1]) + "\n")
    (work / "words.txt").write_text(NEW_WORD + "\n", encoding="utf-8")
    given = ("--captions", work / "captions.txt", "--overwrite")
    linear = ("--set", "bridge.num_epochs=0", "--set", "bridge.allow_few_captions=true")
    run("bridge", "--clip", clip, "--base", base, *given, *linear, "--out", work / "bridge")
    return {
        name: distilled(work, given, f"distill.gradient_checkpointing={name == 'recomputed'}".lower())
        for name in ("kept", "recomputed")
    }


def distilled(work: Path, given: Sequence[object], setting: str) -> dict[str, Any]:
    """Distill with a setting; return time and memory."""
    run(
        *("distill", "--graft", work / "bridge" / "graft", "--new-words", work / "words.txt", *given),
        *("--set", "distill.num_epochs=1", "--set", setting, "--out", work / "distill"),
    )
    seconds, resources = step_seconds(work / "distill"), read_json(work / "distill" / "resources.json")
    metrics = read_json(work / "distill" / "metrics.json")
    step, tflop = statistics.median(seconds), step_tflop()
    num_steps_in_all = NUM_EPOCHS * -(-NUM_CAPTIONS // BATCH_SIZE)
    return {
        "num_timed_steps": len(seconds),
        "mixed_precision": metrics["mixed_precision"],
        "seconds_a_step": step,
        "captions_a_second": BATCH_SIZE / step,
        "peak_memory_gb": resources["peak_memory_bytes"] / 1e9,
        "hours_here": num_steps_in_all * step / 3600,
        "tflop_a_step": tflop,
        "tflops": tflop / step,
        "minutes_on_an_h100_derived": num_steps_in_all * tflop / (H100_TFLOPS * GPU_SHARE) / 60,
        "empty_prompt": metrics["empty_prompt"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--flickr8k", type=Path, default=FLICKR8K)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_distill_size"))
    options = parser.parse_args()
    quiet_libraries()
    options.work.mkdir(parents=True, exist_ok=True)
    result = measure(options.work, options.flickr8k, options.steps)
    for way, figures in result.items():
        print(f"activations {way}:")
        for name, value in figures.items():
            print(f"    {name}: {value:.3g}" if isinstance(value, float) else f"    {name}: {value}")
    environment = describe_environment(torch.device("cpu"))
    command = "python benchmarks/bench_distill_size.py"
    write_json(RESULT, result | {"environment": environment | {"command": command}})


if __name__ == "__main__":
    main()
