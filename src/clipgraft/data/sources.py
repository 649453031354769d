"""Captioned images that settings name, and their crops."""

from collections.abc import Sequence
from pathlib import Path

from clipgraft.config import DataSettings
from clipgraft.console import track
from clipgraft.data.crops import Crops, cut_crops
from clipgraft.data.dataset import CaptionedImage, Source, Split
from clipgraft.data.formats import read_source
from clipgraft.data.transforms import ImageProcessor
from clipgraft.device import cache_dir
from clipgraft.flatland import draw_flatland8k

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
