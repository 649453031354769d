"""Labelled grids of images along named axes or of several text encoders."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from clipgraft.console import print_line
from clipgraft.errors import UserError
from clipgraft.files import write_bytes
from clipgraft.generation.contact_sheet import VARIANT_LABELS, Sheet, SheetCell, render_page, render_png
from clipgraft.generation.generate import GenerateOptions, generate
from clipgraft.generation.image_encoding import write_image
from clipgraft.generation.image_folder import ImageRow
from clipgraft.generation.requests import ImageRequest, image_requests, with_changes
from clipgraft.runs.run import GRAFT_NAMES
from clipgraft.sampling_params import SamplingParams
from clipgraft.scheduler_recipes import scheduler_name
from clipgraft.section import MAX_SEEDS

FLAGS = {"guidance": "guidance_scale", "steps": "num_inference_steps", "lora": "loras"}
"""Parameters that an axis may call by a shorter name."""
AXES = ("prompt", "seed", "guidance_scale", "num_inference_steps", "scheduler", "loras", "graft")
COST_ORDER = ("graft", "loras", "scheduler", "num_inference_steps", "guidance_scale", "prompt", "seed")
"""From outside to inside: neighbours with the same parameters share batches."""
LABELS = {"guidance_scale": "guidance", "num_inference_steps": "steps", "loras": "LoRA"}
GRID_NAME, PAGE_NAME = "grid.png", "grid.html"


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a grid: its values, each with a label."""

    name: str
    """One of AXES."""
    values: tuple[Any, ...]
    labels: tuple[str, ...]


def parse_axis(text: str) -> Axis:
    """Parse `NAME=VALUE,VALUE`, `prompt=A|B` or `seed=0-7`.

    Raises:
        UserError: If the name is unknown, or a value is not of its kind or comes twice.
    """
    given, equals, values = text.partition("=")
    name = FLAGS.get(given.strip(), given.strip())
    if not equals or name not in AXES:
        raise UserError(f"--axis takes NAME=VALUE,VALUE with a name of {', '.join(AXES)}; got {text!r}")
    parts = [part.strip() for part in values.split("|" if name == "prompt" else ",")]
    converters: dict[str, Callable[[Sequence[str]], Iterable[Any]]] = {
        "seed": _seeds,
        "num_inference_steps": partial(_numbers, int),
        "guidance_scale": partial(_numbers, float),
        "scheduler": partial(map, scheduler_name),
    }
    convert = converters.get(name, tuple)
    parsed: tuple[Any, ...] = tuple(convert([part for part in parts if part or name == "prompt"]))
    if not parsed:
        raise UserError(f"axis {name!r} has no value; give at least one")
    if len(set(parsed)) < len(parsed):
        raise UserError(f"axis {name!r} has a value twice: {values}")
    if name == "graft":
        return graft_axis(parse_encoders(parsed))
    if name == "loras":
        return _lora_axis(parsed)
    prefix = "" if name in ("prompt", "scheduler") else f"{LABELS.get(name, name)} "
    labels = (f"{value:g}" if name == "guidance_scale" else str(value) for value in parsed)
    return Axis(name, parsed, tuple(f"{prefix}{label}" for label in labels))


def _lora_axis(texts: Sequence[str]) -> Axis:
    """Return an axis of LoRAs, one at a time; `none` is without."""
    values = ["" if text == "none" else text for text in texts]
    found = [SamplingParams.build({"loras": value}).loras for value in values]
    labels = [
        " ".join(f"{Path(lora.file).stem} {lora.strength:g}" for lora in loras) or "no LoRA"
        for loras in found
    ]
    return Axis("loras", tuple(found), tuple(labels))


def graft_axis(encoders: Mapping[str, Path | None]) -> Axis:
    """Return an axis of graft folders, None for the base's text encoder."""
    return Axis("graft", tuple(encoders.items()), tuple(VARIANT_LABELS.get(name, name) for name in encoders))


def parse_encoders(texts: Sequence[str]) -> dict[str, Path | None]:
    """Parse text encoders: `NAME=FOLDER`, a folder, or `teacher`, the base's own.

    Raises:
        UserError: If one has another form, or two have the same name.
    """
    encoders: dict[str, Path | None] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        if not equals:  # the grafts of a run have equal names; their stages tell them apart
            name = path.resolve().parent.name if path.name in GRAFT_NAMES else path.name
        if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|') or (equals and not folder):
            raise UserError(f"a graft is given as NAME=FOLDER, FOLDER or teacher; got {text!r}")
        if name in encoders:
            raise UserError(f"two grafts are called {name!r}; give them as NAME=FOLDER")
        encoders[name] = None if str(path) == "teacher" else path
    return encoders


def compare(
    prompts: Sequence[str],
    params: SamplingParams,
    encoders: Mapping[str, Path | None],
    out_dir: Path,
    options: GenerateOptions,
) -> list[ImageRow]:
    """Compare text encoders on the same prompts and seeds, on one sheet.

    Args:
        prompts: What to generate.
        params: Of all images; `num_images_per_prompt` seeds are compared.
        encoders: Variants: by name a graft folder, or None for the base's own text encoder.
        out_dir: As in `generate_grid`, like the rest.
        options: How to generate.

    Raises:
        UserError: If there are fewer than two text encoders, or no prompt.
    """
    if len(encoders) < 2:
        raise UserError("fewer than two text encoders to compare; name --run, or --graft NAME=FOLDER twice")
    if not prompts:
        raise UserError("no prompt; give at least one text")
    seeds = range(params.seed, params.seed + params.num_images_per_prompt)
    axes = [
        graft_axis(encoders),
        Axis("seed", tuple(seeds), tuple(f"seed {number}" for number in seeds)),
        Axis("prompt", tuple(prompts), tuple(prompts)),
    ]
    title = "Text encoders side by side"
    return generate_grid(axes, params, out_dir, options, title=title, on_one_sheet=True)


def generate_grid(
    axes: Sequence[Axis],
    params: SamplingParams,
    out_dir: Path,
    options: GenerateOptions,
    *,
    prompt: str | None = None,
    graft: Path | None = None,
    title: str = "Grid",
    on_one_sheet: bool = False,
) -> list[ImageRow]:
    """Generate every combination of the axes' values.

    Args:
        axes: The first goes from left to right, the second down; each combination of further ones is a sheet
            of its own.
        params: Hold where no axis says otherwise.
        out_dir: Gets the images, `grid.png` (of several sheets `grid-1.png` and on) and `grid.html`.
        options: How to generate.
        prompt: What to generate, if no axis says.
        graft: The graft, if no axis says; None = the base's own text encoder.
        title: Of the page.
        on_one_sheet: Put the combinations of further axes below one another, on one sheet.

    Returns:
        Rows of `images.json`; none in a dry run.

    Raises:
        UserError: If an axis comes twice, or a value is not allowed.
    """
    names = [axis.name for axis in axes]
    if "prompt" not in names and prompt is None:
        raise UserError("no prompt; give at least one text")
    if len(set(names)) < len(names):
        raise UserError(f"an axis comes twice: {', '.join(names)}; give its values together")
    by_name = {axis.name: axis for axis in axes}
    encoders = dict(by_name["graft"].values) if "graft" in by_name else {"": graft}
    inner = [by_name[name] for name in COST_ORDER if name in by_name and name != "graft"]
    points = list(product(*(range(len(axis.values)) for axis in inner)))
    params = SamplingParams.of(params, num_images_per_prompt=1)
    requests = [_request(inner, point, prompt, params) for point in points]
    rows = generate(requests, encoders, out_dir, options)
    if not rows:
        return rows
    placed: dict[tuple[int, ...], ImageRow] = {}
    for variant in range(len(encoders)):
        for index, point in enumerate(points):
            position = dict(zip([axis.name for axis in inner], point, strict=True)) | {"graft": variant}
            placed[tuple(position[name] for name in names)] = rows[variant * len(requests) + index]
    sheets = _sheets(axes, placed, out_dir)
    if on_one_sheet:
        sheets = [_stacked(sheets)]
    if len(sheets) == 1:
        sheets = [replace(sheets[0], title=title)]
    _write_sheets(sheets, out_dir, title, _lead(axes, rows[0]), options)
    return rows


def write_grid(rows: Sequence[ImageRow], out_dir: Path, options: GenerateOptions) -> None:
    """Put images on one sheet, a row per prompt."""
    by_prompt: dict[str, list[ImageRow]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row)
    labels, lines = list(by_prompt), [[_cell(row, out_dir) for row in own] for own in by_prompt.values()]
    seeds, title = {tuple(row.seed for row in own) for own in by_prompt.values()}, ""
    if len(lines) == 1:
        title, labels = labels[0], []
        num_columns = math.ceil(len(lines[0]) ** 0.5)
        lines = [lines[0][index : index + num_columns] for index in range(0, len(lines[0]), num_columns)]
    columns = [""] * max(map(len, lines))
    if labels and len(seeds) == 1:
        columns = [f"seed {seed}" for seed in seeds.pop()]
    sheet = Sheet(title, columns, labels or [""] * len(lines), lines)
    write_image(render_png(sheet), out_dir / GRID_NAME)
    if not options.is_quiet:
        print_line(f"grid: {out_dir / GRID_NAME}")


def _request(
    axes: Sequence[Axis], point: Sequence[int], prompt: str | None, params: SamplingParams
) -> ImageRequest:
    values = {axis.name: axis.values[index] for axis, index in zip(axes, point, strict=True)}
    text = values.pop("prompt", prompt)
    [request] = image_requests([text], with_changes(params, values))
    return request


def _sheets(axes: Sequence[Axis], placed: Mapping[tuple[int, ...], ImageRow], folder: Path) -> list[Sheet]:
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
    """Stack sheets of the same columns; row labels name the sheet."""
    labels = [", ".join(filter(None, (sheet.title, label))) for sheet in sheets for label in sheet.row_labels]
    return Sheet("", sheets[0].column_labels, labels, [row for sheet in sheets for row in sheet.cells])


def _cell(row: ImageRow, folder: Path) -> SheetCell:
    return SheetCell(folder / row.file, row.status)


def _write_sheets(
    sheets: Sequence[Sheet], out_dir: Path, title: str, lead: str, options: GenerateOptions
) -> None:
    names = (
        [GRID_NAME] if len(sheets) == 1 else [f"grid-{number}.png" for number in range(1, len(sheets) + 1)]
    )
    for name, sheet in zip(names, sheets, strict=True):
        write_image(render_png(sheet), out_dir / name)
    write_bytes(out_dir / PAGE_NAME, render_page(title, lead, sheets).encode("utf-8"))
    if not options.is_quiet:
        for name in (*names, PAGE_NAME):
            print_line(f"grid: {out_dir / name}")


def _lead(axes: Sequence[Axis], row: ImageRow) -> str:
    """What is compared, and what all images have in common."""
    compared = ", ".join(f"{len(axis.values)} x {LABELS.get(axis.name, axis.name)}" for axis in axes)
    varied = {axis.name for axis in axes}
    names = {"negative_prompt", "seed", "num_inference_steps", "guidance_scale", "scheduler"} - varied
    shared = row.model_dump(include=names)
    words = [
        f"{LABELS.get(name, name).replace('_', ' ')} {shared[name]}" for name in shared if shared[name] != ""
    ]
    return f"{compared}. In common: {', '.join(words)}."


def _seeds(parts: Sequence[str]) -> list[int]:
    seeds: list[int] = []
    for part in parts:
        first, dash, last = part.partition("-")
        if not dash or not first:
            seeds += _numbers(int, [part])
            continue
        begin, end = _numbers(int, [first, last])
        if not 0 <= end - begin < MAX_SEEDS:
            raise UserError(f"seeds {part!r}: the second must be above the first, by less than {MAX_SEEDS}")
        seeds += range(begin, end + 1)
    return seeds


def _numbers(kind: type[int] | type[float], parts: Sequence[str]) -> list[Any]:
    try:
        return [kind(part) for part in parts]
    except ValueError:
        word = "whole number" if kind is int else "number"
        raise UserError(f"an axis has a value that is no {word}: {', '.join(parts)}") from None
