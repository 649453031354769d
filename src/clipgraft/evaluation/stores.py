"""Content keys of generated images, and a cache of features that processes compute together."""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor

from clipgraft.cache import CachedArrays, ContentCache
from clipgraft.console import track
from clipgraft.data.transforms import PIXELS_VERSION
from clipgraft.errors import CheckpointError
from clipgraft.files import fingerprint
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.metadata import versions
from clipgraft.generation.pipeline import prompt_input_ids
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.weights import module_sha256

GENERATION_VERSION = 1
"""Of what `generation/` and the bridge make of weights, prompt and seed."""
FEATURES_VERSION = 1
"""Of what `evaluation/scores.py` makes of pixels, token ids and weights.

Both are raised when other numbers come out, which tests/test_stores.py says.
"""
ITEMS_PER_ENTRY = 64
"""Features that are cached together, and lost together when a process is killed."""

T = TypeVar("T")
logger = logging.getLogger(__name__)


def pixels_versions() -> list[Any]:
    """Versions that decide how a file becomes pixels."""
    return [PIXELS_VERSION, *(version(name) for name in ("pillow", "transformers"))]


def model_fingerprint(model: Any) -> str:
    """Sum of a model's weights and configuration: equal weights compute otherwise with another GELU."""
    return fingerprint(module_sha256(model), _settings(model.config))


def _settings(config: Any) -> dict[str, Any]:
    """Settings of a configuration of transformers or diffusers; where it lay and who wrote it are none."""
    values = config.to_dict() if hasattr(config, "to_dict") else config
    return {
        str(name): _settings(value) if isinstance(value, dict) else str(value)
        for name, value in values.items()
        if not str(name).startswith("_") and name != "transformers_version"
    }


def generator_fingerprint(generator: ImageGenerator) -> str:
    """Return the sum of everything but a request that decides a generator's images."""
    pipeline = generator.pipeline
    scheduler = type(pipeline.scheduler).__name__, _settings(pipeline.scheduler.config)
    # The text encoder's sum is taken again: an evaluation puts an untrained bridge in its place.
    models = generator.models | {"text_encoder_sha256": module_sha256(pipeline.text_encoder)}
    configs = [_settings(part.config) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)]
    libraries = versions(generator.models.get("engine", "")) | {"clipgraft": GENERATION_VERSION}
    return fingerprint(libraries, models, configs, scheduler, str(pipeline.device))


def image_key(whole: str, generator: ImageGenerator, request: ImageRequest) -> str:
    """Return the sum of all that decides an image; `whole` is from `generator_fingerprint`.

    Prompts of the same token ids have the same image.
    """
    ids = prompt_input_ids([request.prompt], generator.pipeline.tokenizer).tolist()
    return fingerprint(whole, ids, {**request.as_record(), "prompt": None})


class FeatureStore:
    """Cached features of images or texts, computed by several processes together.

    Args:
        folder: Gets a folder for each extractor.
        processes: Share out what is missing.
    """

    def __init__(self, folder: Path, processes: PartialState):
        self.folder, self.processes = folder, processes

    def features(
        self,
        description: str,
        extractor: str,
        items: Sequence[T],
        sums: Sequence[str],
        extract: Callable[[Sequence[T]], Tensor],
    ) -> Tensor:
        """Return features (N, D) float32 of the items, computing those that are not cached.

        Args:
            description: For the progress bar.
            extractor: Sum of its weights, and what else decides a feature.
            items: At least one.
            sums: The content of each, as a key.
            extract: Features (n, D) of some items.

        Raises:
            CheckpointError: If cached features were removed or damaged in the meantime.
        """
        how = fingerprint(FEATURES_VERSION, pixels_versions(), version("torch"), extractor)
        cache = ContentCache(self.folder / how[:16], "features")
        groups = [
            range(len(items))[start:][:ITEMS_PER_ENTRY] for start in range(0, len(items), ITEMS_PER_ENTRY)
        ]
        keys = [fingerprint([sums[i] for i in group])[:32] for group in groups]
        found = cache.find(keys)
        missing = {key: group for key, group in zip(keys, groups, strict=True) if key not in found}
        self.processes.wait_for_everyone()  # all have to see the same as missing
        own = list(missing.items())[self.processes.process_index :: self.processes.num_processes]
        if own:
            with track(description, sum(len(group) for _, group in own)) as update:
                done = 0
                for key, group in own:
                    cache.add({key: extract([items[i] for i in group]).float().cpu().contiguous().numpy()})
                    done += len(group)
                    update(done, "items")
        self.processes.wait_for_everyone()
        found = cache.find(keys)
        if len(found) < len(set(keys)):
            raise CheckpointError(
                f"features in {cache.folder} were removed or damaged while they were in use; run the same "
                "command again"
            )
        return torch.cat([torch.from_numpy(array) for array in CachedArrays(found[key] for key in keys)])
