"""Contact sheets: images in a labelled grid, as PNG and as page."""

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from clipgraft.data.images import open_image

MAX_SHEET_PIXELS = 40_000_000
"""Of all images of a PNG; if they have more, they are scaled down. Viewers open 7000 x 6000."""
MAX_LINES = 4
MAX_BYTES = 1_600_000
"""Bytes of all images together: 2.2 MB as base64, so that the page stays under 5 MB."""
SMALLER_SIDES = (1024, 768, 512, 384, 256, 128, 64)
"""Longest sides in pixels that are tried for an image above its share, in this order."""
JPEG_QUALITY = 85
VARIANT_LABELS = {
    "teacher": "the base's own text encoder",
    "before": "CLIP before fine-tuning",
    "after": "CLIP after fine-tuning",
    "refined": "CLIP after fine-tuning, graft refined",
    "distilled": "the base's text encoder, distilled",
}
FAILURES = {
    "failed_nan": "failed: NaN values",
    "failed_black": "failed: all black",
    "blocked": "blocked by the base's safety checker",
}
TEMPLATES_DIR = Path(__file__).parents[1] / "templates"
INK, QUIET, PAPER, HOLE = "#1c1f24", "#626a76", "#ffffff", "#e4e7ec"


@dataclass(frozen=True, slots=True)
class SheetCell:
    """One image of a sheet."""

    path: Path
    status: str = "ok"
    """As `GeneratedImage.status`; only of "ok" there is a file."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """Images in rows and columns, each with a label."""

    title: str
    column_labels: Sequence[str]
    row_labels: Sequence[str]
    cells: Sequence[Sequence[SheetCell]]
    """By row, then by column."""


def render_png(sheet: Sheet) -> Image.Image:
    """Render a sheet as one image; its largest image sets the cells."""
    width, height = _cell_size(sheet)
    size = max(12, min(28, width // 12))
    font = _font(size)
    gap = max(4, width // 32)
    longest = max((font.getlength(label) for label in sheet.row_labels), default=0)
    left = min(max(width, 9 * size), math.ceil(longest) + 2 * gap) if longest else 0
    column_width = width - size // 2  # else a label may touch its neighbour
    top = _block_height(sheet.column_labels, column_width, font) + gap
    title_height = _block_height([sheet.title], left + len(sheet.column_labels) * (width + gap), font) + gap
    canvas = Image.new(
        "RGB",
        (
            left + len(sheet.column_labels) * (width + gap) + gap,
            title_height + top + len(sheet.row_labels) * (height + gap) + gap,
        ),
        PAPER,
    )
    pen = ImageDraw.Draw(canvas)
    pen.multiline_text((gap, gap), _wrapped(sheet.title, canvas.width - 2 * gap, font), fill=INK, font=font)
    for column, label in enumerate(sheet.column_labels):
        x = left + gap + column * (width + gap)
        pen.multiline_text(
            (x, title_height + gap // 2), _wrapped(label, column_width, font), fill=QUIET, font=font
        )
    for row, label in enumerate(sheet.row_labels):
        y = title_height + top + row * (height + gap)
        pen.multiline_text((gap, y), _wrapped(label, left - gap, font), fill=QUIET, font=font)
        for column, cell in enumerate(sheet.cells[row]):
            x = left + gap + column * (width + gap)
            _paste(canvas, cell, (x, y), (width, height), font)
    return canvas


def render_page(title: str, lead: str, sheets: Sequence[Sheet]) -> str:
    """Render sheets as a page with a title and a lead sentence.

    The images are embedded, scaled down if they are many.
    """
    cells = [cell for sheet in sheets for row in sheet.cells for cell in row]
    share = MAX_BYTES // max(1, len(cells))
    return fill_template(
        "sheet.html.j2",
        ("report.css", "sheet.css"),
        title=title,
        lead=lead,
        sheets=sheets,
        sources={cell.path: embed_image(cell.path, share) for cell in cells if cell.status == "ok"},
        notes=FAILURES,
    )


def fill_template(template: str, styles: Sequence[str], **values: Any) -> str:
    """Fill the template of a page.

    It gets `style`, the named files, and `style_hash` for its policy.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES_DIR),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup("".join((TEMPLATES_DIR / name).read_text("utf-8") for name in styles))
    return environment.get_template(template).render(style=style, style_hash=policy_hash(style), **values)


def policy_hash(text: str) -> str:
    """Return the hash by which a content security policy allows a text."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _cell_size(sheet: Sheet) -> tuple[int, int]:
    paths = [cell.path for row in sheet.cells for cell in row]
    sizes = [_size_of(path) for path in paths if path.is_file()] or [(128, 128)]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    factor = min(1.0, (MAX_SHEET_PIXELS / (width * height * max(1, len(paths)))) ** 0.5)
    return max(16, int(width * factor)), max(16, int(height * factor))


def _size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def _paste(
    canvas: Image.Image,
    cell: SheetCell,
    corner: tuple[int, int],
    size: tuple[int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    if cell.status == "ok" and cell.path.is_file():
        with Image.open(cell.path) as image:
            fitted = image.convert("RGB")
        fitted.thumbnail(size)
        canvas.paste(fitted, corner)
        return
    canvas.paste(HOLE, (*corner, corner[0] + size[0], corner[1] + size[1]))
    note = _wrapped(FAILURES.get(cell.status, cell.status), size[0] - font.size, font)
    ImageDraw.Draw(canvas).multiline_text(
        (corner[0] + font.size // 2, corner[1] + font.size // 2), note, fill=INK, font=font
    )


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic and more."""
    import matplotlib  # for sheets alone

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _block_height(labels: Sequence[str], width: float, font: ImageFont.FreeTypeFont) -> int:
    """Height in pixels of the highest label."""
    num_lines = max((_wrapped(label, width, font).count("\n") + 1 for label in labels if label), default=0)
    return round(num_lines * font.size * 1.35)


def _wrapped(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """Wrap a text to a width, cut after MAX_LINES lines."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + "\N{HORIZONTAL ELLIPSIS}"]
    return "\n".join(_cut(line, width, font) for line in lines)


def _cut(line: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "\N{HORIZONTAL ELLIPSIS}") > width:
        line = line[:-1]
    return line + "\N{HORIZONTAL ELLIPSIS}"


def embed_image(path: Path, max_bytes: int) -> tuple[str, int, int]:
    """Return an image as data URI, reduced to JPEG if large.

    Args:
        path: A PNG, JPEG or WebP file.
        max_bytes: Bound before base64, which adds a third.

    Returns:
        The data URI, and the image's own width and height in pixels.

    Raises:
        FileNotFoundError: If there is no such file.
        DataError: If it cannot be read as an image.
    """
    image = open_image(path)
    content = path.read_bytes()
    if len(content) > max_bytes:
        content = _smaller_jpeg(image, max_bytes)
    encoded = base64.b64encode(content).decode("ascii")
    return f"data:{_media_type(content)};base64,{encoded}", image.width, image.height


def _smaller_jpeg(image: Image.Image, max_bytes: int) -> bytes:
    """The largest JPEG that fits, else the smallest one tried."""
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
