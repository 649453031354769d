"""flatland8k's captions beside Flickr8k's: vocabulary, lengths, how many are needed to say most of it.

    python benchmarks/bench_captions.py [--flickr8k ../shared/flickr8k/Flickr8k.token.txt]

Prints both and a histogram of words per caption; writes benchmarks/results/captions.json.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from clipgraft.data.caption_check import WORD
from clipgraft.data.formats import load_dataset
from clipgraft.device import describe_environment

RESULT = Path(__file__).parent / "results" / "captions.json"
TOKEN_FILE = Path(__file__).parents[2] / "shared" / "flickr8k" / "Flickr8k.token.txt"
WIDEST_BAR = 40


def describe(captions: Sequence[str]) -> dict[str, Any]:
    """Figures of a set of captions."""
    words = Counter(word for caption in captions for word in WORD.findall(caption.lower()))
    lengths = [len(WORD.findall(caption)) for caption in captions]
    covered = accumulate(count for _, count in words.most_common())
    return {
        "captions": len(captions),
        "different_captions": len(set(captions)),
        "vocabulary": len(words),
        "words_that_make_up_90_percent": 1 + sum(count < 0.9 * words.total() for count in covered),
        "mean_words": statistics.mean(lengths),
        "captions_per_length": dict(sorted(Counter(lengths).items())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, default=TOKEN_FILE)
    path = parser.parse_args().flickr8k
    sets = {"flatland8k": [c for image in load_dataset().images for c in image.captions]}
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        sets["Flickr8k"] = [line.split("\t", 1)[1] for line in lines if "\t" in line]
    else:
        print(f"Flickr8k left out: {path} is not there")
    figures = {name: describe(captions) for name, captions in sets.items()}
    for name, found in figures.items():
        print(name, {key: value for key, value in found.items() if key != "captions_per_length"})
        most = max(found["captions_per_length"].values())
        for length, count in found["captions_per_length"].items():
            print(f"{length:4d} {count:6d} {'#' * round(WIDEST_BAR * count / most)}")
    environment = describe_environment(torch.device("cpu")) | {
        "command": "python benchmarks/bench_captions.py"
    }
    RESULT.write_text(json.dumps(figures | {"environment": environment}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
