"""What approximations gain and cost: the same prompts and seeds with and without them.

    python benchmarks/compare_approximations.py "A dog" --base flatland --feature-cache 3 --out compared

Writes the images into `with/` and `without/` below --out, prints seconds, PSNR and SSIM, and keeps them in
`approximations.json`. Run alone, with the engine warm: the seconds include loading.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clipgraft.console import print_line, say
from clipgraft.errors import UserError
from clipgraft.evaluation.metrics.image_similarity import psnr, ssim
from clipgraft.evaluation.scores import load_pixels
from clipgraft.files import write_json
from clipgraft.generation.generate import GenerateOptions, approximations_of, generate
from clipgraft.generation.image_folder import ImageRow
from clipgraft.generation.requests import image_requests
from clipgraft.sampling_params import InferenceConfig, SamplingParams

RESULT_NAME = "approximations.json"


def compare_approximations(
    prompts: Sequence[str],
    params: SamplingParams,
    encoders: dict[str, Path | None],
    out_dir: Path,
    options: GenerateOptions,
) -> list[dict]:
    """Generate with the given parameters and with the defaults; return PSNR and SSIM of each pair."""
    if not approximations_of(image_requests(prompts, params), options.inference):
        raise UserError(
            "nothing to compare: name --scheduler, --steps, --guidance-interval, --feature-cache, "
            "--quantize, --vae or --lora"
        )
    plain = SamplingParams.of(params, scheduler="dpm++", num_inference_steps=None, loras=())
    exact = InferenceConfig(engine=options.inference.engine, compile=options.inference.compile)
    rows: dict[str, list[ImageRow]] = {}
    seconds = {}
    for name, own, inference in (("with", params, options.inference), ("without", plain, exact)):
        begun = time.perf_counter()
        own_options = replace(options, inference=inference)
        rows[name] = generate(image_requests(prompts, own), encoders, out_dir / name, own_options)
        seconds[name] = time.perf_counter() - begun
    likeness = _likeness(rows["with"], rows["without"], out_dir)
    write_json(out_dir / RESULT_NAME, {"seconds": seconds, "images": likeness})
    table = Table("image", "PSNR (dB)", "SSIM", box=None, pad_edge=False)
    for row in likeness:
        table.add_row(row["file"], f"{row['psnr']:.1f}", f"{row['ssim']:.3f}")
    Console().print(table)
    print_line(f"{seconds['with']:.1f} s with, {seconds['without']:.1f} s without, loading included")
    return likeness


def _likeness(with_: Sequence[ImageRow], without: Sequence[ImageRow], out_dir: Path) -> list[dict]:
    pairs = [
        (out_dir / "with" / a.file, out_dir / "without" / b.file)
        for a, b in zip(with_, without, strict=True)
        if a.status == b.status == "ok"
    ]
    if num_missing := len(with_) - len(pairs):
        say(f"{num_missing} of {len(with_)} pairs left out: an image of theirs failed")
    return [
        {
            "file": a.name,
            "psnr": float(psnr(load_pixels([a]), load_pixels([b]))),
            "ssim": float(ssim(load_pixels([a]), load_pixels([b]))),
        }
        for a, b in pairs
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default="")
    parser.add_argument("--graft", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--scheduler", default="dpm++")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--guidance-interval", type=float, nargs=2, default=(0.0, 1.0))
    parser.add_argument("--feature-cache", type=int, default=1)
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--vae", default="")
    parser.add_argument("--lora", action="append", default=[], help="FILE[:STRENGTH[:TEXT_STRENGTH]]")
    given = parser.parse_args(arguments)
    params = SamplingParams.build(
        {"seed": given.seed, "num_inference_steps": given.steps, "scheduler": given.scheduler}
        | {"loras": given.lora}
    )
    names = ("engine", "guidance_interval", "feature_cache", "quantize", "vae")
    inference = InferenceConfig.build({name: getattr(given, name) for name in names})
    options = GenerateOptions(base=given.base, inference=inference)
    encoders = {"graft" if given.graft else "teacher": given.graft}
    compare_approximations(given.prompts, params, encoders, given.out, options)


if __name__ == "__main__":
    main()
