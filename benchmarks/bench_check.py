"""What a check of a dataset finds that is there, and that is not.

    python benchmarks/bench_check.py [--flickr8k ../shared/flickr8k-1000] [--captions TOKEN_FILE]

Copies of photographs (smaller, recompressed, brighter, gray, marked, cropped) that are found as near
duplicates; pairs of different images that are taken for copies; English captions that are taken for another
language; time and memory of a pass over captions alone. Writes benchmarks/results/check.json.
"""

import argparse
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance

from clipgraft.data.caption_languages import _load_identifier, other_languages
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.images import open_image
from clipgraft.data.near_duplicates import (
    MAX_DHASH_BITS,
    MAX_PHASH_BITS,
    PerceptualHash,
    near_groups,
    perceptual_hash,
)
from clipgraft.device import describe_environment

RESULT = Path(__file__).parent / "results" / "check.json"
SHARED = Path(__file__).parents[2] / "shared"
NUM_COPIED = 250
COUNTS = (10_000, 100_000, 1_000_000)
ONE_PASS = """
import sys, time
from pathlib import Path
from clipgraft.data.caption_check import CaptionCheck
from clipgraft.data.dataset import CaptionedImage
words = "a brown dog runs on the wide beach at dusk with two old friends near some boats".split()
check, number = CaptionCheck(int(sys.argv[1])), 0
start = time.process_time()
for number in range(int(sys.argv[1])):
    text = " ".join(words[number // 7 ** place % 16] for place in range(10)) + f" {number % 10_000}"
    check.add(CaptionedImage(f"{number}.jpg", Path("nowhere"), (text,), "train"))
seconds = time.process_time() - start
memory = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(seconds, int(memory.split()[1]) * 1024)  # unlike ru_maxrss, without what the parent had
"""


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content).convert("RGB")


def copies(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    width, height = image.size
    yield "JPEG of quality 50", recompressed(image, 50)
    yield "half the size", recompressed(image.resize((width // 2, height // 2)), 85)
    yield "twice the size", recompressed(image.resize((width * 2, height * 2)), 85)
    yield "gray", recompressed(image.convert("L").convert("RGB"), 85)
    yield "20 % brighter", recompressed(ImageEnhance.Brightness(image).enhance(1.2), 85)
    marked = image.copy()
    ImageDraw.Draw(marked).text((width * 0.6, height * 0.9), "photo by me", fill="white")
    yield "a name written on it", recompressed(marked, 85)
    for cut in (0.03, 0.05):
        box = (int(width * cut), int(height * cut), int(width * (1 - cut)), int(height * (1 - cut)))
        yield f"{cut:.0%} cut off at each side", recompressed(image.crop(box), 85)
    yield "mirrored", image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def are_near(one: PerceptualHash, other: PerceptualHash) -> bool:
    return (one.phash ^ other.phash).bit_count() <= MAX_PHASH_BITS and (
        one.dhash ^ other.dhash
    ).bit_count() <= MAX_DHASH_BITS


def measure_looks(images: list[CaptionedImage]) -> dict[str, Any]:
    """Pairs and groups taken for copies among different images."""
    hashes = [perceptual_hash(open_image(image.file)) for image in images]
    phashes, dhashes = (np.array(column, np.uint64) for column in zip(*hashes, strict=True))
    num_near, nearest = 0, 64
    for first in range(len(images) - 1):
        bits = np.bitwise_count(phashes[first + 1 :] ^ phashes[first])
        nearest = min(nearest, int(bits.min()))
        others = np.bitwise_count(dhashes[first + 1 :] ^ dhashes[first])
        num_near += int(((bits <= MAX_PHASH_BITS) & (others <= MAX_DHASH_BITS)).sum())
    start = time.perf_counter()
    groups = near_groups(phashes, dhashes)
    return {
        "images": len(images),
        "pairs": len(images) * (len(images) - 1) // 2,
        "pairs_taken_for_copies": num_near,
        "groups": len(groups),
        "images_in_groups": sum(map(len, groups)),
        "nearest_phash_bits": nearest,
        "seconds_to_group": round(time.perf_counter() - start, 3),
    }


def measure_copies(images: list[CaptionedImage]) -> dict[str, float]:
    """Share of copies found, by kind."""
    found: dict[str, list[bool]] = {}
    for image in images:
        original = open_image(image.file)
        own = perceptual_hash(original)
        for kind, copy in copies(original):
            found.setdefault(kind, []).append(are_near(own, perceptual_hash(copy)))
    return {kind: round(float(np.mean(each)), 3) for kind, each in found.items()}


def measure_languages(captions: list[str]) -> dict[str, Any]:
    """English captions taken for another language, and the greatest ratio that decides."""
    identifier = _load_identifier()
    ranked = [identifier.rank(caption) for caption in captions]
    ratios = [each[0][1] / max(dict(each)["en"], 1e-30) for each in ranked]
    return {
        "captions": len(captions),
        "taken_for_another_language": sum(round(s.share * len(captions)) for s in other_languages(captions)),
        "greatest_ratio": round(max(ratios), 1),
    }


def measure_pass(count: int) -> dict[str, float]:
    command = [sys.executable, "-c", ONE_PASS, str(count)]
    seconds, memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {
        "captions": count,
        "cpu_seconds": round(float(seconds), 2),
        "peak_mib": round(int(memory) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, default=SHARED / "flickr8k-1000")
    parser.add_argument("--captions", type=Path, default=SHARED / "flickr8k" / "Flickr8k.token.txt")
    given = parser.parse_args()
    flatland, flickr = list(load_dataset().images), list(load_dataset(given.flickr8k).images)
    lines = given.captions.read_text(encoding="utf-8").splitlines()
    captions = {
        "flatland8k": [caption for image in flatland for caption in image.captions],
        "Flickr8k": [line.split("\t", 1)[1] for line in lines if "\t" in line],
    }
    figures = {
        "near_duplicates": {"flatland8k": measure_looks(flatland), "Flickr8k": measure_looks(flickr)},
        "copies_found": measure_copies(flickr[:: max(1, len(flickr) // NUM_COPIED)]),
        "languages": {name: measure_languages(texts) for name, texts in captions.items()},
        "one_pass_over_captions": [measure_pass(count) for count in COUNTS],
    }
    print(json.dumps(figures, indent=2))
    environment = describe_environment(torch.device("cpu")) | {"command": "python benchmarks/bench_check.py"}
    RESULT.write_text(json.dumps(figures | {"environment": environment}, indent=2) + "\n")


if __name__ == "__main__":
    main()
