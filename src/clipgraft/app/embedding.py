"""Texts and pictures in CLIP's joint space, and a data set's pictures nearest to a caption."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from clipgraft.app.limits import Limits
from clipgraft.app.loaded import Loaded
from clipgraft.app.uploads import encode
from clipgraft.data.images import open_image
from clipgraft.data.records import CaptionedImage
from clipgraft.data.transforms import clip_pixel_values
from clipgraft.models.clip import ClipParts, encode_images
from clipgraft.stages.studio import (
    clip_names,
    embed_searchable,
    embed_texts,
    load_embedder,
    searchable_images,
)

THUMBNAIL_SIDE = 256
SIDES = ("before", "after")


@dataclass(frozen=True)
class SearchIndex:
    """A run's test images, embedded by its CLIP before and after fine-tuning."""

    images: tuple[CaptionedImage, ...]
    embeds: dict[str, Tensor]
    """Side -> unit-norm (N, P)."""


class Embedding:
    """CLIPs of runs, embedding on the device that also draws.

    Args:
        runs_dir: Where runs lie.
        device: As `runtime.choose_device`.
        loaded: Shared with drawing: one bound for all weights.
        device_lock: Held while computing.
        limits: Bounds of searches.
    """

    def __init__(
        self, runs_dir: Path, device: str, loaded: Loaded, device_lock: threading.Lock, limits: Limits
    ):
        self.runs_dir, self.device, self.loaded, self.limits = runs_dir, device, loaded, limits
        self._device_lock = device_lock
        self._indexes: dict[str, SearchIndex] = {}
        self._index_lock = threading.Lock()
        self.progress: dict[str, tuple[int, int]] = {}
        """Run -> pictures read so far and in all, while its index is being made."""

    def names(self) -> list[str]:
        """CLIPs that can embed."""
        return list(clip_names(self.runs_dir))

    def searchable_runs(self) -> list[str]:
        """Runs with a CLIP before and after fine-tuning."""
        return [name.removesuffix("/after") for name in self.names() if name.endswith("/after")]

    def embed(self, name: str, items: Sequence[str | Image.Image]) -> tuple[Tensor, int]:
        """Embed texts and RGB pictures.

        Returns:
            Unit-norm float32 (N, P) in the items' order, and the number of text tokens read.

        Raises:
            KeyError: If there is no such CLIP.
        """
        texts = [item for item in items if isinstance(item, str)]
        pictures = [item for item in items if not isinstance(item, str)]
        with self._device_lock:
            clip = self._clip(name)
            rows: dict[bool, Any] = {True: iter(()), False: iter(())}
            num_tokens = 0
            if texts:
                rows[True] = iter(embed_texts(clip, texts))
                lengths = (len(ids) for ids in clip.tokenizer(texts, truncation=True).input_ids)
                num_tokens = sum(lengths)
            if pictures:
                rows[False] = iter(_embed_pictures(clip, pictures))
        return torch.stack([next(rows[isinstance(item, str)]) for item in items]), num_tokens

    def search(self, run: str, caption: str, limit: int) -> dict[str, list[dict[str, Any]]]:
        """Find the pictures nearest to a caption, by CLIP before and after fine-tuning.

        Returns:
            Side -> rows of `image` (its number), `score` (cosine) and `captions`, nearest first.

        Raises:
            KeyError: If there is no such run.
            FileNotFoundError, DataError: If its data is gone or damaged.
        """
        index = self.index(run)
        found = {}
        for side in SIDES:
            with self._device_lock:
                query = embed_texts(self._clip(f"{run}/{side}"), [caption])[0]
            scores, order = (index.embeds[side] @ query).sort(descending=True, stable=True)
            found[side] = [
                {"image": row, "score": score, "captions": list(index.images[row].captions)}
                for row, score in zip(order[:limit].tolist(), scores[:limit].tolist(), strict=True)
            ]
        return found

    def index(self, run: str) -> SearchIndex:
        """Return a run's index; made, once, at the first search."""
        if run not in self.searchable_runs():
            raise KeyError(run)
        with self._index_lock:
            if run not in self._indexes:
                images = searchable_images(self.runs_dir, run, self.limits.max_search_images)
                try:
                    embeds = {
                        side: self._embed_images(run, number, images) for number, side in enumerate(SIDES)
                    }
                finally:
                    self.progress.pop(run, None)
                self._indexes[run] = SearchIndex(images, embeds)
        return self._indexes[run]

    def thumbnail(self, run: str, image: int) -> bytes:
        """A picture of an index as a small JPEG, decoded and written anew.

        Raises:
            KeyError: If there is no such run or picture.
        """
        index = self._indexes.get(run)
        if index is None or not 0 <= image < len(index.images):
            raise KeyError(image)
        opened = open_image(index.images[image].path)
        return encode(ImageOps.contain(opened, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)), "JPEG", quality=88)

    def _embed_images(self, run: str, number: int, images: tuple[CaptionedImage, ...]) -> Tensor:
        def update(done: int) -> None:
            self.progress[run] = number * len(images) + done, len(SIDES) * len(images)

        with self._device_lock:
            clip = self._clip(f"{run}/{SIDES[number]}")
            return embed_searchable(clip, images, update)

    def _clip(self, name: str) -> ClipParts:
        path = clip_names(self.runs_dir)[name]
        return self.loaded.get(
            f"clip {name}", lambda: load_embedder(path, self.device), lambda clip: [clip.model]
        )


@torch.inference_mode()
def _embed_pictures(clip: ClipParts, pictures: Sequence[Image.Image]) -> Tensor:
    pixels = clip_pixel_values(pictures, clip.image_processor).to(clip.model.device)
    return encode_images(clip.model, pixels).cpu()
