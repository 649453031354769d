"""Scenes drawn while a model trains, by worker processes ahead of it.

Imports no torch, which every worker process would load.
"""

import multiprocessing
import os
import shutil
import signal
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from clipgraft.data.dataset import CONTEXT_LENGTH
from clipgraft.errors import UserError
from clipgraft.files import fingerprint
from clipgraft.flatland import (
    Scene,
    draw_scene,
    is_known_to_teacher,
    plain_caption,
    sample_scene,
    write_captions,
)

NUM_CAPTIONS = 11
"""Per scene: two rounds of its five writers and the plain one, repeated where the teacher lacks a word."""
PART_SIZE = 256
"""Images in a worker's task: a second of drawing, 13 MB, and a batch for the VAE."""
EPOCHS_AHEAD = 2
"""Drawn in advance; each of 16,384 images takes 0.8 GB of disk."""
NUM_COMPARED = 16
"""Scenes in the fingerprint of a drawing."""


@dataclass(frozen=True)
class Drawing:
    """Scenes of a seed and split, and what is kept of each."""

    seed: int
    split: str
    tokenizer: str = ""
    """Of `input_ids`, in the JSON of tokenizers; empty = no captions."""
    marks_subject: bool = False
    """Keep where the subject is; draws each scene twice."""

    @property
    def fingerprint(self) -> str:
        """Return a checksum of the first scenes' pixels, labels and captions."""
        arrays = draw_arrays(self, range(NUM_COMPARED))
        return fingerprint({name: sha256(array.tobytes()).hexdigest() for name, array in arrays.items()})


class DrawnImages:
    """Images drawn for each epoch of a training, none of them twice.

    Args:
        drawing: What is drawn.
        num_images: Images of an epoch; epoch e has the scenes from e * num_images on.
        num_epochs: Epochs of the whole training.
        folder: Gets the images of a few epochs, and is removed on closing.
        num_workers: Processes that draw; -1 = one per core but one.
    """

    def __init__(
        self, drawing: Drawing, num_images: int, *, num_epochs: int, folder: Path, num_workers: int = -1
    ):
        self.drawing, self.num_images, self.num_epochs, self.folder = drawing, num_images, num_epochs, folder
        shutil.rmtree(folder, ignore_errors=True)  # of a killed process
        folder.mkdir(parents=True)
        workers = num_workers if num_workers > 0 else max(1, _num_cores() - 1)
        # Spawned: a forked child of a process that runs torch can hang.
        self.pool = ProcessPoolExecutor(
            workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )
        self.started: deque[tuple[int, list[Future[Path]]]] = deque()

    def epoch(self, epoch: int) -> Iterator[Path]:
        """Yield an epoch's parts, safetensors files in order, as they are drawn.

        A part holds `pixels` (n, 3, 128, 128) uint8 and `labels` (n, attributes) uint8; if asked for,
        `input_ids` (n, NUM_CAPTIONS, 77) int16 and `is_subject` (n, 128, 128) bool. It is deleted after use.

        Raises:
            UserError: If a worker was killed.
        """
        try:
            yield from self._parts(epoch)
        except BrokenProcessPool:
            raise UserError(
                "a process that draws images was killed, perhaps for want of memory; lower num_workers "
                "and continue with --resume"
            ) from None

    def close(self) -> None:
        """Stop the workers and delete what they have drawn."""
        self.pool.shutdown(cancel_futures=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _parts(self, epoch: int) -> Iterator[Path]:
        if not self.started or self.started[0][0] != epoch:
            self._cancel()
        begun = self.started[-1][0] + 1 if self.started else epoch
        for ahead in range(begun, min(epoch + EPOCHS_AHEAD + 1, self.num_epochs)):
            self.started.append((ahead, self._start(ahead)))
        for part in self.started.popleft()[1]:
            path = part.result()
            yield path
            path.unlink()

    def _start(self, epoch: int) -> list[Future[Path]]:
        first, end = epoch * self.num_images, (epoch + 1) * self.num_images
        parts = [range(begin, min(begin + PART_SIZE, end)) for begin in range(first, end, PART_SIZE)]
        return [
            self.pool.submit(draw_part, self.drawing, part, self.folder / f"{part.start}.safetensors")
            for part in parts
        ]

    def _cancel(self) -> None:
        for _, parts in self.started:
            for part in parts:
                part.cancel()
        self.started.clear()


def draw_part(drawing: Drawing, indices: range, path: Path) -> Path:
    """Draw the scenes of some indices into a safetensors file."""
    save_file(draw_arrays(drawing, indices), path)
    return path


def draw_arrays(drawing: Drawing, indices: range) -> dict[str, np.ndarray]:
    """Draw the scenes of some indices; see `DrawnImages.epoch`."""
    scenes = [sample_scene(drawing.seed, index, drawing.split) for index in indices]
    pixels = np.stack([_pixels(scene) for scene in scenes])
    arrays = {"pixels": pixels, "labels": np.array([scene.labels for scene in scenes], np.uint8)}
    if drawing.tokenizer:
        tokenizer = _tokenizer(drawing.tokenizer)
        arrays["input_ids"] = np.array([_encode(tokenizer, scene) for scene in scenes], np.int16)
    if drawing.marks_subject:
        empty = np.stack([_pixels(without_subject(scene)) for scene in scenes])
        arrays["is_subject"] = (pixels != empty).any(1)
    return arrays


def captions_for_teacher(scene: Scene) -> list[str]:
    """Write NUM_CAPTIONS captions of a scene in the teacher's words."""
    texts = [plain_caption(scene), *write_captions(scene), *write_captions(scene, 1)]
    return list(islice(cycle([text for text in texts if is_known_to_teacher(text)]), NUM_CAPTIONS))


def without_subject(scene: Scene) -> Scene:
    """Return the scene with its background alone."""
    # It stays the same, as it has random numbers of its own.
    return replace(scene, subject="", companion="")


def _pixels(scene: Scene) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(draw_scene(scene)).transpose(2, 0, 1))


@cache
def _tokenizer(text: str) -> Tokenizer:
    return Tokenizer.from_str(text)


def _encode(tokenizer: Tokenizer, scene: Scene) -> list[list[int]]:
    """Return token ids (NUM_CAPTIONS, 77), padded with EOS, which stays last."""
    rows = [tokenizer.encode(caption).ids for caption in captions_for_teacher(scene)]
    return [
        [*row[: CONTEXT_LENGTH - 1], *[row[-1]] * (CONTEXT_LENGTH - min(len(row), CONTEXT_LENGTH - 1))]
        for row in rows
    ]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    # The training process stops on Ctrl-C and then its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
