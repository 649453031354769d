"""What is to be drawn: one job a picture, checked before anything is loaded."""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from clipgraft.data.images import opened_image
from clipgraft.errors import UserError
from clipgraft.files import file_sha256
from clipgraft.generation.schedulers import SCHEDULERS, max_steps
from clipgraft.models.defaults import DrawingDefaults
from clipgraft.settings import MAX_GUIDANCE_SCALE

MAX_SLUG_LENGTH = 50
"""Characters of a prompt in a file name: file systems end at 255 bytes, a character has up to four."""
MAX_SEED = 2**64 - 1
SIZE_MULTIPLE = 8
"""Pixels a latent position covers in Stable Diffusion's VAE."""
MAX_SIDE = 2**16
"""Pixels; more than any machine here could draw (a guess)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One picture to draw.

    Raises:
        ValueError: If a value is not allowed; says what is.
    """

    prompt: str
    seed: int = 0
    negative_prompt: str = ""
    num_inference_steps: int | None = None
    """None = those that suit the base, see `resolved`."""
    guidance_scale: float | None = None
    """1 = no guidance; None = the one that suits the base."""
    scheduler: str = "dpm++"
    """A key of `schedulers.SCHEDULERS`."""
    height: int = 0
    """Pixels, a multiple of 8; 0 = the base's own size."""
    width: int = 0
    init_image: Path | None = None
    """Picture to start from; None = from noise alone."""
    strength: float = 0.8
    """Share of the steps that change `init_image`; 1 = nothing of it is left."""

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        _check_integer("seed", self.seed, 0, MAX_SEED, "from 0 to 2^64 - 1 (64 bits)")
        if self.guidance_scale is not None:
            allowed = f"from 1 (no guidance) to {MAX_GUIDANCE_SCALE}"
            _check_number("guidance_scale", self.guidance_scale, 1, MAX_GUIDANCE_SCALE, allowed)
        if not isinstance(self.scheduler, str) or self.scheduler not in SCHEDULERS:
            raise UserError(f"scheduler must be one of {', '.join(SCHEDULERS)}; got {self.scheduler!r}")
        _check_number("strength", self.strength, 0, 1, "above 0, at most 1")
        if self.num_inference_steps is not None:
            self._check_steps(max_steps(self.scheduler))
        for name in ("height", "width"):
            _check_size(name, getattr(self, name))
        if self.init_image is not None:
            _check_image("init_image", self.init_image)

    def _check_steps(self, most: int) -> None:
        allowed = f"from 1 to {most} with scheduler {self.scheduler!r}"
        _check_integer("steps", self.num_inference_steps, 1, most, allowed)
        if self.init_image is not None and not self.num_steps:
            raise UserError(
                f"{self.num_inference_steps} steps at strength {self.strength} leave none to draw; raise one"
            )

    def resolved(self, defaults: DrawingDefaults, num_train_timesteps: int = 1000) -> "Job":
        """Return the job with the base's own values where it names none.

        Args:
            defaults: The base's.
            num_train_timesteps: The base's, which bound the number of steps.

        Raises:
            UserError: If the scheduler cannot take so many steps on that base.
        """
        job = self
        if self.num_inference_steps is None or self.guidance_scale is None:
            job = replace(
                self,
                num_inference_steps=self.num_inference_steps or defaults.num_inference_steps,
                guidance_scale=self.guidance_scale or defaults.guidance_scale,
            )
        job._check_steps(max_steps(job.scheduler, num_train_timesteps))
        return job

    @property
    def num_steps(self) -> int:
        """Denoising steps that are run, of an `init_image` only the last ones; of a resolved job."""
        assert self.num_inference_steps is not None
        if self.init_image is None:
            return self.num_inference_steps
        return int(self.num_inference_steps * self.strength)

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt has a part; of a resolved job."""
        assert self.guidance_scale is not None
        return self.guidance_scale > 1

    def as_record(self) -> dict[str, Any]:
        """Return what decides the picture as plain values; of `init_image`, where there is one, the sum."""
        names = [field.name for field in fields(self) if field.name not in ("init_image", "strength")]
        record = {name: getattr(self, name) for name in names}
        if self.init_image is not None:
            record |= {"init_image_sha256": _sum_of(self.init_image), "strength": self.strength}
        return record


def make_jobs(prompt: str, *, num_images: int = 1, steps: int | None = None, **settings: Any) -> list[Job]:
    """Make the jobs of one prompt from the words of the command line, their seeds counting up.

    Args:
        prompt: What to draw.
        num_images: Pictures.
        steps: `num_inference_steps`.
        **settings: The other fields of `Job`.

    Raises:
        ValueError: If a word is unknown, or a value is not allowed.
    """
    for word in settings:
        known = (*WORDS, "num_images")
        if word not in known:
            nearest = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
            raise UserError(f"unknown setting {word!r} ({hint})")
    _check_integer("num_images", num_images, 1, 2**31, "at least 1")
    job = Job(prompt, num_inference_steps=steps, **settings)
    return [replace(job, seed=job.seed + index) for index in range(num_images)]


WORDS = tuple({"num_inference_steps": "steps"}.get(field.name, field.name) for field in fields(Job))
"""Of the command line, of `ImageGenerator.generate` and of a line of prompts, beside `num_images`."""


def batches(jobs: Iterable[Job], batch_size: int) -> Iterator[list[Job]]:
    """Split jobs into batches of neighbours that differ in prompts, seeds and first pictures alone."""
    _check_integer("batch_size", batch_size, 1, 2**31, "at least 1")
    for _, same in groupby(jobs, key=_shared_settings):
        while batch := list(islice(same, batch_size)):
            yield batch


def picture_file_name(prompt: str, seed: int) -> str:
    """File name that tells a picture's prompt and seed: "a-dog-on-the-beach_seed0.png"."""
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:MAX_SLUG_LENGTH].rstrip("-") or "empty-prompt"
    return f"{slug}_seed{seed}.png"


def _sum_of(path: Path) -> str:
    status = path.stat()
    return _sum_of_state(path, status.st_size, status.st_mtime_ns)


@cache
def _sum_of_state(path: Path, _size: int, _mtime_ns: int) -> str:
    return file_sha256(path)


def _shared_settings(job: Job) -> tuple:
    return (
        job.num_inference_steps,
        job.guidance_scale,
        job.scheduler,
        job.height,
        job.width,
        job.init_image is None,
        job.strength,
    )


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name} must be a text; got {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f"{name} holds half a character (a lone surrogate); got {value!r}")


def _check_integer(name: str, value: Any, lowest: int, highest: int, allowed: str) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or not lowest <= value <= highest:
        raise UserError(f"{name} must be {allowed}; got {value!r}")


def _check_number(name: str, value: Any, lowest: float, highest: float, allowed: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not lowest <= value <= highest or (highest == 1 and value == 0):
        raise UserError(f"{name} must be {allowed}; got {value!r}")


def _check_size(name: str, value: Any) -> None:
    allowed = (
        f"a multiple of {SIZE_MULTIPLE} from {SIZE_MULTIPLE} to {MAX_SIDE}, or 0 for the base's own size"
    )
    _check_integer(name, value, 0, MAX_SIDE, allowed)
    if value % SIZE_MULTIPLE:
        raise UserError(f"{name} must be a multiple of {SIZE_MULTIPLE} pixels; got {value}")


def _check_image(name: str, path: Any) -> None:
    """Refuse a picture whose header says that `open_image` would; its pixels are not decoded yet."""
    if not isinstance(path, Path):
        raise UserError(f"{name} must be the path of a JPEG, PNG or WebP picture; got {path!r}")
    try:
        with opened_image(path):
            pass
    except UserError as error:
        raise UserError(f"{name} {error}") from error
