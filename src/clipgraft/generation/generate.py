"""Draw pictures from prompts into a folder: what is there already stays, what fails is said."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from diffusers.utils import make_image_grid
from PIL import Image

from clipgraft.config import GenerateSettings
from clipgraft.console import print_line, say, track
from clipgraft.device import choose_device, num_processes
from clipgraft.generation.contact_sheet import STATUS_NOTES
from clipgraft.generation.engines.engine import openvino_advice
from clipgraft.generation.engines.options import DEFAULT_SPEED, SpeedOptions
from clipgraft.generation.estimate import announce
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.generation.image_folder import LIST_NAME, Gallery, refuse_replacing
from clipgraft.generation.metadata import save_png
from clipgraft.generation.params import Job, batches, make_jobs, picture_file_name
from clipgraft.models.defaults import STABLE_DIFFUSION
from clipgraft.models.tokenizer import prompt_notes

MAX_SAID = 10
"""Prompts whose notes are said; `images.json` has all."""
MAX_SHOWN = 20
"""Pictures that are named one by one at the end; of more only those that are none."""
SPEED_WORDS = tuple(field.name for field in fields(SpeedOptions))
PREVIEW_NAME = "preview.png"


@dataclass(frozen=True)
class DrawOptions:
    """How to draw, whatever the jobs are."""

    base: str = ""
    """The base in place of the one that a graft names."""
    device: str = "auto"
    offload: str = "none"
    batch_size: int = 4
    with_metadata: bool = True
    preview_every: int = 0
    """Steps between pictures of a batch in the making; 0 = none."""
    with_estimate: bool = False
    """Say count and time first."""
    is_dry_run: bool = False
    """Say count and time, and draw nothing."""
    is_quiet: bool = False
    """Print nothing on standard output."""
    speed: SpeedOptions = DEFAULT_SPEED
    """What runs the base's networks, and what is left out of the work."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C while pictures were drawn; `rows` of `images.json` are those of the finished ones."""

    def __init__(self, rows: list[dict[str, Any]]):
        super().__init__()
        self.rows = rows


def process_rank() -> int:
    """Number of this process among those that share the work; 0 where it is alone."""
    return int(os.environ.get("RANK", "0"))


def jobs_of(settings: GenerateSettings) -> list[Job]:
    """Jobs of a recipe's prompts."""
    words = settings.model_dump(exclude={"prompts", "batch_size", *SPEED_WORDS})
    words["num_images"] = words.pop("num_images_per_prompt")
    words["steps"] = words.pop("num_inference_steps")
    return [job for prompt in settings.prompts for job in make_jobs(prompt, **words)]


def speed_of(settings: GenerateSettings) -> SpeedOptions:
    """A recipe's engine and shortcuts."""
    return SpeedOptions(**{word: getattr(settings, word) for word in SPEED_WORDS})


def shortcuts_of(jobs: Sequence[Job], speed: SpeedOptions) -> list[str]:
    """Name what makes other pictures than the defaults, to save time or as a reference."""
    own, named = STABLE_DIFFUSION.num_inference_steps, []
    for name, steps in dict.fromkeys((job.scheduler, job.num_inference_steps or own) for job in jobs):
        words = f"{steps} step{'s' * (steps != 1)}"
        if name != Job("").scheduler:
            named.append(f"scheduler {name}, {words}")
        elif steps != own:
            named.append(words)
    return named + speed.shortcuts()


def generate(
    jobs: Sequence[Job],
    encoders: Mapping[str, Path | None],
    out_dir: Path,
    options: DrawOptions = DrawOptions(),
) -> list[dict[str, Any]]:
    """Draw jobs with each text encoder; of several processes each draws a part of the batches.

    Args:
        jobs: What to draw.
        encoders: For each column of pictures a graft folder, or None for the base's own text encoder.
        out_dir: Gets a PNG a picture, named after its prompt and seed, and `images.json`; of several columns
            each has a folder of its own for its pictures. What is there, whole and the same, is not drawn
            again; a picture of another job or other models stays, and the new one's name gets a number.
        options: How to draw.

    Returns:
        A row of `images.json` for each column and job, in that order; none in a dry run, and in all
        processes but the first.

    Raises:
        ValueError: If the folder cannot be written, or a setting does not fit the base.
        CheckpointError: If a graft does not fit the base.
        Stopped: At Ctrl-C, where this is the only process.
    """
    work = _Work(jobs, encoders, out_dir, options)
    if work.rank == 0:
        _say_speed(jobs, options)
    try:
        generators = dict(
            load_generators(
                encoders,
                base=options.base,
                device=options.device,
                offload=options.offload,
                speed=options.speed,
            )
        )
        work.begin(generators)
        for name, generator in generators.items():
            work.draw(name, generator)
    except KeyboardInterrupt as stop:
        if work.is_alone:
            raise Stopped(work.end(" before it was stopped; the same command draws the rest")) from stop
        raise
    return work.end()


class _Work:
    """Jobs, the folder they go to, and what has become of them; one of several processes may do a part."""

    def __init__(
        self,
        jobs: Sequence[Job],
        encoders: Mapping[str, Path | None],
        out_dir: Path,
        options: DrawOptions,
    ):
        self.jobs, self.options, self.started = list(jobs), options, time.monotonic()
        self.rank, self.num_processes = process_rank(), num_processes()
        self.is_alone = self.num_processes == 1
        if not self.is_alone:
            self.processes = PartialState(cpu=choose_device(options.device).type == "cpu")
        self.gallery = Gallery(out_dir, process=self.rank, with_metadata=options.with_metadata)
        refuse_replacing(out_dir, [job.init_image for job in jobs if job.init_image])
        self.columns = {name: name if len(encoders) > 1 else "" for name in encoders}
        self.files: list[str] = []
        """Of all columns, in order."""
        self.pending: dict[str, list[tuple[Job, str]]] = {}
        """What each column has still to draw."""
        self.lacking: set[str] = set()
        """Files that are pending and not there yet."""
        self.num_there = 0
        self.batch_size = options.batch_size

    def begin(self, generators: Mapping[str, ImageGenerator]) -> None:
        """Find out what is there, give the rest its files' names, and say what is to be said before."""
        self.started = time.monotonic()
        first = next(iter(generators.values()))
        self.jobs = first.resolve(self.jobs)
        files: list[str] = []
        for name, generator in generators.items():
            own = self._file_names(name, generator)
            self.pending[name] = [
                (job, file)
                for job, file in zip(self.jobs, own, strict=True)
                if self.gallery.finished(file, job, generator.models) is None
            ]
            files += own
        self.lacking = {file for pending in self.pending.values() for _, file in pending}
        self.num_there = len(files) - len(self.lacking)
        self.files = files
        if self.rank == 0:
            _say_notes(self.jobs, first)
            if self.options.with_estimate:
                columns = [[job for job, _ in pending] for pending in self.pending.values()]
                announce(first, columns, self.batch_size)
        self._wait()  # else another process could take for finished what this one has just drawn

    def draw(self, name: str, generator: ImageGenerator) -> None:
        """Draw what one text encoder has still to draw, unless nothing is to be drawn at all."""
        if not self.options.is_dry_run:
            self._draw_own_batches(name, generator, self.pending[name])
            self.lacking.difference_update(file for _, file in self.pending[name])  # the other processes' too

    def end(self, circumstance: str = "") -> list[dict[str, Any]]:
        """Write the list of pictures and say what has become of the jobs."""
        self._wait()
        if self.options.is_dry_run or self.rank:
            return []
        folder = self.gallery.folder
        if self.options.preview_every:
            (folder / PREVIEW_NAME).unlink(missing_ok=True)
        rows = self.gallery.write_list(file for file in self.files if file not in self.lacking)
        if not self.options.is_quiet:
            _print(rows, folder)
            print_line(_summary(rows, self.num_there, time.monotonic() - self.started) + circumstance)
        return rows

    def _file_names(self, name: str, generator: ImageGenerator) -> list[str]:
        folder = self.columns[name]
        wanted = (f"{folder}/{picture_file_name(job.prompt, job.seed)}".lstrip("/") for job in self.jobs)
        return self.gallery.name_files(wanted, self.jobs, generator.models)

    def _draw_own_batches(
        self, name: str, generator: ImageGenerator, pending: Sequence[tuple[Job, str]]
    ) -> None:
        """Whole batches are shared out: with other neighbours a picture is rounded otherwise."""
        order = iter([file for _, file in pending])
        numbered = [
            (batch, [next(order) for _ in batch])
            for batch in batches([job for job, _ in pending], self.batch_size)
        ]
        own = numbered[self.rank :: self.num_processes]
        done, total = 0, sum(job.num_steps for batch, _ in own for job in batch)
        with track(f"drawing {self.columns[name]}".strip(), total) as update:
            for batch, files in own:
                pictures = generator.draw(
                    batch,
                    batch_size=min(self.batch_size, len(batch)),
                    on_step=lambda steps, _, done=done: update(done + steps, "steps"),
                    on_preview=self._write_preview,
                    preview_every=0 if self.rank else self.options.preview_every,
                    on_less_memory=self._take_less,
                )
                for file, picture in zip(files, pictures, strict=True):
                    self.gallery.add(file, self.columns[name], picture, generator.models)
                    self.lacking.discard(file)
                done += sum(job.num_steps for job in batch)

    def _take_less(self, batch_size: int) -> None:
        say(f"not enough memory for {self.batch_size} pictures at once; going on with {batch_size}")
        self.batch_size = batch_size

    def _write_preview(self, _jobs: Sequence[Job], images: list[Image.Image], _step: int) -> None:
        save_png(make_image_grid(images, 1, len(images)), self.gallery.folder / PREVIEW_NAME, None)

    def _wait(self) -> None:
        if not self.is_alone:
            self.processes.wait_for_everyone()


def _say_speed(jobs: Sequence[Job], options: DrawOptions) -> None:
    for shortcut in shortcuts_of(jobs, options.speed):
        say(f"{shortcut}: class C, another picture")
    advice = openvino_advice(choose_device(options.device))
    if advice and options.speed.engine == "auto":
        say(advice)


def _say_notes(jobs: Sequence[Job], generator: ImageGenerator) -> None:
    texts = [("", job.prompt) for job in jobs]
    texts += [("negative prompt ", job.negative_prompt) for job in jobs if job.negative_prompt.strip()]
    num_noted = 0
    for kind, prompt in dict.fromkeys(texts):
        notes = prompt_notes(prompt, generator.pipeline.tokenizer)
        num_noted += bool(notes)
        for note in notes if num_noted <= MAX_SAID else ():
            say(f"{kind}{prompt[:60]!r}: {note}")
    if num_noted > MAX_SAID:
        say(f"{num_noted - MAX_SAID} more prompts have notes, see {LIST_NAME}")


def _print(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    shown = rows if len(rows) <= MAX_SHOWN else [row for row in rows if row["status"] != "ok"][:MAX_SHOWN]
    for row in shown:
        reason = STATUS_NOTES.get(row["status"])
        print_line(
            f"{row['status']}  {folder / row['file']}" + (f" is not there: {reason}" if reason else "")
        )


def _summary(rows: Sequence[dict[str, Any]], num_there: int, seconds: float) -> str:
    """One line: what was drawn, was there, failed."""
    num_drawn = len(rows) - num_there
    parts = [
        f"{num_drawn} drawn in {seconds:.1f} s"
        + (f" ({seconds / num_drawn:.2f} s each)" if num_drawn else "")
    ]
    if num_there:
        parts.append(f"{num_there} there already")
    counts = Counter(row["status"] for row in rows)
    parts += [f"{count} {status}" for status, count in counts.items() if status != "ok"]
    return f"{len(rows)} picture{'s' * (len(rows) != 1)}: " + ", ".join(parts)
