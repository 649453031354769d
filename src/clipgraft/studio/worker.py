"""The one thread that draws: takes the oldest open images, batch after batch, until it is told to stop."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from clipgraft.device import without_folders
from clipgraft.errors import is_user_error, one_line
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.params import Job
from clipgraft.generation.pipeline import Picture
from clipgraft.studio.database import UnavailableError
from clipgraft.studio.image_files import ImageFiles, encode
from clipgraft.studio.queue import ImageRow, Queue

PREVIEWS_PER_IMAGE = 6
PREVIEW_QUALITY = 80
SECONDS_BETWEEN_LOOKS = 1.0
"""The worker is woken for each job; this is for safety, and for another try where the queue failed."""

logger = logging.getLogger(__name__)


class CancelledDrawing(Exception):
    """Raised within drawing when nobody wants the batch any more."""


@dataclass
class Progress:
    """How far an image is that is being drawn."""

    row: ImageRow
    step: int = 0
    preview: bytes = b""
    """JPEG."""
    preview_step: int = 0


class Worker:
    """Draws what waits in a queue.

    Args:
        queue: Of jobs.
        files: Where images go.
        generator: Loads a model by the name that clients use; called with the device's lock held.
        device_lock: Held for each batch.
        on_drawn: Called with a job's number when its last image is drawn.
        on_failed: Called with a job's number and what is wrong; ends the job.
        on_stopped: Called when the last batch before a stop is drawn.
        batch_size: Images drawn at once, at most.
        max_history: Images kept.
    """

    def __init__(
        self,
        queue: Queue,
        files: ImageFiles,
        generator: Callable[[str], ImageGenerator],
        device_lock: threading.Lock,
        *,
        on_drawn: Callable[[int], object],
        on_failed: Callable[[int, str], object],
        on_stopped: Callable[[], object],
        batch_size: int,
        max_history: int,
    ):
        self.queue, self.files, self.generator = queue, files, generator
        self.on_drawn, self.on_failed, self.on_stopped = on_drawn, on_failed, on_stopped
        self.batch_size, self.max_history = batch_size, max_history
        self.progress: dict[int, Progress] = {}
        """Of the images at work, by number."""
        self.problem = ""
        """Why the queue cannot be used now; empty if it can."""
        self._drawn: tuple[list[ImageRow], str] | None = None
        """The last batch, and what went wrong, until its jobs are told."""
        self._ended: set[int] = set()
        """Numbers of jobs that ended otherwise while the batch is at work: no SQL at each step."""
        self._device_lock = device_lock
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)

    def start(self) -> None:
        """Begin to draw."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the queue now."""
        self._wake.set()

    def leave_out(self, job_number: int) -> None:
        """Draw no further for a job that has ended."""
        self._ended.add(job_number)

    @property
    def is_alive(self) -> bool:
        """Whether there is anybody who draws."""
        return self._thread.is_alive()

    @property
    def is_stopping(self) -> bool:
        """Whether the batch at work is the last one."""
        return self._stopping.is_set()

    def begin_to_stop(self) -> None:
        """Draw the batch at work to its end and no other."""
        self._stopping.set()
        self._wake.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the batch at work is drawn."""
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                if not self._draw_next():
                    self._wake.wait(SECONDS_BETWEEN_LOOKS)
                    self._wake.clear()
                self.problem = ""
            except Exception as error:
                # A full disk may have room again: without this thread nothing would ever be drawn.
                if not self.problem:
                    logger.exception("the queue cannot be used; trying again every second")
                self.problem = _told(error)
                self._stopping.wait(SECONDS_BETWEEN_LOOKS)
        self.on_stopped()

    def _draw_next(self) -> bool:
        """Draw a batch and tell its jobs; return whether there was one."""
        if self._drawn is None:
            batch = self.queue.take(self.batch_size)
            if not batch:
                return False
            with self._device_lock:
                self._drawn = batch, self._draw(batch)
        batch, error = self._drawn
        for number in dict.fromkeys(row.job for row in batch):
            if error:
                self.on_failed(number, error)
            elif self.queue.end_job_if_drawn(number):
                self.on_drawn(number)
        self._drawn = None
        self.files.delete(*self.queue.prune(self.max_history))
        return True

    def _draw(self, batch: list[ImageRow]) -> str:
        """Draw and keep images; return what went wrong, empty if nothing."""
        self._ended.clear()
        self.progress.update({row.number: Progress(row) for row in batch})
        begun, jobs = time.monotonic(), []
        try:
            jobs = [self.queue.job_by_number(number) for number in {row.job for row in batch}]
            self._ended.update(job.number for job in jobs if job.state != "running")
            kinds = {job.kind for job in jobs}
            generator = self.generator(batch[0].model)
            begun = time.monotonic()  # loading is no part of what a step takes
            images = generator.draw(
                [Job(**row.settings) for row in batch],
                batch_size=len(batch),
                on_step=self._step_reporter(batch),
                on_preview=self._preview_keeper(batch),
                # A call's images are looked at by nobody before they are done.
                preview_every=max(1, batch[0].steps // PREVIEWS_PER_IMAGE) if kinds != {"call"} else 0,
            )
            for row, generated in zip(batch, images, strict=True):
                self._keep(row, generated, (time.monotonic() - begun) / len(batch))
        except CancelledDrawing:
            pass
        except Exception as error:
            names = ", ".join(job.id for job in jobs)
            logger.exception("drawing failed; jobs: %s", names)
            return _told(error)
        finally:
            for row in batch:
                self.progress.pop(row.number, None)
        return ""

    def _keep(self, row: ImageRow, generated: Picture, seconds: float) -> None:
        current = self.queue.image(row.id)
        if current is None or current.state != "running":
            return  # cancelled meanwhile
        if generated.status == "ok":
            self.files.save(row.id, generated, row.model)
        self.queue.finish_image(row.number, generated.status, notes=generated.notes, seconds=seconds)

    def _step_reporter(self, batch: list[ImageRow]) -> Callable[[int, int], None]:
        jobs = {row.job for row in batch}

        def on_step(done: int, total: int) -> None:
            for row in batch:
                self.progress[row.number].step = row.steps * done // total
            if jobs <= self._ended:
                raise CancelledDrawing

        return on_step

    def _preview_keeper(
        self, batch: list[ImageRow]
    ) -> Callable[[Sequence[Job], list[Image.Image], int], None]:
        def on_preview(jobs: Sequence[Job], images: list[Image.Image], step: int) -> None:
            if len(jobs) != len(batch):
                return  # halved for want of memory: there is none for previews either
            for row, image in zip(batch, images, strict=True):
                progress = self.progress[row.number]
                progress.preview = encode(image, "JPEG", quality=PREVIEW_QUALITY)
                progress.preview_step = step

        return on_preview


def _told(error: Exception) -> str:
    """What a client is told of an error: no folder of this machine, one line."""
    is_clear = is_user_error(error) or isinstance(error, UnavailableError)
    text = one_line(error) if is_clear else f"{type(error).__name__}: {one_line(error)}"
    return without_folders(text)[:500]
