"""What shortcuts gain and what they cost: the same prompts and seeds with and without them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from clipgraft.console import say
from clipgraft.errors import UserError
from clipgraft.evaluation.metrics.image_similarity import psnr, ssim
from clipgraft.evaluation.scores import load_pixels
from clipgraft.files import write_json
from clipgraft.generation.engines.options import SpeedOptions
from clipgraft.generation.generate import DrawOptions, Stopped, generate, shortcuts_of
from clipgraft.generation.params import Job

RESULT_NAME = "shortcuts.json"


def compare_shortcuts(
    jobs: Sequence[Job], encoders: Mapping[str, Path | None], out_dir: Path, options: DrawOptions
) -> list[dict[str, Any]]:
    """Draw jobs with their shortcuts and without, and print time, PSNR and SSIM between.

    Args:
        jobs: What to draw.
        encoders: The one column of pictures.
        out_dir: Gets the folders `with` and `without`, and `shortcuts.json`.
        options: How to draw.

    Returns:
        Rows of both, those with shortcuts first; none in a dry run, and in all processes but the first.

    Raises:
        ValueError: If there is no shortcut to compare.
        Stopped: At Ctrl-C, where this is the only process.
    """
    if not shortcuts_of(jobs, options.speed):
        raise UserError(
            "nothing to compare: no shortcut is named; add --scheduler, --steps, --reference, "
            "--guidance-interval, --feature-cache or --lora"
        )
    plain = replace(SpeedOptions(), engine=options.speed.engine, compile=options.speed.compile)
    plain_jobs = [_without(job) for job in jobs]
    rows: dict[str, list[dict[str, Any]]] = {}
    seconds = {}
    for name, own_jobs, speed in (("with", jobs, options.speed), ("without", plain_jobs, plain)):
        begun = time.perf_counter()
        try:
            rows[name] = generate(own_jobs, encoders, out_dir / name, replace(options, speed=speed))
        except Stopped as stop:
            raise Stopped(_all_rows(rows | {name: stop.rows})) from stop
        seconds[name] = time.perf_counter() - begun
    if rows["with"]:
        likeness = _likeness(rows["with"], rows["without"], out_dir)
        write_json(out_dir / RESULT_NAME, {"seconds": seconds, "pictures": likeness})
        if not options.is_quiet:
            _print(likeness, seconds)
    return _all_rows(rows)


def _all_rows(rows: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [row | {"file": f"{name}/{row['file']}"} for name, own in rows.items() for row in own]


def _likeness(
    with_rows: Sequence[Mapping[str, Any]], without_rows: Sequence[Mapping[str, Any]], out_dir: Path
) -> list[dict[str, Any]]:
    """PSNR and SSIM of each pair whose pictures are both there."""
    pairs = [
        (out_dir / "with" / str(a["file"]), out_dir / "without" / str(b["file"]))
        for a, b in zip(with_rows, without_rows, strict=True)
        if a["status"] == b["status"] == "ok"
    ]
    num_lacking = len(with_rows) - len(pairs)
    if num_lacking:
        say(f"{num_lacking} of {len(with_rows)} pairs left out: a picture of theirs is not there")
    return [
        {
            "file": a.name,
            "psnr": float(psnr(load_pixels([a]), load_pixels([b]))),
            "ssim": float(ssim(load_pixels([a]), load_pixels([b]))),
        }
        for a, b in pairs
    ]


def _without(job: Job) -> Job:
    return replace(job, scheduler=Job("").scheduler, num_inference_steps=None)


def _print(likeness: Sequence[Mapping[str, Any]], seconds: Mapping[str, float]) -> None:
    table = Table("picture", "PSNR (dB)", "SSIM", box=None, pad_edge=False)
    for row in likeness:
        table.add_row(row["file"], f"{row['psnr']:.1f}", f"{row['ssim']:.3f}")
    Console().print(table)
    Console().print(
        f"{seconds['with']:.1f} s with, {seconds['without']:.1f} s without, loading included", highlight=False
    )
