"""Embeddings of texts and images; caption search in a run's test images."""

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import ImageOps
from torch import Tensor

from clipgraft.config import ModelSettings
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.images import open_image
from clipgraft.data.transforms import clip_pixel_values, encode_captions, tokenize
from clipgraft.device import choose_device
from clipgraft.finetuning.validate import embed_images
from clipgraft.models.clip import ClipParts, encode_images, encode_text, load_clip
from clipgraft.studio.catalog import Catalog, ModelCache, UnknownModelError, clip_version
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
    """Changes with either CLIP."""


class Embedder:
    """CLIPs of runs, sharing device and memory bound with generation."""

    def __init__(self, catalog: Catalog, cache: ModelCache, limits: Limits):
        self.catalog, self.cache, self.limits = catalog, cache, limits
        self._indexes: dict[str, SearchIndex] = {}
        self._index_lock = threading.Lock()
        self.progress: dict[str, tuple[int, int]] = {}
        """Run -> images read and in total, while its index is built."""

    def embed(self, name: str, items: Sequence[str | bytes]) -> tuple[Tensor, int]:
        """Embed texts and image files with the CLIP of a name.

        Returns:
            Unit-norm float32 (N, P) in the items' order, and the number of text tokens.
        """
        texts = [item for item in items if isinstance(item, str)]
        files = [item for item in items if isinstance(item, bytes)]
        rows: dict[type, list[Tensor]] = {str: [], bytes: []}
        num_tokens = 0
        with self.cache.lock:
            clip = self._clip(name)
            if texts:
                rows[str] += _embed_texts(clip, texts)
                num_tokens = sum(map(len, encode_captions(texts, clip.tokenizer)[0]))
        for first in range(0, len(files), IMAGES_AT_ONCE):
            rows[bytes] += self._embed_files(clip, files[first : first + IMAGES_AT_ONCE])
        in_turn = {kind: iter(found) for kind, found in rows.items()}
        return torch.stack([next(in_turn[type(item)]) for item in items]), num_tokens

    def search(self, run: str, caption: str, limit: int) -> dict[str, list[dict[str, Any]]]:
        """Find the images nearest to a caption, before and after fine-tuning.

        Returns:
            Side -> rows of `image` (its number), `score` (cosine) and `captions`, nearest first.

        Raises:
            KeyError: If there is no such run; a `UserError` if its data is gone or damaged.
        """
        index = self.index(run)
        found = {}
        for side in SIDES:
            with self.cache.lock:
                query = _embed_texts(self._clip(f"{run}/{side}"), [caption])[0]
            scores, order = (index.embeds[side] @ query).sort(descending=True, stable=True)
            found[side] = [
                {"image": row, "score": score, "captions": list(index.images[row].captions)}
                for row, score in zip(order[:limit].tolist(), scores[:limit].tolist(), strict=True)
            ]
        return found

    def index(self, run: str) -> SearchIndex:
        """Return a run's index, rebuilt whenever one of its CLIPs changes."""
        clips = self.catalog.clips()
        if f"{run}/after" not in clips:
            raise KeyError(run)
        with self._index_lock:
            version = tuple(clip_version(clips[f"{run}/{side}"]) for side in SIDES)
            if run not in self._indexes or self._indexes[run].version != version:
                images = self.catalog.test_images(run, self.limits.max_search_images)
                try:
                    embeds = {side: self._embed_images(run, side, images) for side in SIDES}
                finally:
                    self.progress.pop(run, None)
                self._indexes[run] = SearchIndex(images, embeds, version)
            return self._indexes[run]

    def thumbnail(self, run: str, number: int) -> bytes:
        """Return a small JPEG of an index's image, or raise KeyError."""
        index = self._indexes.get(run)
        if index is None or not 0 <= number < len(index.images):
            raise KeyError(number)
        opened = open_image(index.images[number].file)
        return encode(ImageOps.contain(opened, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)), "JPEG", quality=88)

    def _embed_images(self, run: str, side: str, images: tuple[CaptionedImage, ...]) -> Tensor:
        def update(done: int) -> None:
            self.progress[run] = SIDES.index(side) * len(images) + done, len(SIDES) * len(images)

        with self.cache.lock:
            return embed_images(self._clip(f"{run}/{side}"), images, update)

    @torch.inference_mode()
    def _embed_files(self, clip: ClipParts, files: Sequence[bytes]) -> Tensor:
        # Decoded one by one, before the device is held.
        opened = (decode_upload(content, self.limits.max_upload_pixels) for content in files)
        pixels = [clip_pixel_values([image], clip.image_processor) for image in opened]
        with self.cache.lock:
            return encode_images(clip.model, torch.cat(pixels).to(clip.model.device)).cpu()

    def _clip(self, name: str) -> ClipParts:
        clips = self.catalog.clips()
        if name not in clips:
            raise UnknownModelError(name, clips)
        settings = clips[name]
        return self.cache.get(
            f"clip {name}",
            lambda: load_embedder(settings, self.cache.device),
            lambda clip: [clip.model],
            clip_version(settings),
        )


def load_embedder(model: ModelSettings, device: str) -> ClipParts:
    """Load a CLIP for embedding, on a device."""
    clip = load_clip(model.name, revision=model.revision)
    clip.model.to(choose_device(device)).eval().requires_grad_(False)
    return clip


@torch.inference_mode()
def _embed_texts(clip: ClipParts, texts: list[str]) -> Tensor:
    """Unit-norm float32 (N, P) on the CPU, of the first 77 tokens."""
    ids = tokenize(texts, clip.tokenizer).to(clip.model.device)
    return encode_text(clip.model, ids).cpu()
