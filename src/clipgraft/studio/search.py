"""Texts and images in CLIP's joint space, and a data set's images nearest to a caption."""

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor

from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import open_image
from clipgraft.data.transforms import clip_pixel_values, encode_captions
from clipgraft.models.clip import ClipParts, encode_images
from clipgraft.studio.catalog import (
    Loaded,
    UnknownModelError,
    clip_version,
    embed_searchable,
    embed_texts,
    find_clips,
    load_embedder,
    searchable_images,
)
from clipgraft.studio.image_files import decode_upload, encode
from clipgraft.studio.schemas import Limits

IMAGES_AT_ONCE = 8
THUMBNAIL_SIDE = 256
SIDES = ("before", "after")


@dataclass(frozen=True)
class SearchIndex:
    """A run's test images, embedded by its CLIP before and after fine-tuning."""

    images: tuple[CaptionedImage, ...]
    embeds: dict[str, Tensor]
    """Side -> unit-norm (N, P)."""
    version: Hashable
    """Of both CLIPs."""


class Embedding:
    """CLIPs of runs, embedding on the device that also draws.

    Args:
        runs_dir: Where runs lie.
        device: As `runtime.choose_device`.
        loaded: Shared with drawing: one bound for all weights.
        device_lock: Held while computing.
        limits: Bounds of searches and of images.
    """

    def __init__(
        self, runs_dir: Path, device: str, loaded: Loaded, device_lock: threading.Lock, limits: Limits
    ):
        self.runs_dir, self.device, self.loaded, self.limits = runs_dir, device, loaded, limits
        self._device_lock = device_lock
        self._indexes: dict[str, SearchIndex] = {}
        self._index_lock = threading.Lock()
        self.progress: dict[str, tuple[int, int]] = {}
        """Run -> images read so far and in all, while its index is being made."""

    def names(self) -> list[str]:
        """CLIPs that can embed."""
        return list(find_clips(self.runs_dir))

    def searchable_runs(self) -> list[str]:
        """Runs with a CLIP before and after fine-tuning."""
        return [name.removesuffix("/after") for name in self.names() if name.endswith("/after")]

    def embed(self, name: str, items: Sequence[str | bytes]) -> tuple[Tensor, int]:
        """Embed texts and images; the latter are decoded one after another, and a few computed at once.

        Args:
            name: Of the CLIP.
            items: Texts, and the content of image files.

        Returns:
            Unit-norm float32 (N, P) in the items' order, and the number of text tokens read.

        Raises:
            UnknownModelError: If there is no such CLIP.
            CheckpointError, FileNotFoundError: If it cannot be loaded.
            DataError: As `decode_upload`.
        """
        texts = [item for item in items if isinstance(item, str)]
        files = [item for item in items if isinstance(item, bytes)]
        rows: dict[type, list[Tensor]] = {str: [], bytes: []}
        num_tokens = 0
        with self._device_lock:
            clip = self._clip(name)
            if texts:
                rows[str] += embed_texts(clip, texts)
                num_tokens = sum(map(len, encode_captions(texts, clip.tokenizer)[0]))
        for first in range(0, len(files), IMAGES_AT_ONCE):
            rows[bytes] += self._embed_files(clip, files[first : first + IMAGES_AT_ONCE])
        in_turn = {kind: iter(found) for kind, found in rows.items()}
        return torch.stack([next(in_turn[type(item)]) for item in items]), num_tokens

    def search(self, run: str, caption: str, limit: int) -> dict[str, list[dict[str, Any]]]:
        """Find the images nearest to a caption, by CLIP before and after fine-tuning.

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
        """Return a run's index; made at the first search, and anew when one of its CLIPs is another."""
        if run not in self.searchable_runs():
            raise KeyError(run)
        with self._index_lock:
            clips = find_clips(self.runs_dir)
            version = tuple(clip_version(clips[f"{run}/{side}"]) for side in SIDES)
            if run not in self._indexes or self._indexes[run].version != version:
                images = searchable_images(self.runs_dir, run, self.limits.max_search_images)
                try:
                    embeds = {
                        side: self._embed_images(run, number, images) for number, side in enumerate(SIDES)
                    }
                finally:
                    self.progress.pop(run, None)
                self._indexes[run] = SearchIndex(images, embeds, version)
            return self._indexes[run]

    def thumbnail(self, run: str, image: int) -> bytes:
        """An image of an index as a small JPEG, decoded and written anew.

        Raises:
            KeyError: If there is no such run or image.
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

    @torch.inference_mode()
    def _embed_files(self, clip: ClipParts, files: Sequence[bytes]) -> Tensor:
        pixels = [
            clip_pixel_values([decode_upload(content, self.limits.max_upload_pixels)], clip.image_processor)
            for content in files
        ]
        with self._device_lock:
            return encode_images(clip.model, torch.cat(pixels).to(clip.model.device)).cpu()

    def _clip(self, name: str) -> ClipParts:
        clips = find_clips(self.runs_dir)
        if name not in clips:
            raise UnknownModelError(f"there is no model {name!r}; known are {', '.join(clips)}")
        return self.loaded.get(
            f"clip {name}",
            lambda: load_embedder(clips[name], self.device),
            lambda clip: [clip.model],
            clip_version(clips[name]),
        )
