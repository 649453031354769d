"""How often the probe and a person read the same in images that flatland's own text encoder guides.

    python benchmarks/probe_by_eye.py --sheets DIR    # 100 images, numbered and without words
    python benchmarks/probe_by_eye.py                 # compare the probe with the person's readings

The images are of the first sixty simple and the first forty composed prompts; the seed of each is its number.
benchmarks/probe_by_eye.txt has what a person saw in the sheets without knowing prompts or the probe's
readings: a line for each image with its place, time, subject, colour, number and action, `?` where it cannot
be told. Writes benchmarks/results/probe_by_eye.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import clipgraft
from clipgraft.console import print_line
from clipgraft.device import describe_environment, quiet_libraries
from clipgraft.evaluation.metrics.probe import load_probe, read_attributes
from clipgraft.flatland import ATTRIBUTES
from clipgraft.flatland.prompts import Prompt, composed_prompts, fidelity_prompts
from clipgraft.models.hub import embedded_models
from clipgraft.sampling_params import InferenceConfig
from first_prompts import sheet

RESULT = Path(__file__).parent / "results" / "probe_by_eye.json"
READINGS = Path(__file__).with_suffix(".txt")
READ = ("place", "time", "subject", "colour", "number", "action")
PROMPTS: tuple[Prompt, ...] = (*fidelity_prompts()[:60], *composed_prompts()[:40])
PER_SHEET = 25
ENLARGED = 2


def generate_images() -> list[Image.Image]:
    generator = clipgraft.load("flatland", inference=InferenceConfig(engine="torch"))
    settings = {"num_inference_steps": 20}
    return [generator.generate(prompt.text, seed=n, **settings)[0].image for n, prompt in enumerate(PROMPTS)]


def write_sheets(images: Sequence[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(0, len(images), PER_SHEET):
        numbers = range(first, min(first + PER_SHEET, len(images)))
        page = sheet([images[number] for number in numbers], [str(number) for number in numbers])
        page.resize([ENLARGED * side for side in page.size]).save(folder / f"{first:03}.png")


def probe_readings(images: Sequence[Image.Image]) -> list[dict[str, str]]:
    probe = load_probe(embedded_models() / "probe.safetensors")
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    return [
        {name: ATTRIBUTES[name][place] for name, place in zip(ATTRIBUTES, labels, strict=True)}
        for labels in read_attributes(probe, pixels).tolist()
    ]


def person_readings() -> list[dict[str, str]]:
    lines = READINGS.read_text(encoding="utf-8").splitlines()
    return [dict(zip(READ, line.split()[1:], strict=True)) for line in lines]


def agreement(probe: Sequence[dict[str, str]], person: Sequence[dict[str, str]]) -> dict[str, dict[str, int]]:
    """Count by attribute the images that both read alike, and those in which the person could read it."""
    counts = {}
    for name in READ:
        pairs = [(a[name] or "-", b[name]) for a, b in zip(probe, person, strict=True) if b[name] != "?"]
        counts[name] = {"alike": sum(a == b for a, b in pairs), "read": len(pairs)}
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sheets", type=Path)
    folder = parser.parse_args().sheets
    images = generate_images()
    if folder:
        write_sheets(images, folder)
        return
    probe, person = probe_readings(images), person_readings()
    counts = agreement(probe, person)
    for name, count in counts.items():
        print_line(f"{name:8} alike in {count['alike']:3} of {count['read']:3} images")
    differing = [
        {
            "image": number,
            "prompt": PROMPTS[number].text,
            "attribute": name,
            "probe": a[name],
            "person": b[name],
        }
        for number, (a, b) in enumerate(zip(probe, person, strict=True))
        for name in READ
        if b[name] != (a[name] or "-")
    ]
    environment = describe_environment(torch.device("cpu")) | {"command": "python benchmarks/probe_by_eye.py"}
    result = {"agreement": counts, "differing": differing, "environment": environment}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    quiet_libraries()
    main()
