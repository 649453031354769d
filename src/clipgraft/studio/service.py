"""The studio without a web framework, shared by page and API.

One thread generates on the one device; everything else only reads and writes the queue.
"""

import logging
import threading
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from clipgraft.data.transforms import encode_whole
from clipgraft.errors import UserError
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.prompt_embeds import split_prompt, text_of
from clipgraft.generation.requests import ImageRequest
from clipgraft.models.tokenizer import cut_off, unknown_words
from clipgraft.sampling_params import DEFAULT_INFERENCE, InferenceConfig, PromptParams
from clipgraft.section import PIXELS_PER_LATENT
from clipgraft.studio.catalog import Catalog, ModelCache
from clipgraft.studio.data_folders import DataFolders
from clipgraft.studio.database import Health, UnavailableError
from clipgraft.studio.image_files import ImageFiles
from clipgraft.studio.model_folder import ModelFolder
from clipgraft.studio.named_files import NamedFiles
from clipgraft.studio.queue import CALLS, OPEN, ImageRow, JobRow, Queue
from clipgraft.studio.schemas import Limits
from clipgraft.studio.search import Embedder
from clipgraft.studio.training_jobs import TrainingJobs
from clipgraft.studio.uploads import Uploads
from clipgraft.studio.worker import Worker

logger = logging.getLogger(__name__)

MAX_EMBEDDINGS = 8
"""Requests that may wait for the device in a thread each."""


class StoppedError(RuntimeError):
    """The studio is stopping and takes no more jobs."""

    code = "stopping"


class TrainingError(StoppedError):
    """A training has the device, and calls do not wait for it."""

    code = "training"


class Service:
    """Everything the studio does.

    Args:
        runs_dir: Runs to generate with and to look at.
        home: Folder of queue and images.
        inference: Engine, safety checker and VAE of all models.
        data_dir: Folder of data sets to train on; None = nothing is trained.
        models_dir: Folder of LoRAs, ControlNets, IP-Adapters and embeddings; None = there are none.
    """

    def __init__(
        self,
        runs_dir: Path,
        home: Path,
        *,
        device: str = "auto",
        inference: InferenceConfig = DEFAULT_INFERENCE,
        limits: Limits | None = None,
        cache: ModelCache | None = None,
        data_dir: Path | None = None,
        models_dir: Path | None = None,
    ):
        self.data = DataFolders(data_dir)
        self.inference = inference
        self.catalog, self.limits = Catalog(runs_dir), limits or Limits()
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)  # prompts are nobody else's business
        if (home / "pictures").is_dir() and not (home / "images").exists():
            (home / "pictures").rename(home / "images")  # its name in earlier versions
        self.files = ImageFiles(home / "images")
        self.uploads = Uploads(
            home / "uploads",
            max_bytes=self.limits.max_uploads_bytes,
            max_pixels=self.limits.max_upload_pixels,
        )
        self.named = NamedFiles(ModelFolder(models_dir), self.uploads)
        self.queue = Queue(
            home / "queue.sqlite",
            max_waiting=self.limits.max_waiting_images,
            max_jobs_per_client=self.limits.max_jobs_per_client,
            settings_of=self.named.settings_of,
        )
        self.cache = cache or ModelCache(device, self.limits.memory_bytes)
        self.embedder = Embedder(self.catalog, self.cache, self.limits)
        self.slots = threading.BoundedSemaphore(MAX_EMBEDDINGS)
        self.worker = Worker(
            self.queue,
            self.files,
            self.uploads,
            self.generator,
            self.cache.lock,
            request_of=self.named.request_of,
            on_batch_end=self.settle,
            on_stopped=lambda: self._end_calls(*OPEN),
            limits=self.limits,
        )
        self.trainings = TrainingJobs(home / "training", runs_dir, self._device_for_training)
        self.health = Health(home, self.queue.database, lambda: self.worker.problem)
        self._tokenizers: dict[str, tuple[Hashable, CLIPTokenizer]] = {}
        self._tokenizer_lock = threading.Lock()
        """A tokenizer of this kind must not be used by two threads at once."""
        self.training_name = ""
        """The training for which images wait; empty if none."""
        self._waiting: dict[int, list[Future[JobRow]]] = {}
        self._lock = threading.Lock()

    def start(self) -> list[str]:
        """Start generating; return ids of jobs interrupted by the last stop."""
        interrupted = self.queue.recover(self.files.is_there)
        self.uploads.delete_others(self.queue.upload_ids())
        self.trainings.recover()
        self.worker.start()
        return interrupted

    @property
    def is_stopping(self) -> bool:
        """Whether no more jobs are taken."""
        return self.worker.is_stopping

    def begin_to_stop(self) -> None:
        """Take no more jobs; finish the running batch, keep waiting jobs.

        A call, whose client waits for the answer, is interrupted: at once if it has not begun, else after
        that batch.
        """
        self.worker.begin_to_stop()
        self.trainings.begin_to_stop()
        self._end_calls("queued")

    def stop(self, timeout: float | None = None) -> None:
        """Wait for the running batch and a training's checkpoint; close the queue."""
        self.begin_to_stop()
        if self.worker.is_alive():
            self.worker.join(timeout)
        self.trainings.join(timeout)
        self._end_calls(*OPEN)
        self.queue.database.close()

    @property
    def vae(self) -> str:
        """Name of the VAE for all bases; empty = each one's own."""
        return Path(self.inference.vae).name

    def generator(self, model: str) -> ImageGenerator:
        """Load a model. The cache's lock must be held."""
        group, variant = self.catalog.model(model)
        return self.cache.get(
            f"images {group.name}",
            lambda: group.load(self.cache.device, self.inference),
            lambda loaded: (part for each in loaded.values() for part in _modules(each)),
            group.version,
        )[variant]

    def read_prompt(self, model: str, prompt: str, params: PromptParams) -> dict[str, Any]:
        """Describe a model's reading of a prompt: tokens, chunks, unknown words.

        Raises:
            UserError: If the prompt's syntax is wrong.
        """
        group = self.catalog.model(model)[0]
        with self._tokenizer_lock:
            version, tokenizer = self._tokenizers.get(group.name, (None, None))
            if tokenizer is None or version != group.version:
                # Loaded without its model: a prompt in the making waits neither for the base nor the device.
                tokenizer = group.load_tokenizer()
                self._tokenizers[group.name] = group.version, tokenizer
            text = text_of(prompt, params)
            return {
                "num_tokens": len(encode_whole([text], tokenizer)[0]),
                "max_tokens": tokenizer.model_max_length,
                "num_chunks": len(split_prompt(prompt, tokenizer, params)),
                "cut_off": cut_off(text, tokenizer) if params.long_prompts == "cut" else "",
                "unknown_words": unknown_words(text, tokenizer),
            }

    def submit(self, client: str, kind: str, requests: Sequence[tuple[str, ImageRequest]]) -> str:
        """Queue images and return the job's id.

        Args:
            client: Address of the client, a space, and a name that it gives itself.
            kind: generate, compare, grid, call or stream.
            requests: Model and request of each image.

        Raises:
            StoppedError: If the studio is stopping.
            UserError: If the job is too large; says what is allowed.
            BusyError: If too much is waiting.
        """
        if self.is_stopping:
            raise StoppedError("the studio is stopping; ask again when it is back")
        if kind in CALLS and self.training_name:
            raise TrainingError(f"the studio is training {self.training_name}; ask again when that has ended")
        self.check_size([request for _, request in requests])
        job_id = self.queue.add(client, kind, requests)
        if self.is_stopping or self.training_name:  # since the checks above, which has not seen this job
            self._end_calls("queued")
        self.worker.wake()
        return job_id

    @contextmanager
    def _device_for_training(self, name: str) -> Iterator[None]:
        """Keep the device free: images wait, calls are told so."""
        self.training_name = name
        try:
            self.worker.pause()
            self._end_calls("queued")
            with self.cache.lock:
                self.cache.clear()
            yield
        finally:
            self.training_name = ""
            self.worker.go_on()

    def check_size(self, requests: Sequence[ImageRequest]) -> None:
        """Refuse, with a `UserError`, what would hold the device for too long."""
        limits = self.limits
        if not 1 <= len(requests) <= limits.max_images_per_job:
            raise UserError(f"{len(requests)} images; a job holds from 1 to {limits.max_images_per_job}")
        pixel_steps = 0
        for request in requests:
            params = request.params
            side = max(params.height, params.width)
            least = min(params.height or side, params.width or side)
            if side > limits.max_side or 0 < least < 8 * PIXELS_PER_LATENT:
                raise UserError(
                    f"{params.width} x {params.height} pixels; each side has from 64 to {limits.max_side}"
                )
            if request.num_steps > limits.max_steps:
                raise UserError(f"{request.num_steps} steps; at most {limits.max_steps} are taken")
            length = len(request.prompt) + len(params.negative_prompt)
            if length > limits.max_prompt_characters:
                raise UserError(
                    f"prompt and negative prompt have {length} characters together; at most "
                    f"{limits.max_prompt_characters} are taken: shorten them"
                )
            pixel_steps += (params.height or 512) * (params.width or 512) * request.num_steps
        if pixel_steps > limits.max_pixel_steps:
            raise UserError(
                f"{len(requests)} images of this size in so many steps are "
                f"{pixel_steps / limits.max_pixel_steps:.1f} times what one job may ask for; "
                "ask for fewer, smaller ones or fewer steps"
            )

    def wait(self, job_id: str) -> "Future[JobRow]":
        """Return a future of the job's row when it has ended."""
        future: Future[JobRow] = Future()
        with self._lock:
            job = self.queue.job(job_id)
            assert job is not None
            if job.state in OPEN:
                self._waiting.setdefault(job.number, []).append(future)
                return future
        future.set_result(job)
        return future

    def cancel(self, job_id: str) -> bool:
        """Cancel an open job within one step; return whether it was open.

        An image that shares its batch with another job's is still generated, and dropped.
        """
        job = self.queue.job(job_id)
        return job is not None and self._end_job(job.number, "cancelled")

    def settle(self, numbers: Sequence[int], error: str) -> None:
        """End the jobs of a failed batch, or those without open images."""
        for number in numbers:
            if error:
                self._end_job(number, "failed", error)
            elif self.queue.end_job_if_finished(number):
                self._tell_ended(number)

    def describe(self, job: JobRow) -> dict[str, Any]:
        """Return a job, its images and its progress as plain values."""
        images = [self.describe_image(row) for row in self.queue.images_of(job.number)]
        return {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "error": job.error,
            "created": job.created,
            "started": job.started,
            "ended": job.ended,
            "step": sum(image["step"] for image in images),
            "steps": sum(image["steps"] for image in images),
            "images_before": self.queue.count_before(job.number) if job.state == "queued" else 0,
            "images": images,
        }

    def describe_image(self, row: ImageRow) -> dict[str, Any]:
        """Return an image as plain values."""
        progress = self.worker.progress.get(row.number)
        return {
            "id": row.id,
            "number": row.number,
            "model": row.model,
            "state": row.state,
            "settings": row.settings,
            "notes": row.notes,
            "step": (progress.step if progress else 0) if row.state in OPEN else row.steps,
            "steps": row.steps,
            "preview_step": progress.preview_step if progress else 0,
            "seconds": row.seconds,
            "ended": row.ended,
        }

    def preview(self, image_id: str) -> bytes:
        """Return a running image's preview, or a finished image, as JPEG."""
        row = self.queue.image(image_id)
        if row and row.state == "ok":
            return self.files.read(image_id, "jpeg", with_metadata=False)
        progress = self.worker.progress.get(row.number) if row else None
        return progress.preview if progress else b""

    def delete_image(self, image_id: str) -> bool:
        """Delete a finished image and its file; return whether there was one."""
        was_there = self.queue.delete_image(image_id)
        if was_there:
            self.files.delete(image_id)
            self.uploads.delete_others(self.queue.upload_ids())
        return was_there

    def _end_job(self, number: int, state: str, error: str = "") -> bool:
        try:
            ended = self.queue.end_job(number, state, error)
        except UnavailableError as unavailable:
            self._tell_unavailable(number, unavailable)
            raise
        if ended:
            self.worker.leave_out(number)
            self._tell_ended(number)
        return ended

    def _end_calls(self, *states: str) -> None:
        try:
            for job in self.queue.open_calls():
                if job.state in states:
                    name = self.training_name
                    reason = f"training {name}" if name and not self.is_stopping else "stopping"
                    self._end_job(job.number, "interrupted", f"the studio is {reason}")
        except UnavailableError as error:  # the next start does it, if it can
            logger.warning("the studio stops though its queue cannot be used: %s", error)
            for number in list(self._waiting):
                self._tell_unavailable(number, error)

    def _tell_ended(self, number: int) -> None:
        with self._lock:
            futures = self._waiting.pop(number, [])
            job = self.queue.job_by_number(number)
        for future in futures:
            with suppress(InvalidStateError):  # cancelled: its client has hung up
                future.set_result(job)

    def _tell_unavailable(self, number: int, error: UnavailableError) -> None:
        """Release those who wait for a job whose end cannot be written."""
        with self._lock:
            futures = self._waiting.pop(number, [])
        for future in futures:
            with suppress(InvalidStateError):
                future.set_exception(error)


def _modules(generator: ImageGenerator) -> list[Any]:
    pipeline = generator.pipeline
    return [part for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder) if part is not None]
