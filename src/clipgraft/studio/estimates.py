"""How long drawing takes by what was measured last: roughly, for people who decide whether to wait."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from clipgraft.generation.params import Job
from clipgraft.studio.image_files import PictureFiles
from clipgraft.studio.queue import JobRow, Queue
from clipgraft.studio.worker import Progress

MAX_RETRY_SECONDS = 120.0


def shape_of(job: Job) -> str:
    """Equal for pictures that can be drawn in one batch; its first word is the size."""
    return f"{job.width}x{job.height} {job.num_inference_steps} {job.guidance_scale} {job.scheduler}"


class Estimates:
    """Seconds that pictures take.

    Args:
        queue: Knows what waits, and what drawn pictures took.
        files: Of the drawn pictures.
        progress: Of the pictures at work, by number.
    """

    def __init__(self, queue: Queue, files: PictureFiles, progress: Mapping[int, Progress]):
        self.queue, self.files, self.progress = queue, files, progress

    def of(self, jobs: Sequence[tuple[str, Job]]) -> float | None:
        """Seconds of pictures by themselves; None where one of their models never drew."""
        return self._seconds((model, shape_of(job), job.num_steps) for model, job in jobs)

    def until_drawn(self, job: JobRow) -> float | None:
        """Seconds until a job is done; None where a model never drew.

        All that was asked for before it counts as drawn before it. Clients are served in turn, so it may be
        done earlier, where another one's job is long, or later, where others have come since.
        """
        seconds = self._seconds(self.queue.steps_until(job.number))
        if seconds is None:
            return None
        at_work = [each for each in list(self.progress.values()) if each.row.job <= job.number]
        done = self._seconds((each.row.model, each.row.shape, each.step) for each in at_work)
        return max(0.0, seconds - (done or 0.0))

    def until_room(self) -> float:
        """Until half of what waits is drawn, from 1 to 120: when a client that was refused may try again."""
        waiting = self.queue.steps_until(2**62)
        seconds = sum(steps * (self._seconds_per_step(model, shape) or 0) for model, shape, steps in waiting)
        return min(MAX_RETRY_SECONDS, max(1.0, seconds / 2))

    def _seconds(self, parts: Iterable[tuple[str, str, int]]) -> float | None:
        total = 0.0
        for model, shape, steps in parts:
            per_step = self._seconds_per_step(model, shape)
            if per_step is None:
                return None
            total += per_step * steps
        return total

    def _seconds_per_step(self, model: str, shape: str) -> float | None:
        """As measured on pictures of that shape; else on another one, in proportion to the pixels."""
        measured = self.queue.seconds_per_step(model, shape)
        if measured is not None:
            return measured
        size = shape.split()[0]
        other = self.queue.nearest_drawn(model, size)
        if other is None or not other.seconds:
            return None
        per_step = other.seconds / other.steps
        pixels = prod(map(int, size.split("x")))
        # 0 = the base's own size, which only a picture tells; without one it passes for the other's.
        if other.shape.split()[0] == size or not pixels:
            return per_step
        return per_step * pixels / (self.files.count_pixels(other.id) or pixels)
