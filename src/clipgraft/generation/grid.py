"""Pictures along named axes, as a labelled grid in PNG and HTML."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from clipgraft.console import print_line
from clipgraft.errors import UserError
from clipgraft.files import write_bytes
from clipgraft.generation.contact_sheet import VARIANT_LABELS, Sheet, SheetCell, draw_sheet, render_sheets
from clipgraft.generation.generate import DrawOptions, generate
from clipgraft.generation.metadata import save_png
from clipgraft.generation.params import Job, make_jobs

AXES = ("prompt", "seed", "guidance", "steps", "scheduler", "graft")
WORDS = {"guidance": "guidance_scale"}
"""Words of `make_jobs` that an axis calls by another name."""
COST_ORDER = ("graft", "scheduler", "steps", "guidance", "prompt", "seed")
"""From outside to inside: neighbours with the same settings share batches, a text encoder is put in once."""
GRID_NAME, PAGE_NAME = "grid.png", "grid.html"
MAX_SEEDS = 10_000


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a grid and its values, each with the label it gets."""

    name: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]


def parse_axis(text: str) -> Axis:
    """Read `NAME=VALUE,VALUE,...`; prompts are divided by `|`, seeds may be a range `0-7`.

    Raises:
        ValueError: If the name is unknown, or a value is none of its kind or given twice.
    """
    name, equals, values = text.partition("=")
    name = name.strip()
    if not equals or name not in AXES:
        raise UserError(f"--axis takes NAME=VALUE,VALUE with a name of {', '.join(AXES)}; got {text!r}")
    parts = [part.strip() for part in values.split("|" if name == "prompt" else ",")]
    converters: dict[str, Callable[[Sequence[str]], Sequence[Any]]] = {
        "seed": _seeds,
        "steps": _integers,
        "guidance": _numbers,
    }
    convert = converters.get(name, tuple)
    parsed: tuple[Any, ...] = tuple(convert([part for part in parts if part or name == "prompt"]))
    if not parsed:
        raise UserError(f"axis {name!r} has no value; give at least one")
    if len(set(parsed)) < len(parsed):
        raise UserError(f"axis {name!r} has a value twice: {values}")
    if name == "graft":
        return graft_axis(parse_encoders(parsed))
    prefix = "" if name in ("prompt", "scheduler") else f"{name} "
    labels = (f"{value:g}" if name == "guidance" else str(value) for value in parsed)
    return Axis(name, parsed, tuple(f"{prefix}{label}" for label in labels))


def graft_axis(encoders: Mapping[str, Path | None]) -> Axis:
    """Axis of text encoders: by label a graft folder, or None for the base's own."""
    return Axis("graft", tuple(encoders.items()), tuple(VARIANT_LABELS.get(name, name) for name in encoders))


def parse_encoders(texts: Sequence[str]) -> dict[str, Path | None]:
    """Read text encoders: `NAME=FOLDER` or a folder alone; `teacher` in its place is the base's own.

    Raises:
        ValueError: If one has another form, or two have the same name.
    """
    encoders: dict[str, Path | None] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        if not equals:  # a run's grafts are all called so; their stages tell them apart
            name = path.resolve().parent.name if path.name == "graft" else path.name
        if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|') or (equals and not folder):
            raise UserError(f"a graft is given as NAME=FOLDER, FOLDER or teacher; got {text!r}")
        if name in encoders:
            raise UserError(f"two grafts are called {name!r}; give them as NAME=FOLDER")
        encoders[name] = None if str(path) == "teacher" else path
    return encoders


def draw_grid(
    axes: Sequence[Axis],
    settings: Mapping[str, Any],
    out_dir: Path,
    options: DrawOptions,
    *,
    graft: Path | None = None,
    title: str = "Grid",
    on_one_sheet: bool = False,
) -> list[dict[str, Any]]:
    """Draw every combination of the axes' values.

    Args:
        axes: The first one goes from left to right, the second one down; each combination of further ones is
            a sheet of its own.
        settings: Words of `make_jobs` for what no axis says.
        out_dir: Gets the pictures, `grid.png` (of several sheets `grid-1.png` and on) and `grid.html`.
        options: How to draw.
        graft: Where no axis names grafts, the one to draw with; None = the base's own text encoder.
        title: Of the page.
        on_one_sheet: Put the combinations of further axes below one another, on one sheet.

    Returns:
        Rows of `images.json`; none in a dry run.

    Raises:
        ValueError: If an axis comes twice, or a value is not allowed.
    """
    names = [axis.name for axis in axes]
    if "prompt" not in {*names, *settings}:
        raise UserError("no prompt to draw; give at least one text")
    if len(set(names)) < len(names):
        raise UserError(f"an axis comes twice: {', '.join(names)}; give its values together")
    by_name = {axis.name: axis for axis in axes}
    encoders = dict(by_name["graft"].values) if "graft" in by_name else {"": graft}
    inner = [by_name[name] for name in COST_ORDER if name in by_name and name != "graft"]
    points = list(product(*(range(len(axis.values)) for axis in inner)))
    jobs = [_job(inner, point, settings) for point in points]
    rows = generate(jobs, encoders, out_dir, options)
    if not rows:
        return rows
    placed: dict[tuple[int, ...], dict[str, Any]] = {}
    for column in range(len(encoders)):
        for index, point in enumerate(points):
            position = dict(zip([axis.name for axis in inner], point, strict=True)) | {"graft": column}
            placed[tuple(position[name] for name in names)] = rows[column * len(jobs) + index]
    sheets = _sheets(axes, placed, out_dir)
    if on_one_sheet:
        sheets = [_stacked(sheets)]
    if len(sheets) == 1:
        sheets = [replace(sheets[0], title=title)]
    drawn = {"steps": rows[0]["num_inference_steps"], "guidance_scale": rows[0]["guidance_scale"]}
    _write_sheets(sheets, out_dir, title, _lead(axes, {**settings, **drawn}), options)
    return rows


def write_grid(
    jobs: Sequence[Job], rows: Sequence[dict[str, Any]], out_dir: Path, options: DrawOptions
) -> None:
    """Put pictures on one sheet: a row for each prompt, of one prompt as near to a square as may be."""
    by_prompt: dict[str, list[SheetCell]] = {}
    for job, row in zip(jobs, rows, strict=True):
        by_prompt.setdefault(job.prompt, []).append(_cell(row, out_dir))
    labels, lines = list(by_prompt), list(by_prompt.values())
    title = ""
    if len(lines) == 1:
        title, labels = labels[0], []
        num_columns = math.ceil(len(lines[0]) ** 0.5)
        lines = [lines[0][index : index + num_columns] for index in range(0, len(lines[0]), num_columns)]
    columns = [""] * max(map(len, lines))
    sheet = Sheet(title, columns, labels or [""] * len(lines), lines)
    save_png(draw_sheet(sheet), out_dir / GRID_NAME, None)
    if not options.is_quiet:
        print_line(f"grid: {out_dir / GRID_NAME}")


def _job(axes: Sequence[Axis], point: Sequence[int], settings: Mapping[str, Any]) -> Job:
    values = {
        WORDS.get(axis.name, axis.name): axis.values[index] for axis, index in zip(axes, point, strict=True)
    }
    return make_jobs(**{**settings, **values})[0]


def _sheets(
    axes: Sequence[Axis], placed: Mapping[tuple[int, ...], dict[str, Any]], folder: Path
) -> list[Sheet]:
    across, down, *others = [*axes, *[Axis("", ("",), ("",))] * max(0, 2 - len(axes))]
    sheets = []
    for outer in product(*(range(len(axis.values)) for axis in others)):
        cells = [
            [
                _cell(placed[(column, row, *outer)[: len(axes)]], folder)
                for column in range(len(across.values))
            ]
            for row in range(len(down.values))
        ]
        title = ", ".join(axis.labels[index] for axis, index in zip(others, outer, strict=True))
        sheets.append(Sheet(title, across.labels, down.labels, cells))
    return sheets


def _stacked(sheets: Sequence[Sheet]) -> Sheet:
    """Sheets of the same columns below one another; each row says which sheet it is from."""
    labels = [", ".join(filter(None, (sheet.title, label))) for sheet in sheets for label in sheet.row_labels]
    return Sheet("", sheets[0].column_labels, labels, [row for sheet in sheets for row in sheet.cells])


def _cell(row: Mapping[str, Any], folder: Path) -> SheetCell:
    return SheetCell(folder / row["file"], row["status"])


def _write_sheets(
    sheets: Sequence[Sheet], out_dir: Path, title: str, lead: str, options: DrawOptions
) -> None:
    names = (
        [GRID_NAME] if len(sheets) == 1 else [f"grid-{number}.png" for number in range(1, len(sheets) + 1)]
    )
    for name, sheet in zip(names, sheets, strict=True):
        save_png(draw_sheet(sheet), out_dir / name, None)
    write_bytes(out_dir / PAGE_NAME, render_sheets(title, lead, sheets).encode("utf-8"))
    if not options.is_quiet:
        for name in (*names, PAGE_NAME):
            print_line(f"grid: {out_dir / name}")


def _lead(axes: Sequence[Axis], settings: Mapping[str, Any]) -> str:
    """What is compared, and what all pictures have in common."""
    compared = ", ".join(f"{len(axis.values)} x {axis.name}" for axis in axes)
    varied = {WORDS.get(axis.name, axis.name) for axis in axes}
    shared = [
        f"{name.replace('_', ' ')} {value}"
        for name, value in settings.items()
        if name in ("negative_prompt", "seed", "steps", "guidance_scale", "scheduler")
        and name not in varied
        and value != ""
    ]
    return f"{compared}. In common: {', '.join(shared)}."


def _seeds(parts: Sequence[str]) -> list[int]:
    seeds: list[int] = []
    for part in parts:
        first, dash, last = part.partition("-")
        if not dash or not first:
            seeds += _integers([part])
            continue
        begin, end = _integers([first, last])
        if not 0 <= end - begin < MAX_SEEDS:
            raise UserError(f"seeds {part!r}: the second is to be above the first, by less than {MAX_SEEDS}")
        seeds += range(begin, end + 1)
    return seeds


def _integers(parts: Sequence[str]) -> list[int]:
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise UserError(f"an axis has a value that is no whole number: {', '.join(parts)}") from None


def _numbers(parts: Sequence[str]) -> list[float]:
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise UserError(f"an axis has a value that is no number: {', '.join(parts)}") from None
