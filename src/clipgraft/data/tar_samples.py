"""Samples of a tar in webdataset's layout, found by its headers.

Files with one name up to its first dot are a sample: an image, and captions in `.txt` or fields of `.json`.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from clipgraft.data.encodings import decode_text
from clipgraft.data.names import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, check_image_name
from clipgraft.data.raw import HIDDEN_FILE
from clipgraft.data.samples import (
    NO_IMAGE,
    UNKNOWN_SPLIT,
    LeftOut,
    Sample,
    Samples,
    Texts,
    read_fields,
    usable,
)
from clipgraft.errors import DataError
from clipgraft.files import LONE_SURROGATE, parse_json
from clipgraft.settings import DataSettings

CAPTION_EXTENSIONS = ("txt", "caption", "text")
IMAGE_EXTENSIONS = tuple(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES))
MAX_TEXT_BYTES = 1 << 20
"""Of a sample's caption file or JSON (a guess; EXIF data in img2dataset's have some KB)."""

OUTSIDE = "name that points out of the shard"
NO_FILE = "no file but a link or device"
TWICE = "name that comes twice in a shard"
SEVERAL_IMAGES = "sample of several images (keys end at the first dot)"
UNREADABLE_TEXT = f"sample whose text or JSON is damaged or has over {MAX_TEXT_BYTES:,} bytes"
DISAGREEING = "sample whose .txt and .json disagree (data.caption_field names one)"
_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
"""As webdataset's `base_plus_ext`."""
_BLOCK = 512
_CUT = ("unexpected end of data", "empty header", "missing or bad subsequent header")
"""What Python says of a tar that ends too early."""


class _File(NamedTuple):
    """A file within a tar."""

    name: str
    offset: int
    size: int


_Files = dict[str, _File]
"""Files of a sample by extension, in lower case."""


def read_tar(path: Path, settings: DataSettings) -> Samples:
    """Yield a tar's samples in the order of their first files.

    Raises:
        DataError: If it is cut, damaged or compressed, or no sample has what the settings name.
    """
    samples: dict[str, _Files] = {}
    for member in _members(path):
        match = None if isinstance(member, LeftOut) else _KEY.fullmatch(member.name)
        if isinstance(member, LeftOut):
            yield member
        elif match is not None:  # as webdataset: a file without extension is of no sample
            places = samples.setdefault(match[1], {})
            if match[2].lower() in places:
                yield LeftOut(member.name, TWICE)
            else:
                places[match[2].lower()] = member
    known: dict[str, None] = {}
    with path.open("rb") as tar:
        for key, places in samples.items():
            yield _sample(tar, key, places, settings, known)
    for setting, wanted in (("image_field", settings.image_field), ("caption_field", settings.caption_field)):
        if samples and wanted and wanted not in known:
            raise DataError(
                f"{path}: no {wanted!r} in any sample (data.{setting}); there are {', '.join(known)}"
            )


def _members(path: Path) -> Iterator[_File | LeftOut]:
    """Yield the files in a tar."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps them all
                name = info.name.removeprefix("./")
                if info.isdir() or re.match(r"__[^/]*__($|/)", name):
                    continue  # the latter is webdataset's own metadata
                yield _outside(name) or _odd(info, name) or _File(name, info.offset_data, info.size)
            end = tar.offset
    except tarfile.ReadError as error:
        raise DataError(_why_unreadable(path, error)) from None
    with path.open("rb") as file:
        file.seek(end)
        last = file.read(_BLOCK)
    if len(last) < _BLOCK:
        raise DataError(f"{path} is cut: it lacks a tar's end; copy or download it anew")
    if any(last):  # where Python's reader ends without a word
        raise DataError(f"{path} is damaged at byte {end:,}; copy or download it anew")


def _outside(name: str) -> LeftOut | None:
    try:
        check_image_name(name, "")
    except DataError:
        return LeftOut(name, OUTSIDE)
    return None


def _odd(info: tarfile.TarInfo, name: str) -> LeftOut | None:
    if not info.isreg() or info.issparse():
        return LeftOut(name, NO_FILE)
    return LeftOut(name, HIDDEN_FILE) if name.rpartition("/")[2].startswith(".") else None


def _why_unreadable(path: Path, error: tarfile.ReadError) -> str:
    with path.open("rb") as file:
        start = file.read(6)
    packed = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
    for magic, name in packed.items():
        if start.startswith(magic):
            return f"{path} is compressed ({name}); images in it cannot be reached alone: unpack it to a .tar"
    if not start:
        return f"{path} is empty (0 bytes); a tar without samples has 10,240"
    if str(error) in _CUT:
        return f"{path} is cut in the middle; copy or download it anew"
    return f"{path} is no tar, or is damaged ({error}); copy or download it anew"


def _sample(
    tar: BinaryIO, key: str, files: _Files, settings: DataSettings, known: dict[str, None]
) -> Sample | LeftOut:
    """Return a sample; add its extensions and fields to `known`."""
    known |= dict.fromkeys(files)
    images = _image_extensions(files, settings)
    if not images:
        return LeftOut(next(iter(files.values())).name, NO_IMAGE)
    name, offset, size = files[images[0]]
    if len(images) > 1:
        return LeftOut(name, SEVERAL_IMAGES)
    try:
        fields = _json(tar, files)
        known |= dict.fromkeys(fields)
        texts = _texts(tar, files, fields, settings)
    except DataError:
        return LeftOut(name, UNREADABLE_TEXT)
    return LeftOut(name, texts.problem) if texts.problem else Sample(key, name, offset, size, *texts[:2])


def _image_extensions(files: _Files, settings: DataSettings) -> list[str]:
    """Return the extension of a sample's image, or several of equal rank."""
    if settings.image_field:
        return [settings.image_field] if settings.image_field in files else []
    plain = [end for end in files if end in IMAGE_EXTENSIONS]
    return plain or [end for end in files if _last(end) in IMAGE_EXTENSIONS]


def _texts(tar: BinaryIO, files: _Files, fields: dict[str, Any], settings: DataSettings) -> Texts:
    """Return captions and split.

    Captions are those of the file or field that settings name, else of the JSON, else of the text file.
    """
    named = settings.caption_field if settings.caption_field in files else ""
    named = named or settings.caption_extension.removeprefix(".").lower()
    ends = (named,) if named else CAPTION_EXTENSIONS
    written = [_text(tar, file) for end, file in files.items() if end in ends or _last(end) in ends]
    described = read_fields(fields, settings)
    is_field = bool(settings.caption_field) and not named
    if is_field or described.problem == UNKNOWN_SPLIT or not (named or written):
        return described
    captions, problem = usable(written)
    if named or not described.captions:
        return Texts(captions, described.split, problem)
    return Texts((), None, DISAGREEING) if set(captions) - set(described.captions) else described


def _last(extension: str) -> str:
    return extension.rpartition(".")[2]


def _json(tar: BinaryIO, files: _Files) -> dict[str, Any]:
    """Return the fields of a sample's JSON."""
    found = next((file for end, file in files.items() if _last(end) == "json"), None)
    return {} if found is None else parse_json(_text(tar, found), found.name)


def _text(tar: BinaryIO, file: _File) -> str:
    if file.size > MAX_TEXT_BYTES:
        raise DataError(f"{file.name}: has {file.size:,} bytes; at most {MAX_TEXT_BYTES:,} are read")
    tar.seek(file.offset)
    text, _ = decode_text(tar.read(file.size), file.name)
    return LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
