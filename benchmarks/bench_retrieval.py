"""Recall over many images: the chunked metric against the plain one that holds the whole matrix and sorts it.

    python benchmarks/bench_retrieval.py

Alternating, median of five, in one run; prints the ratio and writes benchmarks/results/retrieval.json.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from clipgraft.evaluation.retrieval import retrieval_metrics
from clipgraft.runtime import describe_environment

NUM_IMAGES, CAPTIONS_PER_IMAGE, WIDTH, REPEATS = 1000, 5, 512, 5
RESULT = Path(__file__).parent / "results" / "retrieval.json"


def plain_metrics(text_embeds: Tensor, image_embeds: Tensor, image_index: Tensor) -> dict[str, float]:
    """Sort the full score matrix in both directions, as evaluation scripts commonly do."""
    scores = text_embeds @ image_embeds.T
    found = (scores.argsort(dim=1, descending=True, stable=True) == image_index[:, None]).int().argmax(1)
    order = scores.T.argsort(dim=1, descending=True, stable=True)
    own = (image_index[order] == torch.arange(len(image_embeds))[:, None]).int().argmax(1)
    recalls = {f"text_to_image_recall@{k}": float((found < k).float().mean()) for k in (1, 5, 10)}
    return recalls | {f"image_to_text_recall@{k}": float((own < k).float().mean()) for k in (1, 5, 10)}


def seconds(function: Callable[..., object], *arguments: Tensor) -> float:
    begun = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begun


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(NUM_IMAGES, WIDTH, generator=generator), dim=1)
    index = torch.arange(NUM_IMAGES).repeat_interleave(CAPTIONS_PER_IMAGE)
    noise = torch.randn(len(index), WIDTH, generator=generator)
    texts = torch.nn.functional.normalize(images[index] + 0.12 * noise, dim=1)
    ours, plain = retrieval_metrics(texts, images, index), plain_metrics(texts, images, index)
    difference = max(abs(ours[name] - value) for name, value in plain.items())
    times: dict[str, list[float]] = {"chunked": [], "plain": []}
    for _ in range(REPEATS):
        times["chunked"].append(seconds(retrieval_metrics, texts, images, index))
        times["plain"].append(seconds(plain_metrics, texts, images, index))
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "num_images": NUM_IMAGES,
        "num_captions": len(index),
        "median_seconds": medians,
        "plain_over_chunked": medians["plain"] / medians["chunked"],
        "largest_difference": difference,
        "environment": describe_environment(torch.device("cpu"))
        | {"command": "python benchmarks/bench_retrieval.py"},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"{result['plain_over_chunked']:.1f} x the plain metric's speed; largest difference {difference:.1e}"
    )


if __name__ == "__main__":
    main()
