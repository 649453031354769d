"""Cleaned copies of datasets: `metadata.jsonl`, photographs and a list of changes."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from clipgraft.data.caption_flaws import Flaw, clean, flaws_of
from clipgraft.data.check import DatasetCheck, iter_images
from clipgraft.data.dataset import CaptionDataset, CaptionedImage
from clipgraft.data.image_file import ImageFile, Member, read_image_bytes
from clipgraft.data.images import MAX_FILE_BYTES
from clipgraft.errors import DataError, UserError, number_of
from clipgraft.files import new_folder

METADATA_NAME, CHANGES_NAME, IMAGES_NAME = "metadata.jsonl", "changes.jsonl", "images"
_HELD_OUT_FIRST = ("test", "val", "train")
"""Of equal photographs in several splits the first of these is kept, so that held-out splits stay whole."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between a dataset and its cleaned copy."""

    image: str
    what: Literal["image", "caption"]
    old: str
    new: str | None
    """None if it was left out."""
    why: str


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleaned copy holds."""

    num_images: int
    num_captions: int
    num_changes: int

    def __str__(self) -> str:
        counts = f"{number_of(self.num_images, 'image')}, {number_of(self.num_captions, 'caption')}"
        return f"{counts}; {number_of(self.num_changes, 'change')} in {CHANGES_NAME}"


def write_cleaned(dataset: CaptionDataset, check: DatasetCheck, out: Path) -> Cleaned:
    """Write a cleaned copy of a dataset, which every command reads.

    Entities and certain mojibake in captions are replaced; captions without letters, and those that an image
    has twice, are left out, and so are damaged photographs. Of photographs with equal bytes one is kept, in a
    held-out split if any is, with the captions of all. Photographs are hard links, or copies where those
    cannot be made. The source stays as it is.

    Args:
        dataset: The dataset.
        check: Its measurements, with `read_images`.
        out: A new or empty folder outside the source; written whole or not at all.

    Raises:
        UserError: If `out` holds files or lies in the source.
        DataError: If nothing remains.
    """
    refuse_place(out, dataset)
    merged = _merged_captions(dataset, check)
    num_images = num_captions = num_changes = 0
    with new_folder(out) as folder, _opened(folder / METADATA_NAME) as metadata:
        with _opened(folder / CHANGES_NAME) as changes:
            for item in dataset.excluded:
                name = item.name if item.kind == "image" else item.name.rpartition("#")[0]
                _write_row(changes, asdict(Change(name, item.kind, item.name, None, item.reason)))
                num_changes += 1
            for image in iter_images(dataset):
                captions, found = _cleaned(image, check, merged)
                for change in found:
                    _write_row(changes, asdict(change))
                num_changes += len(found)
                if not captions:
                    continue
                name = f"{IMAGES_NAME}/{image.image_id}"
                _write_row(metadata, {"file_name": name, "captions": captions, "split": image.split})
                _place_image(image.file, folder / name)
                num_images += 1
                num_captions += len(captions)
        if not num_images:
            raise DataError(f"{dataset.root}: nothing remains of it; `clipgraft data check` says why")
    return Cleaned(num_images, num_captions, num_changes)


def _cleaned(
    image: CaptionedImage, check: DatasetCheck, merged: Mapping[str, tuple[str, list[str]]]
) -> tuple[list[str], list[Change]]:
    """Return the captions that remain of an image (none = it is left out), and what changed."""
    if reason := (check.unreadable or {}).get(image.image_id):
        return [], [Change(image.image_id, "image", image.image_id, None, reason)]
    kept, texts = merged.get(image.image_id, (image.image_id, list(image.captions)))
    if kept != image.image_id:
        return [], [Change(image.image_id, "image", image.image_id, kept, "its bytes are those of the other")]
    captions: list[str] = []
    changes: list[Change] = []
    for text in texts:
        new = clean(text)
        if Flaw.NO_LETTERS in flaws_of(new):
            changes.append(Change(image.image_id, "caption", text, None, f"caption {Flaw.NO_LETTERS}"))
        elif new in captions:
            changes.append(Change(image.image_id, "caption", text, None, "the image has it twice"))
        else:
            captions.append(new)
            if new != text:
                why = " and ".join(flaw.removeprefix("with ") for flaw in flaws_of(text))
                changes.append(Change(image.image_id, "caption", text, new, why))
    if not captions:
        changes.append(Change(image.image_id, "image", image.image_id, None, "no caption remains"))
    return captions, changes


def _merged_captions(dataset: CaptionDataset, check: DatasetCheck) -> dict[str, tuple[str, list[str]]]:
    """Return the image kept, and all captions, of each image with copies."""
    wanted = {name for group in check.duplicates for name in group}
    found = {image.image_id: image for image in iter_images(dataset) if image.image_id in wanted}
    merged: dict[str, tuple[str, list[str]]] = {}
    for group in check.duplicates:
        images = sorted((found[name] for name in group), key=lambda image: _HELD_OUT_FIRST.index(image.split))
        captions = [caption for image in images for caption in image.captions]
        merged |= dict.fromkeys(group, (images[0].image_id, captions))
    return merged


def refuse_place(out: Path, dataset: CaptionDataset) -> None:
    """Refuse a folder that holds files or lies in a source."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there and not empty; name a new folder for the cleaned data")
    roots = [dataset.root, *(each.source for each in dataset.origin.sources)]
    for root in filter(os.path.isdir, roots):
        if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(root)):
            raise UserError(f"{out} lies in {root}, with which it would be read; name a folder outside of it")


def _opened(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", newline="\n")


def _write_row(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _place_image(file: ImageFile, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(file, Member):
        path.write_bytes(read_image_bytes(file, MAX_FILE_BYTES))
        return
    source = os.path.realpath(file)  # a link's own target: link() would copy the link
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
