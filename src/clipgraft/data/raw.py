"""Raw contents of a folder of captioned images, assembled into a dataset.

A reader parses its format into a `RawDataset`; `assemble` includes or excludes every photograph and caption.
Folders are untrusted: nothing outside is read, not even through links.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clipgraft.data.containers import has_photograph
from clipgraft.data.dataset import CaptionDataset, CaptionedImage, CaptionedImages, Excluded, Split
from clipgraft.data.encodings import decode_text
from clipgraft.data.names import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, NameIndex
from clipgraft.data.split_names import SplitRule
from clipgraft.errors import DataError, printable
from clipgraft.files import LONE_SURROGATE, inside, parse_json, read_bytes
from clipgraft.settings import DataSettings

MAX_CAPTION_CHARACTERS = 10_000
"""CLIP reads 77 tokens, about 400 characters; the longest image captions have a few thousand."""
NUM_EXAMPLES = 3
"""Files named per note."""

NO_PHOTOGRAPH = "no photograph"
NO_CAPTION = "no caption"
NEITHER = "listed in a split, but no photograph and no caption"
IN_NO_SPLIT = "in no split"
EMPTY_CAPTION = "empty caption"
OTHER_FORMAT = "not a JPEG, PNG, WebP, AVIF or HEIC image"
HIDDEN_FILE = "hidden file"
MASK = "mask of another image (OneTrainer)"
MASK_ENDS = ("-masklabel", "-condlabel")
NOT_UTF8 = "file name that is not UTF-8"
LONG_CAPTION = f"caption of over {MAX_CAPTION_CHARACTERS:,} characters"


DOCUMENT_SUFFIXES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson"})


class RawCaption(NamedTuple):
    """A caption as read."""

    image_id: str
    number: int
    text: str


@dataclass(frozen=True, slots=True)
class RawDataset:
    """Findings of a reader, before anything is included or excluded."""

    format: str
    files: dict[str, str]
    photographs: Mapping[str, Path]
    """All files in the image folder with image suffixes, by image id."""
    captions: list[RawCaption]
    splits: Mapping[str, Split] | None
    """Split of each image id; None without named splits (`hash_split` decides)."""
    split_rule: SplitRule = SplitRule.HASH
    """What decided `splits`."""


class DataFolder:
    """A folder (or a link to one) to read, with notes on oddities."""

    def __init__(self, root: Path, settings: DataSettings | None = None, file: Path | None = None):
        self.root = root
        self.settings = settings or DataSettings()
        self.file = file
        """The only caption file to read, if one was named."""
        self._json: dict[Path, Any] = {}
        self._notes: dict[str, dict[str, None]] = {}

    def note(self, note: str, name: str = "") -> None:
        """Add a note about the folder or one of its files."""
        self._notes.setdefault(note, {})[name] = None

    @property
    def notes(self) -> list[str]:
        """Each note once, with the names of a few of its files."""
        return [
            f"{note}{', '.join(names[:NUM_EXAMPLES])}"
            + (f" and {len(names) - NUM_EXAMPLES:,} more" if len(names) > NUM_EXAMPLES else "")
            for note, names in ((note, list(names)) for note, names in self._notes.items())
        ]

    def name(self, path: Path) -> str:
        """Return a path relative to the root, with forward slashes."""
        return path.relative_to(self.root).as_posix()

    def list_images(self, folder: Path) -> dict[str, Path]:
        """Return all files below a folder with image suffixes, usable or not.

        Linked folders are not followed; linked files may point anywhere inside the root. Pipes and broken
        links are noted.

        Returns:
            Name relative to `folder`, with forward slashes -> path, sorted by name.
        """
        images: dict[str, Path] = {}
        folders = [str(inside(folder, self.root))]
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    path = Path(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif path.suffix.lower() in IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES:
                        if entry.is_symlink():
                            inside(path, self.root)
                        if path.is_file():
                            images[path.relative_to(folder).as_posix()] = path
                        else:
                            self.note("no file, or a link to none: ", self.name(path))
        return dict(sorted(images.items()))

    @cached_property
    def images(self) -> dict[str, Path]:
        """All images below the root, by relative name."""
        return self.list_images(self.root)

    @cached_property
    def documents(self) -> list[Path]:
        """Files that may be tables or JSON, or the one named.

        Those that share an image's name belong to that image alone (img2dataset writes such).
        """
        if self.file:
            is_document = self.file.suffix.lower() in DOCUMENT_SUFFIXES | {".txt"}
            return [self.file] if is_document else []
        own = {str(path.with_suffix("")) for path in self.images.values()}
        found: list[Path] = []
        folders = [self.root]
        while folders:
            for entry in os.scandir(folders.pop()):
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    folders += [] if entry.name.startswith((".", "__MACOSX")) else [path]
                elif (
                    path.suffix.lower() in DOCUMENT_SUFFIXES or entry.name == "captions.txt"
                ) and not entry.name.startswith("."):
                    found += [path] if entry.is_file() and str(path.with_suffix("")) not in own else []
        return sorted(found, key=lambda path: (len(path.parts), path))

    def image_base(self, path: Path) -> str:
        """Return the nearest folder around a file with images below.

        It is "" for the root; any other ends with a slash.
        """
        for parent in path.parents:
            base = "" if parent == self.root else f"{self.name(parent)}/"
            if not base or any(name.startswith(base) for name in self.images):
                return base
        return ""

    def relative(self, name: str) -> str:
        """Return a name relative to the root if absolute below it."""
        root = self.root.absolute().as_posix()
        return name.removeprefix(f"{root}/") if name.startswith(f"{root}/") else name

    def json(self, path: Path) -> Any:
        """Return a JSON file's content, an object or a list, parsed once."""
        if path not in self._json:
            text = self.read_text(path)
            kind = list if text.lstrip().startswith("[") else dict
            self._json[path] = parse_json(text, str(path), kind)
        return self._json[path]

    def read_text(self, path: Path) -> str:
        """Read text in its own encoding, with a note unless UTF-8."""
        text, note = decode_text(read_bytes(inside(path, self.root)), str(path))
        if note:
            self.note(note, self.name(path))
        return text

    def read_lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Yield number (from 1) and text of each non-blank line (LF, CRLF or CR)."""
        for number, line in enumerate(re.split(r"\r\n|\n|\r", self.read_text(path)), start=1):
            if line.strip():
                yield number, line


def claim_split(splits: dict[str, Split], names: Iterable[str], split: Split, where: str) -> None:
    """Put images in a split; refuse images of another one."""
    for name in names:
        if splits.setdefault(name, split) != split:
            raise DataError(
                f"{where}: image {name!r} is in the {splits[name]} split too; an image belongs to one split"
            )


def tidy(caption: str) -> str:
    """Return a caption stripped and with single spaces."""
    return " ".join(caption.split())


def hash_split(image_id: str) -> Split:
    """Return a split by the image id's hash (80% train, 10% val, 10% test).

    Neither new images nor other captions move an image to another split.
    """
    tenth = int.from_bytes(hashlib.sha256(image_id.encode("utf-8", "surrogateescape")).digest()[:8]) % 10
    return "train" if tenth < 8 else "val" if tenth == 8 else "test"


def hash_splits(image_ids: Iterable[bytes]) -> np.ndarray:
    """Return `hash_split` of many ids (UTF-8) as numbers in `SPLITS`: (N,) int8."""
    digests = b"".join(hashlib.sha256(image_id).digest() for image_id in image_ids)
    tenths = np.frombuffer(digests, ">u8")[::4] % 10  # by the first 8 of 32 bytes
    return np.maximum(tenths.astype(np.int8) - 7, 0)


def is_utf8(name: str) -> bool:
    """Whether a file's name is UTF-8 (Python decodes other bytes to lone surrogates)."""
    return not LONE_SURROGATE.search(name)


def assemble(
    root: Path, raw: RawDataset, notes: Iterable[str] = (), *, include_unsplit: bool
) -> CaptionDataset:
    """Include every photograph and caption, or exclude it with a reason.

    With `include_unsplit`, images outside every split are put into train instead of being excluded.
    """
    raw, num_respelt = _match_names(raw)
    excluded: list[Excluded] = []
    captions_of: dict[str, list[RawCaption]] = {}
    for caption in raw.captions:
        if reason := _caption_problem(caption, raw.photographs):
            excluded.append(_excluded_caption(caption, reason))
        else:
            captions_of.setdefault(caption.image_id, []).append(caption)

    images: list[CaptionedImage] = []
    for image_id, path in sorted(raw.photographs.items()):
        captions = captions_of.get(image_id, [])
        split = raw.splits.get(image_id) if raw.splits is not None else hash_split(image_id)
        if split is None and include_unsplit:
            split = "train"
        reason = _image_problem(image_id, path, captions)
        if reason is not None or split is None:
            excluded.append(Excluded("image", printable(image_id), reason or IN_NO_SPLIT))
            excluded.extend(_excluded_caption(caption, reason or IN_NO_SPLIT) for caption in captions)
        else:
            images.append(CaptionedImage(image_id, path, tuple(caption.text for caption in captions), split))

    known = raw.photographs.keys() | {caption.image_id for caption in raw.captions}
    excluded.extend(Excluded("image", name, NEITHER) for name in sorted((raw.splits or {}).keys() - known))
    if not images:
        raise DataError(_nothing_remains(root, raw, excluded))
    notes = tuple(map(printable, notes))
    if num_respelt:
        notes += (f"{num_respelt:,} image name(s) differ from their files' in case or Unicode form",)
    files = {printable(role): printable(name) for role, name in raw.files.items()}
    rule = SplitRule.HASH if raw.splits is None else raw.split_rule
    included = CaptionedImages(images)
    return CaptionDataset(root, raw.format, files, included, tuple(excluded), notes, split_rule=rule)


def _match_names(raw: RawDataset) -> tuple[RawDataset, int]:
    """Replace image names that differ in spelling by their files' names."""
    named = {caption.image_id for caption in raw.captions} | (raw.splits or {}).keys()
    index = NameIndex(raw.photographs.keys())
    found = {name: index.same_file(name) for name in named - raw.photographs.keys()}
    same = {name: file for name, file in found.items() if file is not None}
    if not same:
        return raw, 0
    captions = [
        caption._replace(image_id=same.get(caption.image_id, caption.image_id)) for caption in raw.captions
    ]
    splits: dict[str, Split] = {}
    for name, split in (raw.splits or {}).items():
        claim_split(splits, [same.get(name, name)], split, raw.format)
    splits_of = None if raw.splits is None else splits
    return replace(raw, captions=captions, splits=splits_of), len(same)


def _caption_problem(caption: RawCaption, photographs: Mapping[str, Path]) -> str | None:
    if not caption.text:
        return EMPTY_CAPTION
    if len(caption.text) > MAX_CAPTION_CHARACTERS:
        return LONG_CAPTION
    return None if caption.image_id in photographs else NO_PHOTOGRAPH


def _image_problem(image_id: str, path: Path, captions: list[RawCaption]) -> str | None:
    if not is_utf8(image_id):
        return NOT_UTF8
    if path.name.startswith("."):
        return HIDDEN_FILE  # macOS adds `._name.jpg` for every photograph to archives
    if path.suffix.lower() in OTHER_IMAGE_SUFFIXES and not has_photograph(path):
        return OTHER_FORMAT
    if not captions and path.stem.endswith(MASK_ENDS):
        return MASK
    return None if captions else NO_CAPTION


def _excluded_caption(caption: RawCaption, reason: str) -> Excluded:
    return Excluded("caption", printable(f"{caption.image_id}#{caption.number}"), reason)


def _nothing_remains(root: Path, raw: RawDataset, excluded: list[Excluded]) -> str:
    names: dict[tuple[str, str], list[str]] = {}
    for item in excluded:
        names.setdefault((item.kind, item.reason), []).append(item.name)
    reasons = "; ".join(
        f"{len(found)} {kind}(s): {reason} ({found[0][:80]}{', ...' * (len(found) > 1)})"
        for (kind, reason), found in sorted(names.items(), key=lambda entry: -len(entry[1]))
    )
    files = ", ".join(f"{role} {name}" for role, name in raw.files.items())
    return f"{root}: no image with a caption remains ({raw.format}: {files}). Excluded: {reasons}"
