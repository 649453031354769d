"""Pictures and features that an evaluation has made, found again by what decided them.

What has not changed is not made twice, and what any process has made is there for all.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor

from clipgraft.cache import CachedArrays, ContentCache
from clipgraft.console import track
from clipgraft.data.transforms import PIXELS_VERSION
from clipgraft.errors import CheckpointError, DataError
from clipgraft.evaluation.results import ImageRow
from clipgraft.files import clear_parts, file_sha256, fingerprint, parse_json
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.metadata import save_png, versions
from clipgraft.generation.pipeline import prompt_input_ids
from clipgraft.generation.requests import ImageRequest, image_file_name
from clipgraft.models.weights import module_sha256

GENERATION_VERSION = 1
"""Of what `generation/` and the bridge make of weights, prompt and seed."""
FEATURES_VERSION = 1
"""Of what `evaluation/scores.py` makes of pixels, token ids and weights.

Both are raised when other numbers come out, which tests/test_stores.py says.
"""
ITEMS_PER_ENTRY = 64
"""Features that are cached together, and lost together when a process is killed."""

ROW = ("key", "file", "status", "sha256")
"""Keys of a line of `images.*.jsonl`."""

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


class Task(NamedTuple):
    """One image of a variant."""

    prompt_id: int
    request: ImageRequest


class PictureStore:
    """Images in a folder, with a line of `images.<process>.jsonl` for each.

    Args:
        folder: Gets `variants/<name>/` and the lines.
        processes: Which of how many this one is.
    """

    def __init__(self, folder: Path, processes: PartialState):
        self.folder, self.processes = folder, processes

    def draw(
        self,
        variant: str,
        generator: ImageGenerator,
        tasks: Sequence[Task],
        batch_size: int,
    ) -> list[ImageRow]:
        """Draw what is not there yet, shared out over the processes.

        Args:
            variant: Names the folder.
            generator: With the variant's text encoder.
            tasks: Prompts and seeds; equal ones are drawn once.
            batch_size: Pictures drawn at once.

        Returns:
            A row per task, without scores.
        """
        whole = generator_fingerprint(generator)
        keys = [self._key(whole, generator, task.request) for task in tasks]
        held = self._held()
        lacking = {key: task for key, task in zip(keys, tasks, strict=True) if key not in held}
        # All have to see the same as lacking, or they would share it out differently.
        self.processes.wait_for_everyone()
        own = list(lacking.items())[self.processes.process_index :: self.processes.num_processes]
        if own:
            self._draw(variant, generator, own, batch_size)
        self.processes.wait_for_everyone()
        held = self._held() if lacking else held
        return [
            ImageRow(
                variant=variant,
                prompt_id=task.prompt_id,
                seed=task.request.seed,
                file=held[key]["file"],
                status=held[key]["status"],
            )
            for key, task in zip(keys, tasks, strict=True)
        ]

    def _draw(
        self,
        variant: str,
        generator: ImageGenerator,
        tasks: Sequence[tuple[str, Task]],
        batch_size: int,
    ) -> None:
        folder = self.folder / "variants" / variant
        folder.mkdir(parents=True, exist_ok=True)
        clear_parts(folder)
        log = self.folder / f"images.{self.processes.process_index}.jsonl"
        num_steps = sum(task.request.num_steps for _, task in tasks)
        description = f"generating images of {variant}"
        with track(description, num_steps) as update, log.open("a", encoding="utf-8") as lines:
            pictures = generator.sample(
                [task.request for _, task in tasks],
                batch_size=batch_size,
                on_step=lambda done, _total: update(done, "steps"),
            )
            lines.write(
                "\n" if log.stat().st_size else ""
            )  # behind a line that a killed process left unfinished
            for (key, task), picture in zip(tasks, pictures, strict=True):
                name = image_file_name(picture.prompt, picture.seed)
                path = folder / f"{task.prompt_id:04d}-{name}"
                save_png(picture.image, path, None)
                row = {"key": key, "file": path.relative_to(self.folder).as_posix(), "status": picture.status}
                lines.write(json.dumps(row | {"sha256": file_sha256(path)}) + "\n")
                lines.flush()

    def _held(self) -> dict[str, dict[str, Any]]:
        """Rows by key, of pictures that are as they were written."""
        rows = {}
        for log in filter(Path.is_file, sorted(self.folder.glob("images.*.jsonl"))):
            rows.update({row["key"]: row for row in _whole_lines(log)})
        return {key: row for key, row in rows.items() if self._is_as_written(row)}

    def _is_as_written(self, row: dict[str, Any]) -> bool:
        path = self.folder / row["file"]
        is_inside = path.resolve().is_relative_to(self.folder.resolve())
        return is_inside and path.is_file() and file_sha256(path) == row["sha256"]

    @staticmethod
    def _key(whole: str, generator: ImageGenerator, request: ImageRequest) -> str:
        ids = prompt_input_ids([request.prompt], generator.pipeline.tokenizer).tolist()
        return fingerprint(whole, ids, {**request.as_record(), "prompt": None})


def generator_fingerprint(generator: ImageGenerator) -> str:
    """Sum of everything but prompt, seed, steps and guidance that decides what a generator draws."""
    pipeline = generator.pipeline
    scheduler = type(pipeline.scheduler).__name__, _settings(pipeline.scheduler.config)
    # The text encoder's sum is taken again: an evaluation puts an untrained bridge in its place.
    models = generator.models | {"text_encoder_sha256": module_sha256(pipeline.text_encoder)}
    configs = [_settings(part.config) for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)]
    libraries = versions(generator.models.get("engine", "")) | {"clipgraft": GENERATION_VERSION}
    return fingerprint(libraries, models, configs, scheduler, str(pipeline.device))


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


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a log; what a killed process left unfinished, or is damaged, is none."""
    num_damaged = 0
    for line in path.read_bytes().decode("utf-8", "replace").split("\n"):
        try:
            row = parse_json(line, str(path)) if line.strip() else None
        except DataError:
            row = {}
        if row is None:
            continue
        if all(isinstance(row.get(name), str) for name in ROW):
            yield row
        else:
            num_damaged += 1
    if num_damaged:
        logger.warning("%s: %d damaged lines; their images are generated again", path, num_damaged)
