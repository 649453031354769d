"""Images from prompts into a folder."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from diffusers.utils import make_image_grid
from PIL import Image

from clipgraft.console import print_line, say
from clipgraft.device import choose_device, num_processes
from clipgraft.errors import UserError, number_of
from clipgraft.files import fingerprint
from clipgraft.generation.contact_sheet import FAILURES
from clipgraft.generation.engines.engine import approximations, openvino_advice
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.generation.image_encoding import MAX_EXIF_TEXT, write_image
from clipgraft.generation.image_folder import LIST_NAME, ImageFolder, ImageRow, Slot, refuse_replacing
from clipgraft.generation.prompt_embeds import request_notes
from clipgraft.generation.request_files import image_files
from clipgraft.generation.requests import ImageRequest, idle_settings, image_file_name
from clipgraft.models.defaults import STABLE_DIFFUSION
from clipgraft.sampling_params import (
    DEFAULT_INFERENCE,
    DEFAULT_SAMPLING,
    EncodeParams,
    InferenceConfig,
)

MAX_PRINTED_NOTES = 10
"""Prompts whose notes are printed; `images.json` has all."""
MAX_LISTED = 20
"""List at most this many images at the end; beyond it, only the failures."""
PREVIEW_NAME = "preview.png"


@dataclass(frozen=True)
class GenerateOptions:
    """How to generate, whatever the requests are."""

    base: str = ""
    """The base in place of the one that a graft names."""
    device: str = "auto"
    offload: str = "none"
    batch_size: int = 4
    with_metadata: bool = True
    image_format: str = "png"
    """One of `ImageFormat`; an image that is reproduced keeps its own."""
    preview_every: int = 0
    """Steps between previews of a batch; 0 = none."""
    with_count: bool = False
    """Print the number of images and steps first."""
    is_dry_run: bool = False
    """Print the number of images and steps, and generate nothing."""
    is_quiet: bool = False
    """Print nothing on standard output."""
    inference: InferenceConfig = DEFAULT_INFERENCE


class Stopped(KeyboardInterrupt):
    """Ctrl-C during generation; `rows` are those of the finished images."""

    def __init__(self, rows: list[ImageRow]):
        super().__init__()
        self.rows = rows


def approximations_of(requests: Sequence[ImageRequest], inference: InferenceConfig) -> list[str]:
    """Name the settings that make other images than the defaults."""
    own, named = STABLE_DIFFUSION.num_inference_steps, []
    params = (request.params for request in requests)
    for name, steps in dict.fromkeys((each.scheduler, each.num_inference_steps or own) for each in params):
        words = number_of(steps, "step")
        if name != DEFAULT_SAMPLING.scheduler:
            named.append(f"scheduler {name}, {words}")
        elif steps != own:
            named.append(words)
    loras = dict.fromkeys(lora for request in requests for lora in request.params.loras)
    named += [f"LoRA {Path(lora.file).stem} at {lora.strength:g}" for lora in loras]
    named += [f"VAE {Path(inference.vae).name}"] * bool(inference.vae)
    return named + approximations(inference)


def generate(
    requests: Sequence[ImageRequest],
    encoders: Mapping[str, Path | None],
    out_dir: Path,
    options: GenerateOptions = GenerateOptions(),
) -> list[ImageRow]:
    """Generate images with each text encoder; several processes share the batches.

    Args:
        requests: What to generate.
        encoders: For each variant a graft folder, or None for the base's own text encoder.
        out_dir: Gets a file for each image, named after prompt and seed, and `images.json`; each of several
            variants has a folder of its own. Finished images are not generated again; an image of another
            request or other models stays, and the new one's name gets a number.
        options: How to generate.

    Returns:
        A row for each variant and request, in that order; none in a dry run, and in all processes but the
        first.

    Raises:
        UserError: If the folder cannot be written, or a parameter does not fit the base.
        CheckpointError: If a graft does not fit the base.
        Stopped: At Ctrl-C, if this is the only process.
    """
    work = _Work(requests, encoders, out_dir, options)
    if work.folder.rank == 0:
        _say_approximations(requests, options)
    try:
        generators = dict(
            load_generators(
                encoders,
                base=options.base,
                device=options.device,
                offload=options.offload,
                inference=options.inference,
            )
        )
        work.begin(generators)
        for variant, generator in generators.items():
            work.generate(variant, generator)
    except KeyboardInterrupt as stop:
        if work.folder.processes is None:
            raise Stopped(work.end(" before it was stopped; the same command generates the rest")) from stop
        raise
    return work.end()


class _Work:
    """Requests, the folder for their images, and what is still missing."""

    def __init__(
        self,
        requests: Sequence[ImageRequest],
        encoders: Mapping[str, Path | None],
        out_dir: Path,
        options: GenerateOptions,
    ):
        self.requests, self.options, self.started = list(requests), options, time.monotonic()
        processes = None
        if num_processes() > 1:
            processes = PartialState(cpu=choose_device(options.device).type == "cpu")
        self.folder = ImageFolder(
            out_dir,
            processes=processes,
            with_metadata=options.with_metadata,
            image_format=options.image_format,
        )
        if options.image_format == "jpeg" and options.with_metadata:
            _refuse_long(requests)
        refuse_replacing(out_dir, (path for each in requests for path in image_files(each.params)))
        self.labels = {variant: variant if len(encoders) > 1 else "" for variant in encoders}
        self.slots: list[Slot] = []
        """Of all variants, in order."""
        self.missing: dict[str, list[Slot]] = {}
        """By variant."""
        self.num_finished = 0
        self.batch_size = options.batch_size

    def begin(self, generators: Mapping[str, ImageGenerator]) -> None:
        """Find finished images, reserve files for the rest, print notes."""
        self.started = time.monotonic()
        first = next(iter(generators.values()))
        self.requests = first.resolve(self.requests)
        missing: dict[str, list[Slot]] = {}
        for variant, generator in generators.items():
            names = (image_file_name(request.prompt, request.seed) for request in self.requests)
            wanted = (f"{self.labels[variant]}/{name}".lstrip("/") for name in names)
            keys = [image_key(request, generator) for request in self.requests]
            slots = self.folder.reserve(wanted, self.requests, keys)
            missing[variant] = [slot for slot in slots if not self.folder.is_finished(slot)]
            self.slots += slots
        self.missing = missing
        self.num_finished = len(self.slots) - sum(map(len, missing.values()))
        if self.folder.rank == 0:
            _say_notes(self.requests, first)
            if self.options.with_count:
                say_count([slot.request for slots in missing.values() for slot in slots])
        self.folder.wait()  # else another process could take for finished what this one has just generated

    def generate(self, variant: str, generator: ImageGenerator) -> None:
        """Generate what is missing of a variant, unless in a dry run."""
        if self.options.is_dry_run:
            return
        self.batch_size = self.folder.fill(
            self.labels[variant],
            generator,
            self.missing[variant],
            batch_size=self.batch_size,
            on_preview=self._write_preview,
            preview_every=self.options.preview_every,
        )
        self.missing[variant] = []  # also what the other processes have generated

    def end(self, circumstance: str = "") -> list[ImageRow]:
        """Write the list of images and print the outcome."""
        self.folder.wait()
        if self.options.is_dry_run or self.folder.rank:
            return []
        folder = self.folder.folder
        if self.options.preview_every:
            (folder / PREVIEW_NAME).unlink(missing_ok=True)
        missing = {slot.file for slots in self.missing.values() for slot in slots} - self.folder.added
        rows = self.folder.write_list(slot.file for slot in self.slots if slot.file not in missing)
        if not self.options.is_quiet:
            _print(rows, folder)
            print_line(_summary(rows, self.num_finished, time.monotonic() - self.started) + circumstance)
        return rows

    def _write_preview(
        self, _requests: Sequence[ImageRequest], images: list[Image.Image], _step: int
    ) -> None:
        write_image(make_image_grid(images, 1, len(images)), self.folder.folder / PREVIEW_NAME)


def _refuse_long(requests: Sequence[ImageRequest]) -> None:
    """Refuse prompts that a JPEG could not hold in its settings."""
    for request in requests:
        text = request.prompt + request.params.negative_prompt
        if len(text.encode("utf-16-be")) + len(text.encode()) > MAX_EXIF_TEXT:
            raise UserError(
                f"a prompt of {len(text):,} characters does not fit into a JPEG's settings: "
                f"{text[:40]!r}...; name --format png or webp, or --no-metadata"
            )


def image_key(request: ImageRequest, generator: ImageGenerator) -> str:
    """Return the checksum of a resolved request and a generator's models."""
    return fingerprint(request.as_record(), generator.models)


def say_count(requests: Sequence[ImageRequest]) -> None:
    """Print the number of images and of denoising steps."""
    num_steps = sum(request.num_steps for request in requests)
    say(f"{number_of(len(requests), 'image')}, {number_of(num_steps, 'step')}")


def _say_approximations(requests: Sequence[ImageRequest], options: GenerateOptions) -> None:
    for approximation in approximations_of(requests, options.inference):
        say(f"{approximation}: changes the image")
    advice = openvino_advice(choose_device(options.device))
    if advice and options.inference.engine == "auto":
        say(advice)


def _say_notes(requests: Sequence[ImageRequest], generator: ImageGenerator) -> None:
    texts = []
    for request in requests:
        read, negative = EncodeParams.of(request.params), request.params.negative_prompt
        texts += [("", request.prompt, read)] + [("negative prompt ", negative, read)] * bool(
            negative.strip()
        )
    num_noted = 0
    for kind, prompt, read in dict.fromkeys(texts):
        notes = request_notes(prompt, generator.pipeline.tokenizer, read)
        num_noted += bool(notes)
        for note in notes if num_noted <= MAX_PRINTED_NOTES else ():
            say(f"{kind}{prompt[:60]!r}: {note}")
    for sentence in dict.fromkeys(each for request in requests for each in idle_settings(request)):
        say(sentence)
    if num_noted > MAX_PRINTED_NOTES:
        say(f"{num_noted - MAX_PRINTED_NOTES} more prompts have notes, see {LIST_NAME}")


def _print(rows: Sequence[ImageRow], folder: Path) -> None:
    shown = rows if len(rows) <= MAX_LISTED else [row for row in rows if row.status != "ok"][:MAX_LISTED]
    for row in shown:
        reason = FAILURES.get(row.status)
        print_line(f"{row.status}  {folder / row.file}" + (f" was not written: {reason}" if reason else ""))


def _summary(rows: Sequence[ImageRow], num_finished: int, seconds: float) -> str:
    """One line: what was generated, was there before, failed."""
    num_new = len(rows) - num_finished
    parts = [
        f"{num_new} generated in {seconds:.1f} s" + (f" ({seconds / num_new:.2f} s each)" if num_new else "")
    ]
    if num_finished:
        parts.append(f"{num_finished} already there")
    counts = Counter(row.status for row in rows)
    parts += [f"{count} {status}" for status, count in counts.items() if status != "ok"]
    return f"{number_of(len(rows), 'image')}: " + ", ".join(parts)
