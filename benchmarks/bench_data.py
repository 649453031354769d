"""Data at any size: the first step of a listing of ten million pairs, and memory by its length.

    python benchmarks/bench_data.py [--parts listing] [--sizes 10000 1000000 10000000]

Prints and writes benchmarks/results/data.json, a part at a time.

`listing`: a table as open_clip writes it (names and captions, a thousand real files) is made in a temporary
folder; `clipgraft finetune` on flatland's CLIP is started, timed up to the first step in its log, and killed;
memory is the anonymous memory of all of its processes, shared pages once. Each size is started with an empty
cache, then with the converted listing.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from clipgraft.data.formats import draw_data
from clipgraft.device import describe_environment

RESULT = Path(__file__).parent / "results" / "data.json"
SIZES = (10_000, 1_000_000, 10_000_000)
NUM_FILES = 1000
REPEATS = 5
SECONDS_AFTER_FIRST_STEP = 5
"""For which memory is watched on."""
WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "boat",
    "kite",
    "red",
    "blue",
    "runs",
    "sleeps",
    "on",
    "near",
    "beach",
    "field",
    "city",
    "street",
    "old",
    "small",
    "two",
    "people",
]
FINETUNE = """
import sys
from clipgraft.data import listing_tables
listing_tables.LISTING_BYTES = 0  # short tables too, to compare with long ones
from clipgraft.__main__ import main
main()
"""
LOAD = """
import sys, time
from pathlib import Path
from clipgraft.data import listing_tables
from clipgraft.data.listed_images import load_listing
from clipgraft.settings import DataSettings
listing_tables.LISTING_BYTES = 0
begun = time.perf_counter()
data = load_listing(Path(sys.argv[1]), DataSettings())
print(len(data.train), time.perf_counter() - begun)
"""


def write_listing(folder: Path, num_pairs: int) -> Path:
    """Write a table of pairs whose images are those of a folder in turn."""
    names = [path.relative_to(folder).as_posix() for path in sorted((folder / "images").rglob("*.jpg"))]
    source = random.Random(0)
    tails = [" ".join(source.choices(WORDS, k=10)) for _ in range(997)]
    table = folder / f"{num_pairs}.tsv"
    with table.open("w", encoding="utf-8") as file:
        file.write("filepath\ttitle\n")
        for begin in range(0, num_pairs, 10_000):
            rows = range(begin, min(num_pairs, begin + 10_000))
            file.writelines(f"{names[n % len(names)]}\tphotograph {n} of {tails[n % 997]}\n" for n in rows)
    return table


def anonymous_bytes(process: int) -> int:
    """Return the anonymous memory of a process and its children, shared pages by their shares."""
    total = 0
    for member in descendants(process):
        with suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
    return total


def descendants(process: int) -> Iterator[int]:
    """Yield a process and all that it started."""
    yield process
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from descendants(int(child))


def start_training(table: Path, cache: Path) -> dict[str, float]:
    """Start a fine-tuning, and return seconds to its first step and its peak memory so far."""
    with TemporaryDirectory(dir=table.parent) as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-c", FINETUNE, "finetune", "--data", str(table), "--clip", "flatland"]
        command += ["--out", str(out), "--set", "finetune.num_epochs=1", "--set", "data.max_val_images=100"]
        command += ["--set", "data.max_test_images=100"]
        begun, peak, seconds = time.perf_counter(), 0, 0.0
        with subprocess.Popen(
            command,
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            while not seconds or time.perf_counter() - begun < seconds + SECONDS_AFTER_FIRST_STEP:
                if process.poll() is not None:
                    raise RuntimeError(f"the fine-tuning ended: {process.stderr and process.stderr.read()}")
                peak = max(peak, anonymous_bytes(process.pid))
                if not seconds and (out / "log.jsonl").is_file() and (out / "log.jsonl").stat().st_size:
                    seconds = time.perf_counter() - begun
                time.sleep(0.05)
            for member in list(descendants(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(member, 9)
    return {"seconds_to_first_step": round(seconds, 2), "peak_anonymous_mb": round(peak / 1e6, 1)}


def load_seconds(table: Path, cache: Path) -> float:
    """Return the seconds of converting and opening a listing alone."""
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
    ended = subprocess.run(
        [sys.executable, "-c", LOAD, table], env=environment, capture_output=True, text=True, check=True
    )
    return float(ended.stdout.split()[1])


def measure_listing(options: argparse.Namespace) -> dict[str, Any]:
    """Measure first steps and memory by the length of a listing, sizes in turn."""
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in options.sizes}
    with TemporaryDirectory() as folder:
        root = Path(folder)
        draw_data(root / "images", seed=0, num_images=NUM_FILES)
        tables = {size: write_listing(root, size) for size in options.sizes}
        for number in range(options.repeats):
            for size, table in tables.items():
                cache = root / f"cache-{size}-{number}"
                cold = start_training(table, cache)
                warm = start_training(table, cache)
                converting = load_seconds(table, root / f"load-{size}-{number}")
                opening = load_seconds(table, root / f"load-{size}-{number}")
                row = {"cold": cold, "warm": warm, "convert_seconds": converting, "open_seconds": opening}
                print(f"{size:>12,} {row}", flush=True)
                found[size].append(row)
                for place in (cache, root / f"load-{size}-{number}"):
                    subprocess.run(["rm", "-rf", place], check=True)
    figures: dict[str, Any] = {}
    for size, rows in found.items():
        figures[f"{size}"] = {
            **{
                f"{state}_{name}": median(row[state][name] for row in rows)
                for state in ("cold", "warm")
                for name in ("seconds_to_first_step", "peak_anonymous_mb")
            },
            "convert_seconds": round(median(row["convert_seconds"] for row in rows), 2),
            "open_seconds": round(median(row["open_seconds"] for row in rows), 2),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="pairs of listings")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for part in options.parts:
        figures = PARTS[part](options)
        command = f"python benchmarks/bench_data.py --parts {part} --repeats {options.repeats}"
        environment = describe_environment(torch.device("cpu")) | {"command": command}
        result[part] = {**figures, "environment": environment}
        print(json.dumps(figures, indent=2))
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"listing": measure_listing}

if __name__ == "__main__":
    main()
