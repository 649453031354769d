"""A run's pictures, made ready to lie inside one page: grouped by prompt, and small enough in all."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from clipgraft.data.images import open_image
from clipgraft.errors import DataError

MAX_PICTURES = 60
"""Pictures on a page; of a run with more, the first prompts are shown, and the page says so."""
MAX_BYTES = 1_600_000
"""Of a run's own pictures together: 2.2 MB as base64, so that the whole page stays under 5 MB."""
SMALLER_SIDES = (1024, 768, 512, 384, 256, 128, 64)
"""Longest side in pixels that a picture over its share is tried with, in this order."""
JPEG_QUALITY = 85
COLUMN_LABELS = {
    "teacher": "the base's own text encoder",
    "before": "CLIP before fine-tuning",
    "after": "CLIP after fine-tuning",
    "refined": "CLIP after fine-tuning, graft refined",
}
STATUS_NOTES = {
    "failed_nan": "failed: the values were no numbers",
    "failed_black": "failed: nothing but black",
    "blocked": "blocked by the base's safety checker",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture on the page."""

    label: str
    """What tells it from its neighbours: a column's name or a seed; empty where it stands alone."""
    source: str
    """Data URI; empty where the file cannot be shown."""
    note: str
    """What went wrong; empty where nothing did."""
    width: int = 0
    height: int = 0
    column: str = ""
    """Name of the column in the files."""
    caption: str = ""
    """What stands below it, such as its score."""


@dataclass(frozen=True, slots=True)
class PromptPictures:
    """The pictures of one prompt, or of one prompt and seed where columns are compared."""

    prompt: str
    negative_prompt: str
    settings: str
    cells: tuple[Cell, ...]


def group_pictures(
    rows: Sequence[dict[str, Any]], max_bytes: int = MAX_BYTES
) -> tuple[list[PromptPictures], int]:
    """Group the rows of `images.json` by prompt and embed their files.

    Where rows name a `column`, each prompt and seed is a group, with a picture a column side by side.

    Args:
        rows: What `read_run` gave.
        max_bytes: The most that the files of all may be together.

    Returns:
        The groups, in the order of their first picture, and how many pictures they leave out.
    """
    has_columns = any(row.get("column") for row in rows)
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        seed = str(row.get("seed", "")) if has_columns else ""
        groups.setdefault((str(row.get("prompt", "")), seed), []).append(row)
    shown: list[list[dict[str, Any]]] = []
    room = MAX_PICTURES
    for group in groups.values():
        if room > 0:
            shown.append(group[:room])
            room -= len(shown[-1])
    num_shown = sum(len(group) for group in shown)
    share = max_bytes // max(1, num_shown)
    return [_prompt_pictures(group, share) for group in shown], len(rows) - num_shown


def embed_picture(path: Path, max_bytes: int) -> tuple[str, int, int]:
    """Make a data URI of a picture: its own bytes where they are few enough, else a smaller JPEG.

    Args:
        path: A PNG, JPEG or WebP file.
        max_bytes: The most that its bytes may be, before base64 makes them a third more.

    Returns:
        The data URI, and the picture's own width and height in pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it cannot be read as a picture.
    """
    image = open_image(path)
    content = path.read_bytes()
    if len(content) > max_bytes:
        content = _smaller_jpeg(image, max_bytes)
    encoded = base64.b64encode(content).decode("ascii")
    return f"data:{_media_type(content)};base64,{encoded}", image.width, image.height


def _smaller_jpeg(image: Image.Image, max_bytes: int) -> bytes:
    """The largest JPEG that fits; the smallest one tried where none does."""
    for side in (max(image.size), *(side for side in SMALLER_SIDES if side < max(image.size))):
        smaller, content = image.copy(), io.BytesIO()
        smaller.thumbnail((side, side))
        smaller.save(content, "JPEG", quality=JPEG_QUALITY)
        if content.tell() <= max_bytes:
            break
    return content.getvalue()


def _media_type(content: bytes) -> str:
    if content.startswith(b"\x89PNG"):
        return "image/png"
    return "image/jpeg" if content.startswith(b"\xff\xd8") else "image/webp"


def _prompt_pictures(rows: Sequence[dict[str, Any]], max_bytes: int) -> PromptPictures:
    first = rows[0]
    seeds = list(dict.fromkeys(row.get("seed") for row in rows))
    return PromptPictures(
        prompt=str(first.get("prompt", "")),
        negative_prompt=str(first.get("negative_prompt") or ""),
        settings=_describe_settings(first, seeds),
        cells=tuple(_cell(row, max_bytes, is_alone=len(rows) == 1) for row in rows),
    )


def _describe_settings(row: dict[str, Any], seeds: Sequence[Any]) -> str:
    parts = []
    if len(seeds) == 1 and seeds[0] is not None:
        parts.append(f"seed {seeds[0]}")
    if row.get("num_inference_steps"):
        parts.append(f"{row['num_inference_steps']} steps")
    if row.get("guidance_scale"):
        parts.append(f"guidance {row['guidance_scale']}")
    if row.get("width") and row.get("height"):
        parts.append(f"{row['width']} x {row['height']} pixels")
    return ", ".join(parts)


def _cell(row: dict[str, Any], max_bytes: int, *, is_alone: bool) -> Cell:
    column = str(row.get("column") or "")
    label = COLUMN_LABELS.get(column, column) or ("" if is_alone else f"seed {row.get('seed', 'unknown')}")
    status = str(row.get("status", "ok"))
    note = "" if status == "ok" else STATUS_NOTES.get(status, status)
    if row.get("path") is None:
        return Cell(label, "", f"{row['file']} lies outside the run's folder and is not shown")
    try:
        source, width, height = embed_picture(row["path"], max_bytes)
    except FileNotFoundError:
        return Cell(label, "", note or f"{row['file']} is missing")
    except DataError as error:
        return Cell(label, "", str(error).replace(str(row["path"]), row["file"]))
    return Cell(label, source, note, width, height, column, str(row.get("caption") or ""))
