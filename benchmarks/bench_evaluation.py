"""Retrieval over many images: the chunked metric against one that sorts the whole matrix, and torchmetrics'.

    python benchmarks/bench_evaluation.py [--torchmetrics PYTHON]

Each measurement is a process of its own, whose peak memory is the kernel's (VmHWM); what it held before the
metric is beside it. Sides alternate, median of five; the largest gallery is measured once. torchmetrics is no
dependency: name the Python of an environment that has it and this package, or it is left out, which is said.
It takes every score with the number of its query, so it is compared on the smallest gallery alone. Writes
benchmarks/results/evaluation.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from clipgraft.device import describe_environment
from clipgraft.evaluation.metrics.retrieval import retrieval_metrics

CAPTIONS_PER_IMAGE, WIDTH, REPEATS = 5, 512, 5
SMALL, MEDIUM, LARGE = 500, 5_000, 25_000
RESULT = Path(__file__).parent / "results" / "evaluation.json"
SHARED = [f"text_to_image_recall@{k}" for k in (1, 5, 10)] + ["text_to_image_map", "image_to_text_map"]


def embeds(num_images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Captions, images and each caption's image, as of a trained CLIP: near, not always first."""
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(num_images, WIDTH, generator=generator), dim=1)
    index = torch.arange(num_images).repeat_interleave(CAPTIONS_PER_IMAGE)
    noise = torch.randn(len(index), WIDTH, generator=generator)
    return torch.nn.functional.normalize(images[index] + 0.25 * noise, dim=1), images, index


def plain(texts: Tensor, images: Tensor, index: Tensor) -> dict[str, float]:
    """Sort the full score matrix in both directions, as evaluation scripts commonly do."""
    scores = texts @ images.T
    found = (scores.argsort(dim=1, descending=True, stable=True) == index[:, None]).int().argmax(1)
    is_own = (
        index[scores.T.argsort(dim=1, descending=True, stable=True)] == torch.arange(len(images))[:, None]
    )
    places = is_own.nonzero()[:, 1].view(len(images), CAPTIONS_PER_IMAGE)
    precision = torch.arange(1, CAPTIONS_PER_IMAGE + 1) / (places + 1).double()
    recalls = {f"text_to_image_recall@{k}": float((found < k).float().mean()) for k in (1, 5, 10)}
    average = {"text_to_image_map": float((1 / (found + 1).double()).mean())}
    return recalls | average | {"image_to_text_map": float(precision.mean())}


def by_torchmetrics(texts: Tensor, images: Tensor, index: Tensor) -> dict[str, float]:
    """Give torchmetrics the same scores: each with its query's number and whether it is right."""
    from torchmetrics.retrieval import RetrievalMAP, RetrievalRecall

    scores = texts @ images.T
    is_own = index[:, None] == torch.arange(len(images))[None]
    queries = torch.arange(len(texts))[:, None].expand_as(scores)
    found = {}
    for k in (1, 5, 10):
        recall = RetrievalRecall(top_k=k)
        recall.update(scores.flatten(), is_own.flatten(), indexes=queries.flatten())
        found[f"text_to_image_recall@{k}"] = float(recall.compute())
    for name, (own, right) in {
        "text_to_image_map": (scores, is_own),
        "image_to_text_map": (scores.T, is_own.T),
    }.items():
        precision = RetrievalMAP()
        rows = torch.arange(len(own))[:, None].expand_as(own)
        precision.update(own.flatten(), right.flatten(), indexes=rows.flatten())
        found[name] = float(precision.compute())
    return found


WAYS = {"chunked": retrieval_metrics, "plain": plain, "torchmetrics": by_torchmetrics}


def measure(way: str, num_images: int) -> dict:
    """One measurement, in this process."""
    arguments = embeds(num_images)
    held = peak_mb()
    begun, used = time.perf_counter(), time.process_time()
    figures = WAYS[way](*arguments)
    times = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - used}
    return times | {"peak_mb": peak_mb(), "held_mb": held, "figures": figures}


def peak_mb() -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measure_apart(python: str, way: str, num_images: int) -> dict:
    command = [python, __file__, "--one", way, str(num_images)]
    return json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )


def compare(ways: dict[str, str], num_images: int, repeats: int) -> dict:
    """Alternate the ways; medians of time and memory, ratios to the chunked one, largest difference."""
    runs: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, python in ways.items():
            runs[way].append(measure_apart(python, way, num_images))
    rows = {
        way: {key: statistics.median(run[key] for run in found) for key in found[0] if key != "figures"}
        for way, found in runs.items()
    }
    chunked = runs["chunked"][0]["figures"]
    for way, row in rows.items():
        figures = runs[way][0]["figures"]
        row["times_chunked"] = row["seconds"] / rows["chunked"]["seconds"]
        row["largest_difference"] = max(abs(chunked[name] - figures[name]) for name in SHARED)
        print(
            f"{num_images:6} images, {way:12} {row['seconds']:7.2f} s ({row['times_chunked']:5.1f} x), "
            f"{row['cpu_seconds']:.1f} s of CPU, peak "
            f"{row['peak_mb']:6.0f} MB of which {row['held_mb']:.0f} before, difference "
            f"{row['largest_difference']:.1e}"
        )
    return {
        "num_images": num_images,
        "num_captions": num_images * CAPTIONS_PER_IMAGE,
        "repeats": repeats,
        **rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--one", nargs=2, metavar=("WAY", "IMAGES"), help=argparse.SUPPRESS)
    parser.add_argument("--torchmetrics", metavar="PYTHON", default="")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    own = {"chunked": sys.executable, "plain": sys.executable}
    others = {"torchmetrics": arguments.torchmetrics} if arguments.torchmetrics else {}
    if not others:
        print("torchmetrics is left out: name the Python of an environment that has it with --torchmetrics")
    rows = [
        compare(own | others, SMALL, REPEATS),
        compare(own, MEDIUM, REPEATS),
        compare({"chunked": sys.executable}, LARGE, 1),
    ]
    environment = describe_environment(torch.device("cpu"))
    environment["command"] = "python benchmarks/bench_evaluation.py" + (
        " --torchmetrics PYTHON" if others else ""
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(
        json.dumps({"rows": rows, "environment": environment}, indent=2) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
