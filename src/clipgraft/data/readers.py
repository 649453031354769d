"""Read a folder of captioned images, whatever its format.

A format is a function in `READERS`: it takes the folder and returns a `Reading`, or None if the folder is not
in its format. `docs/data.md` shows each format by a small example.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from clipgraft.data.flickr8k import read_flickr8k, read_lines, read_text, tidy
from clipgraft.data.images import list_images
from clipgraft.data.records import RawCaption, Reading, Source, Split, assemble, check_image_name
from clipgraft.errors import DataError, MissingFileError

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""First folder of an image's name -> its split, as in Hugging Face's imagefolder."""

_CAPTION_FIELD = re.compile(r"text|captions?|caption_\d+")
_COCO_NAME = re.compile(r"captions_((train|val|test)\w*)", re.IGNORECASE)


def read_source(path: str | Path, *, include_unsplit: bool = False) -> Source:
    """Read all captioned images of a folder; photographs are not opened.

    The format is found by the files that are there and named in the result's `format` and `files`. Flickr8k's
    forms win over metadata files, these over COCO, that over captions beside images.

    Args:
        path: The folder.
        include_unsplit: Put images that lie outside of every split into train, instead of leaving them out.

    Returns:
        Every image and caption, counted in or left out with a reason.

    Raises:
        FileNotFoundError: If there is no such folder.
        DataError: If it is no folder, no format fits, a caption file is damaged, an image name points out of
            the image folder, or not one captioned image remains.
    """
    root = Path(path)
    if not root.exists():
        raise MissingFileError(f"{root}: no such folder; expected a folder of images with captions")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; give the folder that holds the captions and the images")
    for read in READERS.values():
        reading = read(root)
        if reading is not None:
            return assemble(root, reading, include_unsplit=include_unsplit)
    num_images = len(list_images(root))
    raise DataError(
        f"{root}: {num_images} image(s), but no captions in a known format. Captions belong into one of: "
        "Flickr8k.token.txt (IMAGE.jpg#0<tab>caption) or captions.txt (IMAGE.jpg,caption) beside Images/; "
        "metadata.jsonl or metadata.csv (file_name, text) beside the images; "
        "annotations/captions_train.json (COCO); or IMAGE.txt beside each IMAGE.jpg"
    )


def read_metadata(root: Path) -> Reading | None:
    """Read Hugging Face's imagefolder: `metadata.jsonl` or `metadata.csv` in the folder or its subfolders."""
    found = [path for folder in _with_subfolders(root) if (path := _metadata_file(folder)) is not None]
    if not found:
        return None
    notes: list[str] = []
    captions: list[RawCaption] = []
    for path in found:
        prefix = "" if path.parent == root else f"{path.parent.name}/"
        rows = _jsonl_rows(path, notes) if path.suffix == ".jsonl" else _csv_rows(path, notes)
        for where, row in rows:
            captions += _row_captions(row, prefix, where)
    files = {_role("captions", path.parent, root): path.relative_to(root).as_posix() for path in found}
    return _folder_reading("metadata file (imagefolder)", root, files, captions, notes)


def read_coco(root: Path) -> Reading | None:
    """Read COCO captions: a JSON file for each split, `captions_train2017.json`, beside folders of images."""
    folders = [root, root / "annotations"]
    found = sorted(path for folder in folders for path in folder.glob("captions*.json"))
    if not found:
        return None
    notes: list[str] = []
    captions: list[RawCaption] = []
    photographs: dict[str, Path] = {}
    splits: dict[str, Split] = {}
    files: dict[str, str] = {}
    for path in found:
        match = _COCO_NAME.match(path.stem)
        image_dir = _coco_image_dir(root, match[1] if match else "")
        prefix = "" if image_dir == root else image_dir.relative_to(root).as_posix() + "/"
        read = list(_coco_captions(path, prefix, notes))
        files[f"captions {path.stem}"] = path.relative_to(root).as_posix()
        files[f"images {path.stem}"] = prefix or "."
        photographs |= {prefix + name: image for name, image in list_images(image_dir).items()}
        captions += read
        if match:
            _claim(splits, {caption.image_id for caption in read}, SPLIT_FOLDERS[match[2].lower()], path)
    return Reading("COCO captions", files, photographs, captions, splits or None, tuple(notes))


def read_caption_files(root: Path) -> Reading | None:
    """Read images with a text file of the same name beside each, one caption a line."""
    notes: list[str] = []
    captions: list[RawCaption] = []
    for name, path in list_images(root).items():
        caption_file = path.with_suffix(".txt")
        if caption_file.is_file():
            lines = (tidy(line) for _, line in read_lines(caption_file, notes))
            captions += [RawCaption(name, number, line) for number, line in enumerate(lines)]
    if not captions:
        return None
    return _folder_reading("caption files beside images", root, {"captions": "*.txt"}, captions, notes)


READERS: dict[str, Callable[[Path], Reading | None]] = {
    "flickr8k": read_flickr8k,
    "metadata": read_metadata,
    "coco": read_coco,
    "caption_files": read_caption_files,
}
"""Formats in the order in which they are tried."""


def _folder_reading(
    format: str, root: Path, files: dict[str, str], captions: list[RawCaption], notes: list[str]
) -> Reading:
    """Return a reading whose images lie anywhere below the root, split by their first folder or by hash."""
    photographs = list_images(root)
    splits = {name: split for name in photographs if (split := SPLIT_FOLDERS.get(name.split("/")[0].lower()))}
    return Reading(format, {**files, "images": "."}, photographs, captions, splits or None, tuple(notes))


def _with_subfolders(root: Path) -> list[Path]:
    return [root, *sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink())]


def _role(role: str, folder: Path, root: Path) -> str:
    return role if folder == root else f"{folder.name} {role}"


def _metadata_file(folder: Path) -> Path | None:
    found = [path for name in ("metadata.jsonl", "metadata.csv") if (path := folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: metadata.jsonl and metadata.csv are both there; keep one")
    return found[0] if found else None


def _jsonl_rows(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in read_lines(path, notes):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{where}: read {line[:120]!r}; expected a JSON object with file_name and text")
        yield where, row


def _csv_rows(path: Path, notes: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(read_text(path, notes), newline=""), strict=True)
    try:
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if None in row:
                raise DataError(
                    f"{where}: {len(row) - 1 + len(row[None])} fields under {len(row) - 1} names, beginning "
                    f"{next(iter(row.values()))!r}; put captions with commas in double quotes"
                )
            yield where, row
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.reader.line_num}: not readable as CSV ({error})") from None


def _row_captions(row: dict[str, Any], prefix: str, where: str) -> list[RawCaption]:
    name = row.get("file_name")
    fields = [field for field in row if _CAPTION_FIELD.fullmatch(field)]
    if not isinstance(name, str) or not name or not fields:
        raise DataError(
            f"{where}: read the fields {', '.join(map(str, row)) or 'none'}; "
            "expected file_name and one of text, caption, captions, caption_0, caption_1, ..."
        )
    image_id = prefix + check_image_name(name, where)
    texts: list[Any] = []
    for field in fields:
        texts += row[field] if isinstance(row[field], list) else [row[field]]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: read the caption {text!r}; expected text")
    return [RawCaption(image_id, number, tidy(text or "")) for number, text in enumerate(texts)]


def _coco_image_dir(root: Path, name: str) -> Path:
    """Return the folder of a COCO file's images: `train2017`, `images/train2017`, `images` or the root."""
    candidates = [root / name, root / "images" / name] if name else []
    return next((folder for folder in [*candidates, root / "images"] if folder.is_dir()), root)


def _coco_captions(path: Path, prefix: str, notes: list[str]) -> Iterator[RawCaption]:
    expected = "expected COCO captions: images with id and file_name, annotations with image_id and caption"
    try:
        content = json.loads(read_text(path, notes))
        names = {image["id"]: check_image_name(image["file_name"], str(path)) for image in content["images"]}
        annotations = [(entry["image_id"], entry["caption"]) for entry in content["annotations"]]
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not readable as JSON ({error.msg}); {expected}"
        ) from None
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: {error!r} while reading it; {expected}") from None
    seen: dict[Any, int] = {}
    for image_id, caption in annotations:
        if image_id not in names:
            raise DataError(f"{path}: a caption belongs to image_id {image_id!r}, which images does not list")
        yield RawCaption(prefix + names[image_id], seen.get(image_id, 0), tidy(caption))
        seen[image_id] = seen.get(image_id, 0) + 1


def _claim(splits: dict[str, Split], names: set[str], split: Split, path: Path) -> None:
    for name in sorted(names):
        if splits.setdefault(name, split) != split:
            raise DataError(
                f"{path}: image {name!r} is in the {splits[name]} split too; an image belongs to one split"
            )
