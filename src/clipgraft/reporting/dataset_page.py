"""A check of a dataset as one self-contained page with images."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from clipgraft.data.check import DatasetCheck
from clipgraft.data.dataset import SPLITS, CaptionedImage
from clipgraft.data.findings import Example, Finding
from clipgraft.data.images import open_image
from clipgraft.errors import DataError, MissingFileError, UserError, number_of, printable
from clipgraft.files import write_bytes
from clipgraft.generation.contact_sheet import fill_template

NUM_SAMPLES = 24
MAX_EXAMPLES, MAX_IMAGES = 6, 4
"""Examples of a finding on the page, and images of an example: 3 MB at most with findings of all kinds."""
MAX_CAPTIONS = 5
"""Captions shown of an image."""
SIDE, QUALITY = 320, 80
"""Longest side in pixels, and JPEG quality, of the images on the page."""
GENERATOR = "clipgraft data check"
_MARK = f'<meta name="generator" content="{GENERATOR}">'


@dataclass(frozen=True, slots=True)
class ShownImage:
    """One image on the page."""

    name: str
    split: str
    captions: tuple[str, ...]
    num_more: int
    """Captions that are not shown."""
    source: str
    """Data URI; empty if the image cannot be shown."""
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ShownExample:
    """One example of a finding."""

    text: str
    images: tuple[ShownImage, ...]


@dataclass(frozen=True, slots=True)
class ShownFinding:
    """A finding with some of its examples."""

    summary: str
    effect: str
    examples: tuple[ShownExample, ...]
    num_more: int


def check_place(file: Path) -> None:
    """Refuse a file that is no page of an earlier check.

    Raises:
        UserError: If it has another suffix, is a folder, or is there and was written by something else.
    """
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--sheet {file}: expected the name of a page, such as sheet.html")
    if file.is_dir() or (file.is_file() and _MARK not in file.read_text("utf-8", "replace")[:2000]):
        raise UserError(f"{file} is there and no sheet of `data check`; name another file")


def write_page(check: DatasetCheck, file: Path) -> None:
    """Write the page of a check in place of an earlier one."""
    check_place(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, render_page(check).encode())


def render_page(check: DatasetCheck) -> str:
    """Return the page's HTML."""
    counts = check.counts
    num_images, num_captions = (
        sum(counts[split].get(kind, 0) for split in SPLITS) for kind in ("images", "captions")
    )
    splits = ", ".join(f"{counts[split]['images']:,} {split}" for split in SPLITS)
    return fill_template(
        "dataset.html.j2",
        ("report.css", "dataset.css"),
        generator=GENERATOR,
        title=printable(Path(check.root).name or check.root),
        lead=f"{number_of(num_images, 'image')} with {number_of(num_captions, 'caption')}: {splits}.",
        facts={
            "read as": check.format,
            **{role: name for role, name in check.files.items() if role != name},
            "splits": check.split_rule,
            "captions per image": ", ".join(
                f"{count:,} with {size}" for size, count in check.captions_per_image.items()
            ),
            "words per caption": f"{check.caption_words}; {check.vocabulary_size:,} different words",
        },
        notes=(*check.notes, *(f"not measured: {what}" for what in check.not_measured)),
        excluded=check.excluded,
        findings=[_shown_finding(finding) for finding in check.findings],
        samples=[_shown_image(image) for image in check.samples],
    )


def _shown_finding(finding: Finding) -> ShownFinding:
    examples = tuple(_shown_example(example) for example in finding.examples[:MAX_EXAMPLES])
    return ShownFinding(finding.summary, finding.effect, examples, finding.count - len(examples))


def _shown_example(example: Example) -> ShownExample:
    return ShownExample(printable(example.text), tuple(map(_shown_image, example.images[:MAX_IMAGES])))


def _shown_image(image: CaptionedImage) -> ShownImage:
    captions = tuple(map(printable, image.captions[:MAX_CAPTIONS]))
    name, num_more = printable(image.image_id), len(image.captions) - len(captions)
    try:
        source, width, height = _thumbnail(image)
    except (DataError, MissingFileError) as error:
        problem = printable(str(error).removeprefix(f"{image.file}: "))
        return ShownImage(name, image.split, captions, num_more, "", problem=problem)
    return ShownImage(name, image.split, captions, num_more, source, width, height)


def _thumbnail(image: CaptionedImage) -> tuple[str, int, int]:
    """Return an image as data URI, with its width and height there."""
    pixels, content = open_image(image.file), io.BytesIO()
    pixels.thumbnail((SIDE, SIDE))
    pixels.save(content, "JPEG", quality=QUALITY)
    encoded = base64.b64encode(content.getvalue()).decode("ascii")
    return f"data:image/jpeg;base64,{encoded}", pixels.width, pixels.height
