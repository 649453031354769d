"""Data at any size: a listing of ten million pairs, images decoded a second, steps that wait for no image.

    python benchmarks/bench_data.py [--parts listing decoding steps] [--sizes 10000 1000000 10000000] [--tiny]

Prints and writes benchmarks/results/data.json, a part at a time.

`listing`: a table as open_clip writes it (names and captions, a thousand real files) is made in a temporary
folder; `clipgraft finetune` on flatland's CLIP is started, timed up to the first step in its log, and killed;
memory is the anonymous memory of all of its processes, shared pages once. Each size is started with an empty
cache, then with the converted listing.

`decoding`: photographs of 500 x 375 pixels, decoded to RGB in one process: loose files and shards here, the
shards in webdataset's own loop and in `datasets`, in turns. `steps`: seconds a step of CLIP B/32's shape with
random weights on the same batch again and again, on loose files and on shards, in turns. `--tiny` tries these
two on a small model and writes nothing.
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
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench_training import (
    BATCH_SIZE,
    build_clip,
    epochs,
    photographs,
    seconds_a_step,
    take_turns,
)
from clipgraft.data.crop_reader import CropReader
from clipgraft.data.formats import draw_data, load_dataset
from clipgraft.data.images import open_image
from clipgraft.data.loader import CaptionedBatches, choose_num_workers
from clipgraft.data.pack import pack
from clipgraft.device import choose_mixed_precision, describe_environment
from clipgraft.models.attention import ATTENTION
from clipgraft.models.clip import ClipParts
from clipgraft.settings import DataSettings, OptimConfig
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.step import TrainStep
from rival_training import LEARNING_RATE

RESULT = Path(__file__).parent / "results" / "data.json"
SIZES = (10_000, 1_000_000, 10_000_000)
NUM_FILES = 1000
REPEATS = 5
NUM_PHOTOGRAPHS, SHARD_IMAGES = 512, 128
STEPS_A_TURN = 8
"""More than the batches that workers are ahead."""
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


def packed_photographs(folder: Path, number: int) -> tuple[Path, Path]:
    """Return folders of photographs with captions, as loose files and packed into shards."""
    loose, shards = folder / "loose", folder / "shards"
    loose.mkdir()
    rows = (
        {"file_name": image.image_id, "captions": image.captions, "split": "train"}
        for image in photographs(loose, number)
    )
    (loose / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pack(DataSettings(source=str(loose)), shards, shard_size=SHARD_IMAGES)
    return loose, shards


def decoded_by_webdataset(shards: Path) -> Iterator[Any]:
    import webdataset

    urls = [str(path) for path in sorted(shards.glob("*.tar"))]
    return (
        image for (image,) in webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb").to_tuple("jpg")
    )


def decoded_by_datasets(shards: Path) -> Iterator[Any]:
    import datasets

    files = [str(path) for path in sorted(shards.glob("*.tar"))]
    rows = datasets.load_dataset("webdataset", data_files={"train": files}, split="train", streaming=True)
    return (row["jpg"].convert("RGB") for row in rows)


def decoded_here(source: Path) -> Iterator[Any]:
    return (open_image(image.file) for _, image in load_dataset(source).train.epoch(0, 0))


def seconds_an_image(images: Callable[[], Iterator[Any]], expected: int) -> float:
    """Return the seconds of an image, from the first one on, without the search for them."""
    found = images()
    next(found)
    begun = time.perf_counter()
    number = sum(1 for _ in found)
    assert number == expected - 1
    return (time.perf_counter() - begun) / number


def measure_decoding(options: argparse.Namespace) -> dict[str, Any]:
    """Measure images decoded a second in one process, readers in turn."""
    with TemporaryDirectory() as folder:
        number = 64 if options.tiny else NUM_PHOTOGRAPHS
        loose, shards = packed_photographs(Path(folder), number)
        readers: dict[str, Callable[[], Iterator[Any]]] = {
            "loose files": lambda: decoded_here(loose),
            "shards": lambda: decoded_here(shards),
            "webdataset": lambda: decoded_by_webdataset(shards),
            "datasets": lambda: decoded_by_datasets(shards),
        }
        turns: dict[str, Callable[[], float]] = {
            name: partial(seconds_an_image, read, number) for name, read in readers.items()
        }
        seconds = take_turns(turns, options.repeats)
    return {"images_a_second": {name: round(1 / found, 1) for name, found in seconds.items()}}


def measure_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Measure seconds a step with and without loading, variants in turn."""
    with TemporaryDirectory() as folder:
        loose, shards = packed_photographs(Path(folder), 64 if options.tiny else NUM_PHOTOGRAPHS)
        clip = build_clip(photographs(loose, 32), options.tiny)
        clip.model.set_attn_implementation(ATTENTION)
        precision = choose_mixed_precision("auto", torch.device("cpu"))
        optim = OptimConfig(learning_rate=LEARNING_RATE, mixed_precision=precision)
        stepper = TrainStep(ContrastiveObjective(clip.model), optim)
        streams = {"loose files": epochs_of(loose, clip), "shards": epochs_of(shards, clip)}
        kept = next(streams["loose files"])
        streams["no loading"] = repeat(kept)
        turns: dict[str, Callable[[], float]] = {}
        for name, stream in streams.items():
            step = partial(one_step, stepper, stream)
            turns[name] = partial(seconds_a_step, step, 4 if options.tiny else STEPS_A_TURN)
        seconds = take_turns(turns, options.repeats)
    ratios = {name: round(found / seconds["no loading"], 3) for name, found in seconds.items()}
    rounded = {name: round(found, 3) for name, found in seconds.items()}
    return {"seconds_a_step": rounded, "times_without_loading": ratios, "batch_size": BATCH_SIZE}


def one_step(stepper: TrainStep, batches: Iterator[dict[str, Any]]) -> float:
    """Make a step on the next batch, and return its loss."""
    return stepper([next(batches)], LEARNING_RATE)["loss"]


def epochs_of(source: Path, clip: ClipParts) -> Iterator[dict[str, Any]]:
    """Yield training batches of a source whose images are decoded in workers."""
    crops = CropReader(clip.image_processor)
    batches = CaptionedBatches(
        load_dataset(source).train,
        crops,
        tokenizer=clip.tokenizer,
        processor=clip.image_processor,
        batch_size=BATCH_SIZE,
        seed=0,
        num_workers=choose_num_workers(-1, crops, 1),
    )
    return epochs(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="pairs of listings")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--tiny", action="store_true", help="a small model, few images; nothing is written")
    options = parser.parse_args()
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    for part in options.parts:
        figures = PARTS[part](options)
        command = f"python benchmarks/bench_data.py --parts {part} --repeats {options.repeats}"
        environment = describe_environment(torch.device("cpu")) | {"command": command}
        result[part] = {**figures, "environment": environment}
        print(json.dumps(figures, indent=2))
        if not options.tiny:
            RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "listing": measure_listing,
    "decoding": measure_decoding,
    "steps": measure_steps,
}

if __name__ == "__main__":
    main()
