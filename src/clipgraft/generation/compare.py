"""The same prompts and seeds drawn with several text encoders, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipgraft.errors import MissingFileError, UserError
from clipgraft.generation.generate import DrawOptions
from clipgraft.generation.grid import Axis, draw_grid, graft_axis
from clipgraft.runs.run import GRAFT_STAGES, run_encoders


def compare(
    prompts: Sequence[str],
    seed: int,
    num_images: int,
    encoders: Mapping[str, Path | None],
    settings: Mapping[str, Any],
    out_dir: Path,
    options: DrawOptions,
) -> list[dict[str, Any]]:
    """Draw prompts and seeds with each text encoder.

    Args:
        prompts: What to draw.
        seed: Of each prompt's first picture; the next ones count up.
        num_images: Pictures a prompt.
        encoders: Columns: by name a graft folder, or None for the base's own text encoder.
        settings: Other words of `make_jobs`.
        out_dir: Gets the pictures, a labelled sheet as PNG and a page.
        options: How to draw.

    Returns:
        Rows of `images.json`; none in a dry run.

    Raises:
        ValueError: If there are fewer than two columns, or no prompt or picture of one.
    """
    if len(encoders) < 2:
        raise UserError("fewer than two text encoders to compare; name --run, or --graft NAME=FOLDER twice")
    if num_images < 1:
        raise UserError(f"num_images must be at least 1; got {num_images}")
    if not prompts:
        raise UserError("no prompt to draw; give at least one text")
    seeds = range(seed, seed + num_images)
    axes = [
        graft_axis(encoders),
        Axis("seed", tuple(seeds), tuple(f"seed {number}" for number in seeds)),
        Axis("prompt", tuple(prompts), tuple(prompts)),
    ]
    title = "Text encoders side by side"
    return draw_grid(axes, settings, out_dir, options, title=title, on_one_sheet=True)


def encoders_of_run(folder: Path) -> dict[str, Path | None]:
    """Text encoders that a run has: the base's own, and the graft of each of its stages.

    Raises:
        FileNotFoundError: If there is no such folder, or no graft in it.
    """
    encoders = run_encoders(folder)
    if len(encoders) == 1:
        raise MissingFileError(
            f"{folder} is no run with a graft (no {', '.join(GRAFT_STAGES.values())}); name the folder of "
            "`clipgraft run` or `demo`"
        )
    return encoders
