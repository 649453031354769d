"""The one thread that draws: takes what is next in turn, batch after batch, until it is told to stop."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from clipgraft.app.pictures import PictureFiles
from clipgraft.app.queue import PictureRow, Queue
from clipgraft.app.uploads import encode
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.jobs import Job
from clipgraft.generation.pipeline import Picture
from clipgraft.runtime import without_folders

PREVIEWS_PER_PICTURE = 6
PREVIEW_QUALITY = 80
SECONDS_BETWEEN_LOOKS = 1.0
"""The worker is woken for each job; this is for safety alone."""

logger = logging.getLogger(__name__)


class CancelledDrawing(Exception):
    """Raised within drawing when nobody wants the batch any more."""


@dataclass
class Progress:
    """How far a picture is that is being drawn."""

    step: int
    steps: int
    preview: bytes = b""
    """JPEG."""
    preview_step: int = 0


class Worker:
    """Draws what waits in a queue.

    Args:
        queue: Of jobs.
        files: Where pictures go.
        generator: Loads a model by the name that clients use; called with the device's lock held.
        device_lock: Held for each batch.
        totals: Counts batches, pictures and seconds.
        on_drawn: Called with a job's number when its last picture is drawn.
        on_failed: Called with a job's number and what is wrong; ends the job.
        batch_size: Pictures drawn at once, at most.
        max_history: Pictures kept.
    """

    def __init__(
        self,
        queue: Queue,
        files: PictureFiles,
        generator: Callable[[str], ImageGenerator],
        device_lock: threading.Lock,
        totals: Counter[str],
        *,
        on_drawn: Callable[[int], object],
        on_failed: Callable[[int, str], object],
        batch_size: int,
        max_history: int,
    ):
        self.queue, self.files, self.generator, self.totals = queue, files, generator, totals
        self.on_drawn, self.on_failed = on_drawn, on_failed
        self.batch_size, self.max_history = batch_size, max_history
        self.progress: dict[int, Progress] = {}
        """Of the pictures at work, by number."""
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
            batch = self.queue.take(self.batch_size)
            if not batch:
                self._wake.wait(SECONDS_BETWEEN_LOOKS)
                self._wake.clear()
                continue
            with self._device_lock:
                self._draw(batch)
            for number in dict.fromkeys(row.job for row in batch):
                if self.queue.end_job_if_drawn(number):
                    self.on_drawn(number)
            self.files.delete(*self.queue.prune(self.max_history))

    def _draw(self, batch: list[PictureRow]) -> None:
        self.progress.update({row.number: Progress(0, row.steps) for row in batch})
        begun = time.monotonic()
        try:
            generator = self.generator(batch[0].model)
            begun = time.monotonic()  # loading is no part of what a step takes
            pictures = generator.draw(
                [Job(**row.settings) for row in batch],
                batch_size=len(batch),
                on_step=self._step_reporter(batch),
                on_preview=self._preview_keeper(batch),
                preview_every=self._preview_every(batch),
            )
            for row, picture in zip(batch, pictures, strict=True):
                self._keep(row, picture, (time.monotonic() - begun) / len(batch))
        except CancelledDrawing:
            pass
        except Exception as error:
            logger.exception("drawing failed")
            message = without_folders(" ".join(f"{type(error).__name__}: {error}".split()))[:500]
            for number in dict.fromkeys(row.job for row in batch):
                self.on_failed(number, message)
        finally:
            self.totals["batches"] += 1
            self.totals["draw_milliseconds"] += round(1000 * (time.monotonic() - begun))
            for row in batch:
                self.progress.pop(row.number, None)

    def _keep(self, row: PictureRow, picture: Picture, seconds: float) -> None:
        current = self.queue.picture(row.id)
        if current is None or current.state != "running":
            return  # cancelled meanwhile
        if picture.status == "ok":
            self.files.save(row.id, picture, row.model)
        self.queue.finish_picture(row.number, picture.status, notes=picture.notes, seconds=seconds)
        self.totals[f"pictures_{picture.status}"] += 1

    def _step_reporter(self, batch: list[PictureRow]) -> Callable[[int, int], None]:
        jobs = {row.job for row in batch}

        def on_step(done: int, total: int) -> None:
            for row in batch:
                self.progress[row.number].step = row.steps * done // total
            if all(self.queue.job_by_number(number).state != "running" for number in jobs):
                raise CancelledDrawing

        return on_step

    def _preview_keeper(
        self, batch: list[PictureRow]
    ) -> Callable[[Sequence[Job], list[Image.Image], int], None]:
        def on_preview(jobs: Sequence[Job], images: list[Image.Image], step: int) -> None:
            if len(jobs) != len(batch):
                return  # halved for want of memory: there is none for previews either
            for row, image in zip(batch, images, strict=True):
                progress = self.progress[row.number]
                progress.preview = encode(image, "JPEG", quality=PREVIEW_QUALITY)
                progress.preview_step = step

        return on_preview

    def _preview_every(self, batch: list[PictureRow]) -> int:
        """A call's pictures are looked at by nobody before they are done."""
        kinds = {self.queue.job_by_number(row.job).kind for row in batch}
        return 0 if kinds == {"call"} else max(1, batch[0].steps // PREVIEWS_PER_PICTURE)
