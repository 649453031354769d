"""Drawing for many clients at once, without a web framework: what the page and the API have in common.

One thread draws on the one device that a process holds; everything else only reads and writes the queue.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from copy import deepcopy
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from clipgraft.app.embedding import Embedding
from clipgraft.app.limits import Limits
from clipgraft.app.loaded import Loaded
from clipgraft.app.pictures import SETTINGS, PictureFiles
from clipgraft.app.queue import JobRow, NewPicture, PictureRow, Queue
from clipgraft.app.worker import Worker
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.jobs import SIZE_MULTIPLE, Job
from clipgraft.models.tokenizer import cut_off, unknown_words
from clipgraft.stages.studio import ModelGroup, find_groups

MAX_EMBEDDINGS = 8
MAX_RETRY_SECONDS = 120.0


class StoppedError(RuntimeError):
    """The studio takes no more jobs: it is stopping."""


class UnknownModelError(LookupError):
    """There is no model of that name."""


class Service:
    """Everything the studio does.

    Args:
        runs_dir: Runs to draw with and to look at.
        home: Folder of queue and pictures.
        device: `auto`, `cpu`, `cuda` or `mps`.
        limits: What is taken at most.
    """

    def __init__(self, runs_dir: Path, home: Path, *, device: str = "auto", limits: Limits | None = None):
        self.runs_dir, self.device = runs_dir, device
        self.limits = limits or Limits()
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)  # prompts are nobody else's business
        self.files = PictureFiles(home / "pictures")
        self.queue = Queue(
            home / "queue.sqlite",
            max_waiting=self.limits.max_waiting_pictures,
            max_jobs_per_client=self.limits.max_jobs_per_client,
        )
        self.loaded = Loaded(self.limits.memory_bytes)
        self.device_lock = threading.Lock()
        """Held by whoever computes: the worker for a batch, an embedding for a request."""
        self.embedding = Embedding(runs_dir, device, self.loaded, self.device_lock, self.limits)
        self.slots = threading.BoundedSemaphore(MAX_EMBEDDINGS)
        """For requests that wait for the device's lock in a thread of their own."""
        self.totals: Counter[str] = Counter()
        """Since the start: `pictures`, `batches`, `draw_seconds`, `jobs_<state>`."""
        self.worker = Worker(
            self.queue,
            self.files,
            self.generator,
            self.device_lock,
            self.totals,
            on_drawn=lambda number: self._tell_ended(number, "done"),
            on_failed=lambda number, error: self._end_job(number, "failed", error),
            batch_size=self.limits.batch_size,
            max_history=self.limits.max_history,
        )
        self._tokenizers: dict[str, CLIPTokenizer] = {}
        self._waiting: dict[int, list[Future[JobRow]]] = {}
        self._lock = threading.Lock()

    # -- life ---------------------------------------------------------------------------------------------

    def start(self) -> list[str]:
        """Begin to draw; return the ids of the jobs that the last stop cut off."""
        interrupted = self.queue.recover(self.files.is_there)
        self.worker.start()
        return interrupted

    @property
    def is_stopping(self) -> bool:
        """Whether no more jobs are taken."""
        return self.worker.is_stopping

    def begin_to_stop(self) -> None:
        """Take no more jobs; the batch at work is drawn to its end, what waits stays for the next start."""
        self.worker.begin_to_stop()
        for job in self.queue.open_jobs("call"):
            if job.state == "queued":
                self._end_job(job.number, "interrupted", "the studio is stopping")

    def stop(self, timeout: float | None = None) -> None:
        """Wait until the batch at work is drawn, and close the queue."""
        self.begin_to_stop()
        self.worker.join(timeout)
        for job in self.queue.open_jobs("call"):
            self._end_job(job.number, "interrupted", "the studio is stopping")
        self.queue.close()

    # -- what can be drawn with ---------------------------------------------------------------------------

    def models(self) -> dict[str, tuple[ModelGroup, str]]:
        """Text encoders by the name that clients use, `group/encoder`."""
        groups = find_groups(self.runs_dir)
        return {
            f"{name}/{encoder}": (group, encoder)
            for name, group in groups.items()
            for encoder in group.encoders
        }

    def default_model(self) -> str:
        """The run that was last written to, after fine-tuning; without runs the base itself."""
        names = [name for name in self.models() if name.endswith(("/after", "/graft"))]
        newest = max(names, key=lambda name: (self.runs_dir / name.split("/")[0]).stat().st_mtime, default="")
        return newest or next(iter(self.models()))

    def checked_model(self, name: str) -> str:
        """Return a model's name.

        Raises:
            UnknownModelError: If there is none of that name; says which there are.
        """
        if name not in self.models():
            raise UnknownModelError(f"there is no model {name!r}; known are {', '.join(self.models())}")
        return name

    def guidance_scale(self, model: str) -> float:
        """That suits a model, where none is asked for."""
        return self.models()[model][0].guidance_scale

    def generator(self, model: str) -> ImageGenerator:
        """Load a text encoder with its base. The device's lock must be held.

        Raises:
            KeyError: If there is no such model.
            CheckpointError, FileNotFoundError: If it cannot be loaded.
        """
        group, encoder = self.models()[model]
        generators = self.loaded.get(
            f"draw {group.name}",
            lambda: group.load(self.device),
            lambda loaded: (part for each in loaded.values() for part in _modules(each)),
        )
        return generators[encoder]

    def read_prompt(self, model: str, prompt: str) -> dict[str, Any]:
        """Say what a model reads of a prompt: tokens, what is cut off, words that it does not know."""
        if model not in self._tokenizers:
            with self.device_lock:
                # Of its own: a tokenizer of this kind must not be at work in two threads.
                self._tokenizers[model] = deepcopy(self.generator(model).pipeline.tokenizer)
        with self._lock:
            return _reading(prompt, self._tokenizers[model])

    # -- jobs ---------------------------------------------------------------------------------------------

    def submit(self, client: str, kind: str, jobs: Sequence[tuple[str, Job]]) -> str:
        """Queue pictures to draw.

        Args:
            client: Who asks; clients are served in turn.
            kind: draw, compare, grid or call.
            jobs: Model and settings of each picture.

        Returns:
            The job's id.

        Raises:
            StoppedError: If the studio is stopping.
            ValueError: If the job is too large; says what is allowed.
            BusyError: If too much is waiting.
        """
        if self.is_stopping:
            raise StoppedError("the studio is stopping; ask again when it is back")
        self.check_size([job for _, job in jobs])
        job_id = self.queue.add(client, kind, [_new_picture(model, job) for model, job in jobs])
        self.worker.wake()
        return job_id

    def check_size(self, jobs: Sequence[Job]) -> None:
        """Refuse what would hold the device for too long.

        Raises:
            ValueError: Says which bound, and by what it is passed.
        """
        limits = self.limits
        if not 1 <= len(jobs) <= limits.max_pictures_per_job:
            raise ValueError(f"{len(jobs)} pictures; a job holds from 1 to {limits.max_pictures_per_job}")
        pixel_steps = 0
        for job in jobs:
            side = max(job.height, job.width)
            if side > limits.max_side or 0 < min(job.height or side, job.width or side) < 8 * SIZE_MULTIPLE:
                raise ValueError(
                    f"{job.width} x {job.height} pixels; each side has from 64 to {limits.max_side}"
                )
            if job.num_inference_steps > limits.max_steps:
                raise ValueError(f"{job.num_inference_steps} steps; at most {limits.max_steps} are taken")
            if len(job.prompt) + len(job.negative_prompt) > limits.max_prompt_characters:
                raise ValueError(
                    f"the prompt is too long; at most {limits.max_prompt_characters} characters are taken"
                )
            pixel_steps += (job.height or 512) * (job.width or 512) * job.num_inference_steps
        if pixel_steps > limits.max_pixel_steps:
            raise ValueError(
                f"{len(jobs)} pictures of this size in so many steps are "
                f"{pixel_steps / limits.max_pixel_steps:.1f} times what one job may ask for; "
                "ask for fewer, smaller ones or fewer steps"
            )

    def wait(self, job_id: str) -> "Future[JobRow]":
        """Return what becomes the job's row when it has ended."""
        future: Future[JobRow] = Future()
        with self._lock:
            job = self.queue.job(job_id)
            assert job is not None
            if job.state in ("queued", "running"):
                self._waiting.setdefault(job.number, []).append(future)
                return future
        future.set_result(job)
        return future

    def cancel(self, job_id: str) -> bool:
        """Cancel an open job, within one denoising step; return whether it was open.

        A picture that shares its batch with another job's is drawn to its end and thrown away.
        """
        job = self.queue.job(job_id)
        return job is not None and self._end_job(job.number, "cancelled")

    def describe(self, job: JobRow) -> dict[str, Any]:
        """A job as plain values, with its pictures and how far they are."""
        rows = self.queue.pictures_of(job.number)
        pictures = [self.describe_picture(row) for row in rows]
        done = sum(picture["step"] for picture in pictures)
        return {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "error": job.error,
            "created": job.created,
            "started": job.started,
            "ended": job.ended,
            "step": done,
            "steps": sum(picture["steps"] for picture in pictures),
            "seconds_left": self._seconds_left(job, rows) if job.state in ("queued", "running") else None,
            "pictures": pictures,
        }

    def describe_picture(self, row: PictureRow) -> dict[str, Any]:
        """A picture as plain values."""
        progress = self.worker.progress.get(row.number)
        is_open = row.state in ("queued", "running")
        step = (progress.step if progress else 0) if is_open else row.steps
        return {
            "id": row.id,
            "number": row.number,
            "model": row.model,
            "state": row.state,
            "settings": row.settings,
            "notes": row.notes,
            "step": step,
            "steps": row.steps,
            "preview_step": progress.preview_step if progress else 0,
            "seconds": row.seconds,
            "ended": row.ended,
        }

    def preview(self, picture_id: str) -> bytes:
        """The picture as it is while it is being drawn, as JPEG; empty where there is none."""
        row = self.queue.picture(picture_id)
        progress = self.worker.progress.get(row.number) if row else None
        return progress.preview if progress else b""

    def estimate(self, jobs: Sequence[tuple[str, Job]]) -> float | None:
        """Seconds that drawing takes by what was measured last; None where that model never drew."""
        total = 0.0
        for model, job in jobs:
            per_step = self.queue.seconds_per_step(model, _shape(job)) or self.queue.seconds_per_step(model)
            if per_step is None:
                return None
            total += per_step * job.num_inference_steps
        return total

    def seconds_until_room(self) -> float:
        """Until half of what waits is drawn, from 1 to 120: when a client that was refused may try again."""
        seconds = 0.0
        for model, steps in self.queue.steps_before(2**62):
            seconds += steps * (self.queue.seconds_per_step(model) or 0)
        return min(MAX_RETRY_SECONDS, max(1.0, seconds / 2))

    def delete_picture(self, picture_id: str) -> bool:
        """Forget a drawn picture and delete its file; return whether there was one."""
        was_there = self.queue.delete_picture(picture_id)
        if was_there:
            self.files.delete(picture_id)
        return was_there

    def _seconds_left(self, job: JobRow, rows: Sequence[PictureRow]) -> float | None:
        done = sum(progress.step for progress in list(self.worker.progress.values()))
        total, ahead = 0.0, self.queue.steps_before(job.number)
        for model, steps in ahead:
            per_step = self.queue.seconds_per_step(model)
            if per_step is None:
                return None
            total += per_step * max(0, steps - done)
            done = max(0, done - steps)
        return total

    def _end_job(self, number: int, state: str, error: str = "") -> bool:
        ended = self.queue.end_job(number, state, error)
        if ended:
            self._tell_ended(number, state)
        return ended

    def _tell_ended(self, number: int, state: str) -> None:
        self.totals[f"jobs_{state}"] += 1
        with self._lock:
            futures = self._waiting.pop(number, [])
            job = self.queue.job_by_number(number)
        for future in futures:
            if not future.cancelled():
                future.set_result(job)


def _modules(generator: ImageGenerator) -> list[Any]:
    pipeline = generator.pipeline
    return [part for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder) if part is not None]


def _shape(job: Job) -> str:
    """Equal for pictures that can be drawn in one batch."""
    return f"{job.width}x{job.height} {job.num_inference_steps} {job.guidance_scale} {job.scheduler}"


def _new_picture(model: str, job: Job) -> NewPicture:
    settings = {name: getattr(job, name) for name in SETTINGS}
    return NewPicture(model, _shape(job), settings, job.num_steps)


def _reading(prompt: str, tokenizer: CLIPTokenizer) -> dict[str, Any]:
    num_tokens = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
    return {
        "num_tokens": num_tokens,
        "max_tokens": tokenizer.model_max_length,
        "cut_off": cut_off(prompt, tokenizer) if num_tokens > tokenizer.model_max_length else "",
        "unknown_words": unknown_words(prompt, tokenizer),
    }
