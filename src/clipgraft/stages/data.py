"""Captioned images: reading, checking and drawing them."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from clipgraft.config import DataSettings
from clipgraft.data.check import check_source, render, to_json
from clipgraft.data.crops import Crops, cut_crops
from clipgraft.data.flatland import draw_flatland8k
from clipgraft.data.readers import read_source
from clipgraft.data.records import CaptionedImage, Source, Split
from clipgraft.data.transforms import ImageProcessor
from clipgraft.models.clip import load_clip
from clipgraft.progress import track
from clipgraft.runtime import cache_dir, quiet_libraries

FLATLAND8K_SEED = 0
"""Of the set that an empty `data.source` stands for."""


def load_source(settings: DataSettings) -> Source:
    """Read the captioned images that the settings name; flatland8k, drawn once, where they name none."""
    path = Path(settings.source) if settings.source else _flatland8k()
    return read_source(path, include_unsplit=settings.include_unsplit)


def select(source: Source, split: Split, limit: int) -> tuple[CaptionedImage, ...]:
    """Images of a split; the first `limit` of them where it is not 0."""
    return source.in_split(split)[: limit or None]


def load_crops(images: Sequence[CaptionedImage], processor: ImageProcessor) -> Crops:
    """CLIP's crops of images, from the disk where they were cut before."""
    paths = [image.path for image in images]
    with track("reading images", len(paths)) as update:
        return cut_crops(paths, processor, cache_dir() / "crops", lambda done: update(done, "decoded"))


def check_data(path: Path, *, include_unsplit: bool, clip: str, as_json: bool) -> None:
    """Print what a source holds and what was left out of it, and why."""
    source = read_source(path, include_unsplit=include_unsplit)
    quiet_libraries()
    check = check_source(source, tokenizer=load_clip(clip).tokenizer if clip else None)
    if as_json:
        print(to_json(check))  # noqa: T201
    else:
        Console().print(render(check))


def draw_data(out_dir: Path, *, seed: int, num_images: int) -> None:
    """Draw flatland8k into a folder, showing progress."""
    with track("drawing flatland8k", num_images) as update:
        draw_flatland8k(
            out_dir, seed=seed, num_images=num_images, progress=lambda done, total: update(done, "pictures")
        )


def _flatland8k() -> Path:
    path = cache_dir() / "flatland8k"
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_data(path, seed=FLATLAND8K_SEED, num_images=8000)
    return path
