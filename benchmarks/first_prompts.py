"""Images of the seed's two prompts, eight seeds each, and of forty prompts that a newcomer may type.

    python benchmarks/first_prompts.py [--graft FOLDER]

They are flatland's own, or a graft's. The seed of each of the forty is its number, none is picked. Written
to docs/images/seed_prompts.jpg and docs/images/first_prompts.jpg, to be looked at one by one.
"""

import argparse
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import clipgraft
from clipgraft.device import quiet_libraries

PROMPTS = Path(__file__).with_suffix(".txt")
SEED_PROMPTS = ("A dog running on the beach at sunset", "A colorful garden with blooming flowers")
IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIDE, GAP, LABEL_HEIGHT, COLUMNS = 128, 8, 34, 8


def sheet(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Return images in rows of eight, each over its label."""
    num_rows = math.ceil(len(images) / COLUMNS)
    cell = SIDE + GAP, SIDE + LABEL_HEIGHT + GAP
    canvas = Image.new("RGB", (COLUMNS * cell[0] + GAP, num_rows * cell[1] + GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(10)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = (GAP + place * size for place, size in zip(divmod(number, COLUMNS)[::-1], cell, strict=True))
        canvas.paste(image, (x, y))
        pen.multiline_text((x, y + SIDE + 2), textwrap.fill(label, 26), fill="#1c1f24", font=font, spacing=1)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graft", default="flatland")
    generator = clipgraft.load(parser.parse_args().graft)
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    found = [generator.generate(prompt, num_images_per_prompt=8, batch_size=8) for prompt in SEED_PROMPTS]
    seeds = [each for images in found for each in images]
    labels = [f"{each.prompt}, seed {each.seed}" for each in seeds]
    sheet([each.image for each in seeds], labels).save(IMAGES / "seed_prompts.jpg", quality=88)
    firsts = [generator.generate(prompt, seed=number)[0].image for number, prompt in enumerate(prompts)]
    sheet(firsts, prompts).save(IMAGES / "first_prompts.jpg", quality=88)


if __name__ == "__main__":
    quiet_libraries()
    main()
