"""The generating thread: the oldest open images, batch after batch."""

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from clipgraft.device import without_folders
from clipgraft.errors import is_user_error, one_line
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.pipeline import GeneratedImage
from clipgraft.generation.requests import ImageRequest
from clipgraft.studio.database import UnavailableError
from clipgraft.studio.image_files import ImageFiles, encode
from clipgraft.studio.named_files import guide_names
from clipgraft.studio.queue import ImageRow, Queue
from clipgraft.studio.schemas import Limits
from clipgraft.studio.uploads import Uploads

PREVIEWS_PER_IMAGE = 6
PREVIEW_QUALITY = 80
SECONDS_BETWEEN_LOOKS = 1.0
"""Until another try after the queue failed, and a safety net: each job wakes the worker."""

logger = logging.getLogger(__name__)


class CancelledBatch(Exception):
    """Raised within sampling when nobody wants the batch any more."""


@dataclass
class Progress:
    """Progress of a running image."""

    row: ImageRow
    step: int = 0
    preview: bytes = b""
    """JPEG."""
    preview_step: int = 0


class Worker(threading.Thread):
    """Thread generating what waits in a queue.

    Args:
        generator: Loads a model by name.
        lock: Held for each batch.
        request_of: Makes an image's request from its settings.
        on_batch_end: Called with the numbers of a batch's jobs, and its error if it failed.
        on_stopped: Called after the last batch before a stop.
    """

    def __init__(
        self,
        queue: Queue,
        files: ImageFiles,
        uploads: Uploads,
        generator: Callable[[str], ImageGenerator],
        lock: threading.Lock,
        *,
        request_of: Callable[[dict[str, Any]], ImageRequest],
        on_batch_end: Callable[[Sequence[int], str], object],
        on_stopped: Callable[[], object],
        limits: Limits,
    ):
        super().__init__(name="generating", daemon=True)
        self.queue, self.files, self.uploads, self.generator = queue, files, uploads, generator
        self.limits = limits
        self.request_of = request_of
        self.on_batch_end, self.on_stopped = on_batch_end, on_stopped
        self.progress: dict[int, Progress] = {}
        """Of running images, by number."""
        self.problem = ""
        """Why the queue cannot be used now; empty if it can."""
        self._done: tuple[list[ImageRow], str] | None = None
        """The last batch and its error, until its jobs are settled."""
        self._ended: set[int] = set()
        """Jobs of the running batch that have ended: a set, so that no step needs SQL."""
        self._batch_lock = lock
        self._turn = threading.Lock()
        """Held while a batch is taken and generated."""
        self._is_paused = False
        self._wake = threading.Event()
        self._stopping = threading.Event()

    def wake(self) -> None:
        self._wake.set()

    def leave_out(self, job_number: int) -> None:
        """Stop working for a job that has ended."""
        self._ended.add(job_number)

    def pause(self) -> None:
        """Begin no other batch, and wait for the running one."""
        self._is_paused = True
        with self._turn:
            pass

    def go_on(self) -> None:
        """Take batches again."""
        self._is_paused = False
        self._wake.set()

    @property
    def is_stopping(self) -> bool:
        """Whether the running batch is the last one."""
        return self._stopping.is_set()

    def begin_to_stop(self) -> None:
        """Finish the running batch and start no other."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Generate batch after batch until it is told to stop."""
        while not self._stopping.is_set():
            try:
                with self._turn:
                    has_worked = not self._is_paused and self._run_batch()
                if not has_worked:
                    self._wake.wait(SECONDS_BETWEEN_LOOKS)
                    self._wake.clear()
                self.problem = ""
            except Exception as error:
                # The thread must go on: a full disk may have room again.
                if not self.problem:
                    logger.exception("the queue cannot be used; trying again every second")
                self.problem = _message(error)
                self._stopping.wait(SECONDS_BETWEEN_LOOKS)
        self.on_stopped()

    def _run_batch(self) -> bool:
        """Generate a batch and settle its jobs; return whether there was one."""
        if self._done is None:
            batch = self.queue.take(self.limits.batch_size)
            if not batch:
                return False
            with self._batch_lock:
                self._done = batch, self._generate(batch)
        batch, error = self._done
        self.on_batch_end(list(dict.fromkeys(row.job for row in batch)), error)
        self._done = None
        pruned = self.queue.prune(self.limits.max_history)
        self.files.delete(*pruned)
        if pruned:
            self.uploads.delete_others(self.queue.upload_ids())
        return True

    def _generate(self, batch: list[ImageRow]) -> str:
        """Generate and keep images; return the error, or an empty text."""
        self._ended.clear()
        self.progress.update({row.number: Progress(row) for row in batch})
        try:
            jobs = [self.queue.job_by_number(number) for number in {row.job for row in batch}]
            self._ended.update(job.number for job in jobs if job.state != "running")
            is_watched = any(job.kind != "call" for job in jobs)
            generator = self.generator(batch[0].model)
            begun = time.monotonic()  # loading is no part of an image's seconds
            images = generator.sample(
                [self.request_of(row.settings) for row in batch],
                batch_size=len(batch),
                preview_every=max(1, batch[0].steps // PREVIEWS_PER_IMAGE) if is_watched else 0,
                **self._reporters(batch),
            )
            for row, image in zip(batch, images, strict=True):
                self._keep(row, image, (time.monotonic() - begun) / len(batch))
        except CancelledBatch:
            pass
        except Exception as error:
            logger.exception("generating failed; images: %s", ", ".join(row.id for row in batch))
            return _message(error)
        finally:
            for row in batch:
                self.progress.pop(row.number, None)
        return ""

    def _keep(self, row: ImageRow, image: GeneratedImage, seconds: float) -> None:
        current = self.queue.image(row.id)
        if current is None or current.state != "running":
            return  # cancelled meanwhile
        if image.status == "ok":
            self.files.save(row.id, image, {"model": row.model, **guide_names(row.settings)})
        self.queue.finish_image(row.number, image.status, notes=image.notes, seconds=seconds)

    def _reporters(self, batch: list[ImageRow]) -> dict[str, Any]:
        jobs = {row.job for row in batch}

        def on_step(done: int, total: int) -> None:
            for row in batch:
                self.progress[row.number].step = row.steps * done // total
            if jobs <= self._ended:
                raise CancelledBatch

        def on_preview(requests: Sequence[ImageRequest], images: list[Image.Image], step: int) -> None:
            if len(requests) != len(batch):
                return  # the batch was halved to save memory, and a preview takes some
            for row, image in zip(batch, images, strict=True):
                progress = self.progress[row.number]
                progress.preview = encode(image, "JPEG", quality=PREVIEW_QUALITY)
                progress.preview_step = step

        return {"on_step": on_step, "on_preview": on_preview}


def is_bug(message: str) -> bool:
    """Whether a failed job's message begins with an exception's name."""
    return re.match(r"[A-Z]\w*: ", message) is not None


def _message(error: Exception) -> str:
    """Format an error for clients: one line, without local folders."""
    is_clear = is_user_error(error) or isinstance(error, UnavailableError)
    text = one_line(error) if is_clear else f"{type(error).__name__}: {one_line(error)}"
    return without_folders(text)[:500]
