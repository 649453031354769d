"""Graft a CLIP's text tower onto a frozen base with captions alone, then generate images.

python examples/graft_and_generate.py captions.txt --clip runs/tuned/clip --out runs/graft
"""

import argparse
from pathlib import Path

import clipgraft as cg

PROMPTS = ("A dog running on the beach at sunset", "A colorful garden with blooming flowers")


def main(
    captions: str, output_dir: str, *, clip: str = "flatland", base: str = "flatland", **settings: object
) -> None:
    lines = Path(captions).read_text(encoding="utf-8").splitlines()
    result = cg.fit_bridge(cg.load_clip(clip), cg.load_base(base), lines, **settings)
    print("relative error of the prompt embeds:", result.error.relative_error)
    folder = Path(output_dir)
    result.graft.save_pretrained(folder / "graft")

    generator = cg.load(folder / "graft", base=base)
    # Fields left out, such as num_inference_steps and guidance_scale, are the base's own.
    for image in generator.generate(PROMPTS, cg.SamplingParams(seed=3)):
        path = folder / f"{image.prompt}.png"
        image.image.save(path)
        print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", help="text file with one caption per line, at least 100")
    parser.add_argument("--clip", default="flatland")
    parser.add_argument("--base", default="flatland")
    parser.add_argument("--out", default="runs/graft")
    options = parser.parse_args()
    main(options.captions, options.out, clip=options.clip, base=options.base)
