"""Seconds from the shell to a command's result, with a warm cache.

    python benchmarks/bench_start.py [--other SRC] [--repeats 5]

--help, a check of ten images, flatland's first image, and the imports that it needs, alone. Commands take
turns; with --other the same commands of another source tree (its src folder) between them. On one thread:
the median of processor seconds, user and system, in which a busy machine counts little, and the least wall
seconds; on a busy machine `chrt -f 1` before the command has them come near those of an idle one. Writes
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
import time
from pathlib import Path

import torch

from clipgraft.device import describe_environment
from clipgraft.flatland import draw_flatland8k

RESULT = Path(__file__).parent / "results" / "start.json"
SOURCE = Path(__file__).parents[1] / "src"
DYNAMO = "import torch; import torch._dynamo"
LIBRARIES = (
    "import torch; from diffusers import StableDiffusionPipeline; from transformers import CLIPTextModel"
)
TREES = {"ours": "", "other": "before: "}
"""Prefix of a tree's columns."""


def commands(folder: Path) -> dict[str, list[str]]:
    """Words of each command, after `python`."""
    clipgraft = ["-m", "clipgraft"]
    prompt = ["a red boat on a lake", "--base", "flatland", "--out", str(folder / "images")]
    return {
        "--help": [*clipgraft, "--help"],
        "data check of ten images": [*clipgraft, "data", "check", str(folder / "ten")],
        "flatland's first image": [*clipgraft, "generate", *prompt],
        "import of torch alone": importing("import torch"),
        "import of torch with its dynamo": importing(DYNAMO),
        "import of all libraries of the first image": importing(LIBRARIES),
    }


def importing(libraries: str) -> list[str]:
    """Words that import libraries as commands do."""
    return ["-c", f"from clipgraft.cli.imports import importing\nwith importing(): {libraries}"]


def run(words: list[str], source: Path, folder: Path) -> tuple[float, float]:
    """Processor seconds, user and system, and wall seconds of one run, on one thread."""
    shutil.rmtree(folder / "images", ignore_errors=True)
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended - begun


def measure(options: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Figures of each command, in columns by source tree."""
    draw_flatland8k(folder / "ten", num_images=10)
    sources = {"ours": SOURCE} | ({"other": options.other} if options.other else {})
    runs: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for turn in range(options.repeats + 1):
        for name, words in commands(folder).items():
            for tree, source in sources.items():
                spent = run(words, source, folder)
                if turn:  # the first run warms caches
                    runs.setdefault(name, {}).setdefault(TREES[tree], []).append(spent)
    return {name: dict(figures(of_command)) for name, of_command in runs.items()}


def figures(runs: dict[str, list[tuple[float, float]]]) -> list[tuple[str, float]]:
    """Median processor seconds and least wall seconds by column."""
    processor = [(f"{tree}processor", statistics.median(each[0] for each in runs[tree])) for tree in runs]
    wall = [(f"{tree}wall", min(each[1] for each in runs[tree])) for tree in runs]
    return processor + wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--other", type=Path, help="src folder of another version")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options, Path(folder))
    place = describe_environment(torch.device("cpu")) | {"num_threads": 1}
    place["command"] = "python benchmarks/bench_start.py" + " --other OLD/src" * bool(options.other)
    result = {"seconds": rows, "repeats": options.repeats, "environment": place}
    print(json.dumps(result, indent=2))
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
