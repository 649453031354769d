"""The recipe flickr8k_sd15 from its first step to its report, at exact shapes with random weights.

    python benchmarks/run_flickr8k_sd15.py [--photographs ../shared/flickr8k] [--out FOLDER]

Stages, resolution and the batch size of refining are the recipe's own, and so are memory and disk; images,
epochs, prompts and denoising steps are few, so its hours are not. Fine-tuning runs once more by itself on a
whole batch of the recipe. Prints time, peak memory and disk of each stage, and writes
benchmarks/results/flickr8k_sd15_run.json. It takes a quarter of an hour of two cores and 10 GB of disk; a
second call with the same folder goes on.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from clipgraft.device import choose_device, cpu_gains_from_bf16, describe_environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_size

RESULT = Path(__file__).parent / "results" / "flickr8k_sd15_run.json"
PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "flickr8k"
BATCH = "finetune_32"
"""Fine-tuning on a whole batch."""
SHORT_FINETUNE = {"finetune.mixed_precision": "auto", "finetune.num_epochs": 1}
SHORT_RUN = SHORT_FINETUNE | {
    "data.max_train_images": 8,
    "data.max_val_images": 2,
    "data.max_test_images": 1,
    "finetune.batch_size": 8,
    "bridge.num_epochs": 1,
    # One size for all images, so that they are one batch.
    "refine.crop": "center",
    # CLIP's random weights see no words in photographs, so that none would be found.
    "distill.new_words": '["dog"]',
    "distill.num_epochs": 1,
    "distill.max_captions": 64,
    "generate.prompts": '["A dog running on the beach at sunset"]',
    "generate.num_inference_steps": 1,
    "evaluate.num_inference_steps": 1,
    "evaluate.num_prompts": 2,
}
"""What differs from the recipe."""


def run_command(folder: Path, out: str, command: Sequence[object], settings: Mapping[str, object]) -> str:
    """Run a command, or go on with it; return it with paths from the folder on."""
    words = [*command, "--out", folder / out, *(["--resume"] if (folder / out).is_dir() else [])]
    words += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    subprocess.run([sys.executable, "-m", "clipgraft", *map(str, words)], check=True)
    return shlex.join(str(word).replace(f"{folder}/", "") for word in words)


def run_recipe(folder: Path, photographs: Path) -> list[str]:
    """Write the models if they are missing, run the recipe on them, return the commands."""
    base, clip = folder / "sd15", folder / "clip"
    if not (base / "model_index.json").is_file():
        real_size.write_sd15_checkpoint(base, torch.bfloat16 if cpu_gains_from_bf16() else torch.float32)
    if not (clip / "model.safetensors").is_file():
        real_size.write_clip_b32(clip)
    data = ("--data", photographs)
    return [
        run_command(folder, BATCH, ["finetune", *data, "--clip", clip], SHORT_FINETUNE),
        run_command(
            folder,
            "run",
            ["run", "flickr8k_sd15", *data],
            {"clip.name": clip, "base.name": base, **SHORT_RUN},
        ),
    ]


def stage_rows(run: Path) -> dict[str, dict[str, float]]:
    """Time, peak memory and bytes on the disk of each stage, and of the whole run."""
    rows = {}
    for path in sorted(run.rglob("resources.json"), key=lambda path: path.stat().st_mtime):
        files = [file for file in path.parent.rglob("*") if file.is_file()]
        rows[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
        rows[path.parent.name]["disk_bytes"] = sum(file.stat().st_size for file in files)
    return rows


def main() -> None:
    """Run, print and write."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--photographs", type=Path, default=PHOTOGRAPHS)
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    with TemporaryDirectory() as temporary:
        folder = (given.out or Path(temporary)).resolve()
        commands = run_recipe(folder, Path(os.path.relpath(given.photographs)))
        environment = describe_environment(choose_device("cpu"))
        rows = stage_rows(folder / BATCH) | stage_rows(folder / "run")
    for name, row in rows.items():
        print(
            f"{name}: {row['seconds']:.0f} s, {row['processor_seconds']:.0f} s of processors, "
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB of memory, {row['disk_bytes'] / 1e9:.2f} GB on the disk"
        )
    result = {"environment": environment, "commands": commands, "stages": rows}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
