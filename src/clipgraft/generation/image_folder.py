"""Images in a folder with rows, found again, shared out over processes."""

import math
import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any, Self

from accelerate import PartialState
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from clipgraft.console import say, track
from clipgraft.errors import DataError, UserError, number_of
from clipgraft.files import clear_parts, file_sha256, parse_json, read_json, write_json
from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.image_encoding import SUFFIXES, check_format, write_image
from clipgraft.generation.metadata import texts_of
from clipgraft.generation.pipeline import GeneratedImage
from clipgraft.generation.request_guides import ControlRecord, GuideRecord
from clipgraft.generation.requests import ImageRequest, batches

LIST_NAME = "images.json"
OWN_NAMES = ("images.json", "images-*.jsonl", "preview.png", "grid.png", "grid-*.png", "grid.html")
"""Files that generation replaces; an image never replaces one of another request."""


class ImageRow(BaseModel):
    """A row of images.json: an image's file, request and outcome.

    Rows of version 1 had `column` in place of `variant`.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    schema_version: int = 2
    file: str
    """Path within the folder."""
    variant: str = ""
    """Name of the text encoder, where several are compared."""
    prompt: str = ""
    seed: int = 0
    negative_prompt: str = ""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str = ""
    height: int = 0
    """Pixels, as generated."""
    width: int = 0
    init_image_sha256: str | None = None
    mask_image_sha256: str | None = None
    controls: list[ControlRecord] | None = None
    ip_adapters: list[GuideRecord] | None = None
    strength: float | None = None
    loras: list[dict[str, Any]] | None = None
    """Name, checksum and strengths of each."""
    embeddings: list[dict[str, Any]] | None = None
    """Name and checksum of each."""
    status: str
    """As `GeneratedImage.status`; only of "ok" there is a file."""
    notes: list[str] = []
    with_metadata: bool = True
    """Whether the file says how it was generated."""
    key: str = ""
    """Checksum of all that decides the image."""
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_version_1(cls, values: Any) -> Any:
        if isinstance(values, dict) and "column" in values:
            values = {**values, "variant": values["column"], "schema_version": 2}
        return values

    @model_validator(mode="after")
    def _has_checksum(self) -> Self:
        if self.status == "ok" and self.sha256 is None:
            raise ValueError("an image without the checksum of its file")
        return self


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one image in a folder."""

    file: str
    """Path within the folder."""
    request: ImageRequest
    key: str
    """Checksum of all that decides the image."""


class ImageFolder:
    """Images in a folder, each with a row of its parameters.

    Rows are appended to `images-<process>.jsonl` as images are finished, so that a killed process loses
    none, and become `images.json` at the end.

    Args:
        folder: Made if it does not exist.
        processes: Those that share the work; None where this one is alone.
        with_metadata: Whether the files say how they were generated.
        image_format: One of `ImageFormat`.

    Raises:
        UserError: If nothing can be written there, or the format is another.
    """

    def __init__(
        self,
        folder: Path,
        *,
        processes: PartialState | None = None,
        with_metadata: bool = True,
        image_format: str = "png",
    ):
        check_format(image_format)
        self.folder, self.processes, self.with_metadata = folder, processes, with_metadata
        self.image_format = image_format
        self.rank = processes.process_index if processes else 0
        self.num_processes = processes.num_processes if processes else 1
        self._lines = folder / f"images-{self.rank}.jsonl"
        _make_writable(folder)
        _terminate_last_line(self._lines)
        self._listed = _read_list(folder / LIST_NAME, with_notes=self.rank == 0)
        self._rows = self._read_rows(with_notes=self.rank == 0)
        self.added: set[str] = set()
        """Files of the images that this process has generated."""

    def reserve(
        self, wanted: Iterable[str], requests: Sequence[ImageRequest], keys: Sequence[str]
    ) -> list[Slot]:
        """Choose each image's file: its own, else the first free name.

        An image of another request stays: the number behind the name counts up past it. To be called before
        anything is generated.

        Args:
            wanted: For each request the file's path within the folder, without suffix, if nothing lies there.
            requests: What is to be generated.
            keys: For each request the checksum of all that decides its image.
        """
        slots: dict[str, Slot] = {}
        for name, request, key in zip(wanted, requests, keys, strict=True):
            file = self._own_or_free(name, key, slots)
            slots[file] = Slot(file, request, key)
        return list(slots.values())

    def _own_or_free(self, wanted: str, key: str, taken: Container[str]) -> str:
        free, suffix = "", SUFFIXES[self.image_format]
        for number in count(1):
            file = f"{wanted}_{number}{suffix}" if number > 1 else wanted + suffix
            if file in taken:
                continue
            row, is_there = self._rows.get(file), (self.folder / file).exists()
            if row is not None and row.key == key:
                return file
            free = free or ("" if is_there else file)
            if row is None and not is_there:
                break
        return free

    def is_finished(self, slot: Slot) -> bool:
        """Whether a slot's image is there, whole, with metadata as asked for."""
        row = self._rows.get(slot.file)
        if row is None or row.key != slot.key or row.with_metadata != self.with_metadata:
            return False
        return row.status == "blocked" or self._is_whole(row)

    def _is_whole(self, row: ImageRow) -> bool:
        path = self.folder / row.file
        is_inside = path.resolve().is_relative_to(self.folder.resolve())
        return row.status == "ok" and is_inside and path.is_file() and file_sha256(path) == row.sha256

    def complete(
        self, variant: str, generator: ImageGenerator, slots: Sequence[Slot], *, batch_size: int
    ) -> list[ImageRow]:
        """Generate images whose key is not in the folder yet.

        Args:
            variant: Of the new rows.
            generator: Makes the images.
            slots: In all processes the same; of equal keys one image is made.
            batch_size: Images generated at once, at most.

        Returns:
            A row for each slot; its file may be that of another variant.
        """
        whole = {row.key for row in self._rows.values() if self._is_whole(row)}
        missing = {slot.key: slot for slot in slots if slot.key not in whole}
        self.wait()  # else a process could miss what another one has just written, and share out otherwise
        if missing:
            share = math.ceil(len(missing) / self.num_processes)
            self.fill(variant, generator, list(missing.values()), batch_size=min(batch_size, share))
            self.wait()
            self._rows = self._read_rows()
        rows = {row.key: row for row in self._rows.values()}
        return [rows[slot.key] for slot in slots]

    def fill(
        self,
        variant: str,
        generator: ImageGenerator,
        slots: Sequence[Slot],
        *,
        batch_size: int,
        on_preview: Callable[[Sequence[ImageRequest], list, int], None] | None = None,
        preview_every: int = 0,
    ) -> int:
        """Generate this process's share of images and write each with its row.

        Args:
            variant: Of their rows.
            generator: Makes them.
            slots: What is missing; the same in all processes.
            batch_size: Images generated at once, at most.
            on_preview: As in `pipeline.sample`.
            preview_every: As in `pipeline.sample`.

        Returns:
            The batch size that fits into memory.
        """
        order = iter(slots)
        # Whole batches are shared out: in a batch of another size an image is rounded differently.
        all_batches = [
            ([next(order) for _ in batch], batch)
            for batch in batches([slot.request for slot in slots], batch_size)
        ]
        own = all_batches[self.rank :: self.num_processes]
        done, total = 0, sum(request.num_steps for _, batch in own for request in batch)

        def shrink(new_size: int) -> None:
            nonlocal batch_size
            say(f"not enough memory for {batch_size} images at once; going on with {new_size}")
            batch_size = new_size

        for folder in {(self.folder / slot.file).parent for slot in slots}:
            folder.mkdir(parents=True, exist_ok=True)
            clear_parts(folder)
        with track(f"generating {variant}".strip(), total) as update:
            for own_slots, batch in own:
                images = generator.sample(
                    batch,
                    batch_size=min(batch_size, len(batch)),
                    on_step=lambda steps, _, done=done: update(done + steps, "steps"),
                    on_preview=on_preview,
                    preview_every=0 if self.rank else preview_every,
                    on_less_memory=shrink,
                )
                for slot, image in zip(own_slots, images, strict=True):
                    self.add(slot, variant, image)
                done += sum(request.num_steps for request in batch)
        return batch_size

    def add(self, slot: Slot, variant: str, image: GeneratedImage) -> ImageRow:
        """Write an image, if it succeeded, and its row."""
        path = self.folder / slot.file
        values = image.request.as_record() | {"height": image.image.height, "width": image.image.width}
        sha256 = None
        if image.status == "ok":
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = texts_of(image.metadata) if self.with_metadata and image.metadata else None
            write_image(image.image, path, self.image_format, texts)
            sha256 = file_sha256(path)
        else:
            path.unlink(missing_ok=True)
        row = ImageRow(
            file=slot.file,
            variant=variant,
            **values,
            status=image.status,
            notes=list(image.notes),
            with_metadata=self.with_metadata,
            key=slot.key,
            sha256=sha256,
        )
        with self._lines.open("a", encoding="utf-8") as lines:
            lines.write(row.model_dump_json(exclude_none=True) + "\n")
        self._rows[row.file] = row
        self.added.add(row.file)
        return row

    def write_list(self, files: Iterable[str]) -> list[ImageRow]:
        """Write images.json from all processes' rows; return those of `files`."""
        rows = self._read_rows()
        listed = [rows.pop(file) for file in dict.fromkeys(files) if file in rows]
        written = [row.model_dump(exclude_none=True) for row in (*listed, *rows.values())]
        write_json(self.folder / LIST_NAME, written)
        for path in self.folder.glob("images-*.jsonl"):
            path.unlink()
        return listed

    def wait(self) -> None:
        """Wait until all processes have come to this point."""
        if self.processes:
            self.processes.wait_for_everyone()

    def _read_rows(self, *, with_notes: bool = False) -> dict[str, ImageRow]:
        """Rows by file, the last of each; damaged lines are skipped."""
        rows = list(self._listed)
        for path in sorted(self.folder.glob("images-*.jsonl")):
            lines = list(filter(str.strip, path.read_text(encoding="utf-8", errors="replace").split("\n")))
            found = list(filter(None, map(_parse_row, lines)))
            if with_notes and len(found) < len(lines):
                number = number_of(len(lines) - len(found), "damaged line")
                say(f"{path.name}: {number}; images are generated again")
            rows += found
        return {row.file: row for row in rows}


def _read_list(path: Path, *, with_notes: bool) -> list[ImageRow]:
    """Readable rows of a list, with a note on damaged ones."""
    if not path.is_file():
        return []
    try:
        found = read_json(path, list)
        rows, problem = list(filter(None, map(_row, found))), ""
        if len(rows) < len(found):
            problem = f"{len(found) - len(rows)} rows are not of an image"
    except DataError as error:
        rows, problem = list(_whole_rows(path)), str(error)
    if problem and with_notes:
        say(f"{path} is damaged ({problem}): {len(rows)} rows are kept, the other images are generated again")
    return rows


def _whole_rows(path: Path) -> Iterator[ImageRow]:
    """Rows of a list that is damaged JSON, in `write_json`'s layout."""
    lines: list[str] = []
    for line in path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n"):
        if line == "  {":
            lines.clear()
        lines.append(line)
        if line.rstrip(",") == "  }":
            row = _parse_row("\n".join(lines).rstrip(","))
            if row:
                yield row


def _parse_row(text: str) -> ImageRow | None:
    with suppress(DataError):
        return _row(parse_json(text, LIST_NAME))
    return None


def _row(values: Any) -> ImageRow | None:
    with suppress(ValidationError):
        return ImageRow.model_validate(values)
    return None


def _terminate_last_line(path: Path) -> None:
    # A process that was killed while writing left half a row: the next one gets a line of its own.
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


def refuse_replacing(folder: Path, inputs: Iterable[Path]) -> None:
    """Refuse inputs that generating into a folder would replace.

    Raises:
        UserError: Names the file.
    """
    for path in inputs:
        real = path.resolve()
        if real.parent == folder.resolve() and any(fnmatch(real.name, name) for name in OWN_NAMES):
            raise UserError(f"{path} would be replaced; name another folder with --out, or rename the file")


def _make_writable(folder: Path) -> None:
    """Find out before anything is loaded whether images can be written."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"out folder {folder} cannot be written ({reason}); name another with --out"
        ) from error
