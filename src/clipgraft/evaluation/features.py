"""CLIP and probe features, cached by content; keys of generated images."""

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor

from clipgraft.cached_arrays import ContentCache
from clipgraft.console import track
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.image_file import ImageFile, content_checksums
from clipgraft.data.images import open_image
from clipgraft.data.transforms import (
    PIXELS_VERSION,
    clip_pixel_values,
    encode_captions,
    pad_input_ids,
    vae_pixel_values,
)
from clipgraft.evaluation.metrics.probe import READ_BATCH_SIZE, Probe, read_attributes
from clipgraft.files import fingerprint
from clipgraft.flatland.writer import IMAGE_SIZE
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.metadata import versions
from clipgraft.generation.prompt_embeds import split_prompt
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.clip import ClipParts, encode_images, encode_text
from clipgraft.models.weights import module_sha256

GENERATION_VERSION = 2
"""Incremented when generation or the bridge change pixels of equal weights, prompt and seed."""
FEATURES_VERSION = 2
"""Incremented when this module changes features; tests/evaluation/test_features.py checks both."""
ITEMS_PER_ENTRY = 64
"""Features per key of the cache."""
ENCODE_BATCH_SIZE = 64

T = TypeVar("T")


def pixels_versions() -> list[Any]:
    """Return the versions that affect how image files become pixels."""
    return [PIXELS_VERSION, *(version(name) for name in ("pillow", "transformers"))]


def model_fingerprint(model: Any) -> str:
    """Return a checksum of a model's weights and settings."""
    return fingerprint(module_sha256(model), _settings(model.config))


def _settings(config: Any) -> dict[str, Any]:
    """Settings of a transformers or diffusers configuration, without its origin."""
    values = config.to_dict() if hasattr(config, "to_dict") else config
    return {
        str(name): _settings(value) if isinstance(value, dict) else str(value)
        for name, value in values.items()
        if not str(name).startswith("_") and name != "transformers_version"
    }


def generator_fingerprint(generator: ImageGenerator) -> str:
    """Return a checksum of a generator's weights, settings and versions."""
    pipeline = generator.pipeline
    scheduler = type(pipeline.scheduler).__name__, _settings(pipeline.scheduler.config)
    # A fresh checksum, because an evaluation swaps in an untrained bridge.
    models = generator.models | {"text_encoder_sha256": module_sha256(pipeline.text_encoder)}
    configs = [_settings(part.config) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)]
    libraries = versions(generator.models.get("engine", "")) | {"clipgraft": GENERATION_VERSION}
    return fingerprint(libraries, models, configs, scheduler, str(pipeline.device))


def image_key(whole: str, generator: ImageGenerator, request: ImageRequest) -> str:
    """Return an image's key from a `generator_fingerprint` and a request.

    Prompts with equal token ids have equal keys.
    """
    chunks = split_prompt(request.prompt, generator.pipeline.tokenizer, request.params)
    return fingerprint(whole, chunks, {**request.as_record(), "prompt": None})


class FeatureStore:
    """Cached features of images or texts, computed by several processes together.

    Args:
        folder: Receives a folder for each extractor.
        processes: Share the computation.
    """

    def __init__(self, folder: Path, processes: PartialState):
        self.folder, self.processes = folder, processes

    def features(
        self,
        description: str,
        extractor: str,
        items: Sequence[T],
        checksums: Sequence[str],
        extract: Callable[[Sequence[T]], Tensor],
    ) -> Tensor:
        """Return cached or computed features (N, D) float32 of the items.

        Args:
            description: Shown by the progress bar.
            extractor: Checksum of its weights and preprocessing.
            items: At least one.
            checksums: Checksum of each item's content.
            extract: Some items -> features (n, D).
        """
        how = fingerprint(FEATURES_VERSION, pixels_versions(), version("torch"), extractor)
        cache = ContentCache(self.folder / how[:16], "features")
        groups = [items[start : start + ITEMS_PER_ENTRY] for start in range(0, len(items), ITEMS_PER_ENTRY)]
        keys = [
            fingerprint(checksums[start : start + ITEMS_PER_ENTRY])[:32]
            for start in range(0, len(items), ITEMS_PER_ENTRY)
        ]

        def make(indices: Sequence[int]) -> Iterator[np.ndarray]:
            for index in indices:
                yield extract(groups[index]).float().cpu().contiguous().numpy()

        share = range(len(keys))[self.processes.process_index :: self.processes.num_processes]
        with track(description, min(len(share) * ITEMS_PER_ENTRY, len(items))) as update:
            own = cache.arrays(  # held until all are found
                [keys[index] for index in share],
                lambda part: make([share[index] for index in part]),
                lambda done: update(min(done * ITEMS_PER_ENTRY, len(items)), "items"),
            )
        self.processes.wait_for_everyone()
        arrays = cache.arrays(keys, make) if len(own) < len(keys) else own
        return torch.cat([torch.from_numpy(array) for array in arrays])


class ClipFeatures:
    """Embeds (N, D) of one CLIP, unit norm, cached by content.

    Args:
        clip: In eval mode, on its device.
        name: Shown by progress bars.
        store: Cache for generated images.
        shared: Cache for photographs and captions, shared by all runs.
    """

    def __init__(self, clip: ClipParts, name: str, store: FeatureStore, shared: FeatureStore):
        self.clip, self.name, self.store, self.shared = clip, name, store, shared
        self.checksum = module_sha256(clip.model)
        self._model = model_fingerprint(clip.model)
        self._model_and_processor = self._model + clip.image_processor.to_json_string()

    def of_files(self, paths: Sequence[ImageFile]) -> Tensor:
        """Embed image files of a run."""
        return self._images(self.store, paths, "images")

    def of_images(self, images: Sequence[CaptionedImage]) -> Tensor:
        """Embed photographs of a data set."""
        return self._images(self.shared, [image.file for image in images], "photographs")

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed prompts; cached by token ids, which depend on the tokenizer."""
        ids, _ = encode_captions(texts, self.clip.tokenizer)
        checksums = [" ".join(map(str, row)) for row in ids]
        return self.shared.features(f"{self.name} reads captions", self._model, ids, checksums, self._read)

    @property
    def resize_filter(self) -> str:
        """Resizing and cropping of the CLIP's image processor, in words."""
        processor = self.clip.image_processor
        name = Image.Resampling(processor.resample).name.lower()
        size, crop = (
            "x".join(str(side) for side in sides.values() if side)
            for sides in (dict(processor.size), dict(processor.crop_size))
        )
        return f"{name} to {size} pixels, centre crop of {crop} (the scorer's own processor)"

    def _images(self, store: FeatureStore, paths: Sequence[ImageFile], what: str) -> Tensor:
        described = f"{self.name} looks at {what}"
        return store.features(
            described, self._model_and_processor, paths, content_checksums(paths), self._look
        )

    @torch.no_grad()
    def _look(self, paths: Sequence[ImageFile]) -> Tensor:
        def embed(part: Sequence[ImageFile]) -> Tensor:
            pixels = clip_pixel_values((open_image(path) for path in part), self.clip.image_processor)
            return encode_images(self.clip.model, pixels.to(self.clip.model.device)).cpu()

        return _batched(embed, paths)

    @torch.no_grad()
    def _read(self, input_ids: Sequence[list[int]]) -> Tensor:
        def embed(part: Sequence[list[int]]) -> Tensor:
            ids = pad_input_ids(part, self.clip.tokenizer.eos_token_id, max(map(len, part)))
            return encode_text(self.clip.model, ids.to(self.clip.model.device)).cpu()

        return _batched(embed, input_ids)


class ProbeFeatures:
    """Attributes that the probe predicts, and its pooled features."""

    name = "flatland's probe"

    def __init__(self, probe: Probe, store: FeatureStore):
        self.probe, self.store, self.checksum = probe, store, module_sha256(probe)

    @torch.no_grad()
    def of_files(self, paths: Sequence[ImageFile]) -> Tensor:
        """Return features (N, 320)."""

        def pool(part: Sequence[ImageFile]) -> Tensor:
            return _batched(lambda few: self.probe.pooled(self._pixels(few)), part)

        return self.store.features(
            "probe looks at images", self.checksum, paths, content_checksums(paths), pool
        )

    def read(self, paths: Sequence[ImageFile]) -> Tensor:
        """Return the index of each attribute's likeliest value, (N, attributes) int64."""

        def labels(part: Sequence[ImageFile]) -> Tensor:
            return read_attributes(self.probe, ((self._pixels(part) + 1) * 127.5).round().to(torch.uint8))

        how = f"{self.checksum} read"
        return self.store.features("probe reads images", how, paths, content_checksums(paths), labels).long()

    @staticmethod
    def _pixels(paths: Sequence[ImageFile]) -> Tensor:
        # Photographs are cropped to flatland's size as for the VAE.
        return vae_pixel_values((open_image(path) for path in paths), IMAGE_SIZE)


def _batched(function: Callable[[Any], Tensor], items: Sequence[Any]) -> Tensor:
    size = min(ENCODE_BATCH_SIZE, READ_BATCH_SIZE)
    return torch.cat([function(items[start : start + size]) for start in range(0, len(items), size)])
