"""Processor seconds from the shell to a command's result, with a warm cache.

    python benchmarks/bench_start.py [--other SRC] [--repeats 5]

--help, a check of ten images, flatland's first image, and the import of the libraries alone that it needs.
Commands take turns; with --other the same commands of another source tree (its src folder) between them.
Processor seconds of one thread, user and system, so that a busy machine counts little. Writes
benchmarks/results/start.json.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from clipgraft.device import describe_environment
from clipgraft.flatland import draw_flatland8k

RESULT = Path(__file__).parent / "results" / "start.json"
SOURCE = Path(__file__).parents[1] / "src"
LIBRARIES = (
    "import torch; from diffusers import StableDiffusionPipeline; from transformers import CLIPTextModel"
)


def commands(folder: Path) -> dict[str, list[str]]:
    """Words of each command, after `python`."""
    clipgraft = ["-m", "clipgraft"]
    prompt = ["a red boat on a lake", "--base", "flatland", "--out", str(folder / "images")]
    return {
        "help": [*clipgraft, "--help"],
        "check of 10 images": [*clipgraft, "data", "check", str(folder / "ten")],
        "flatland's first image": [*clipgraft, "generate", *prompt],
        "import of the libraries alone": ["-c", LIBRARIES],
        "import of torch alone": ["-c", "import torch"],
    }


def processor_seconds(words: list[str], source: Path, folder: Path) -> float:
    """User and system seconds of one run, on one thread."""
    shutil.rmtree(folder / "images", ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Median processor seconds of each command by source tree."""
    draw_flatland8k(folder / "ten", num_images=10)
    sources = {"ours": SOURCE} | ({"other": options.other} if options.other else {})
    seconds: dict[str, dict[str, list[float]]] = {tree: {} for tree in sources}
    for turn in range(options.repeats + 1):
        for name, words in commands(folder).items():
            for tree, source in sources.items():
                spent = processor_seconds(words, source, folder)
                if turn:  # the first run warms caches
                    seconds[tree].setdefault(name, []).append(spent)
    return {
        tree: {name: statistics.median(runs) for name, runs in of_tree.items()}
        for tree, of_tree in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--other", type=Path, help="src folder of another version")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        medians = measure(options, Path(folder))
    result = {
        "median_processor_seconds": medians,
        "environment": describe_environment(torch.device("cpu"))
        | {"command": "python benchmarks/bench_start.py --other OLD/src"},
    }
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
