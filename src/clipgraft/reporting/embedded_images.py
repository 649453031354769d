"""Images embedded in a page: grouped by prompt, and small enough together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipgraft.errors import DataError
from clipgraft.generation.contact_sheet import FAILURES, MAX_BYTES, VARIANT_LABELS, embed_image

MAX_IMAGES = 60
"""Limit per page: further prompts are left out, and the page says so."""


@dataclass(frozen=True, slots=True)
class PageImage:
    """An image to show, as the run's files describe it."""

    prompt: str
    file: str
    path: Path | None
    """None if the file lies outside the run."""
    negative_prompt: str = ""
    seed: int | None = None
    settings: str = ""
    """Steps, guidance and size in words."""
    variant: str = ""
    """Name of the text encoder; empty if only one was used."""
    status: str = "ok"
    caption: str = ""
    """Shown below the image, such as its score."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One image on the page."""

    label: str
    """Variant or seed; empty for a single image."""
    source: str
    """Data URI; empty if the file cannot be shown."""
    note: str
    """What went wrong, or ""."""
    width: int = 0
    height: int = 0
    variant: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True)
class PromptImages:
    """Images of one prompt, or variants of one prompt and seed."""

    prompt: str
    negative_prompt: str
    settings: str
    cells: tuple[Cell, ...]


def group_images(images: Sequence[PageImage], max_bytes: int = MAX_BYTES) -> tuple[list[PromptImages], int]:
    """Group images by prompt and embed their files.

    If they name variants, each prompt and seed is a group with the variants side by side.

    Args:
        images: In the order of the run's files.
        max_bytes: Limit for all files together.

    Returns:
        Groups in the order of their first image, and the number of images left out.
    """
    has_variants = any(image.variant for image in images)
    groups: dict[tuple[str, int | None], list[PageImage]] = {}
    for image in images:
        groups.setdefault((image.prompt, image.seed if has_variants else None), []).append(image)
    shown: list[list[PageImage]] = []
    room = MAX_IMAGES
    for group in groups.values():
        if room > 0:
            shown.append(group[:room])
            room -= len(shown[-1])
    num_shown = sum(len(group) for group in shown)
    share = max_bytes // max(1, num_shown)
    return [_embed_group(group, share) for group in shown], len(images) - num_shown


def _embed_group(images: Sequence[PageImage], max_bytes: int) -> PromptImages:
    first = images[0]
    seeds = {image.seed for image in images}
    seed = f"seed {first.seed}" if len(seeds) == 1 and first.seed is not None else ""
    return PromptImages(
        prompt=first.prompt,
        negative_prompt=first.negative_prompt,
        settings=", ".join(filter(None, (seed, first.settings))),
        cells=tuple(_cell(image, max_bytes, is_alone=len(images) == 1) for image in images),
    )


def _cell(image: PageImage, max_bytes: int, *, is_alone: bool) -> Cell:
    label = VARIANT_LABELS.get(image.variant, image.variant)
    if not label and not is_alone:
        label = f"seed {'unknown' if image.seed is None else image.seed}"
    note = "" if image.status == "ok" else FAILURES.get(image.status, image.status)
    if image.path is None:
        return Cell(label, "", f"{image.file} lies outside the run's folder and is not shown")
    try:
        source, width, height = embed_image(image.path, max_bytes)
    except FileNotFoundError:
        return Cell(label, "", note or f"{image.file} is missing")
    except DataError as error:
        return Cell(label, "", str(error).replace(str(image.path), image.file))
    return Cell(label, source, note, width, height, image.variant, image.caption)
