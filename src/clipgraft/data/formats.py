"""Load a folder of captioned images in one of five formats (`docs/data.md`)."""

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipgraft.cache import cache_dir
from clipgraft.console import track
from clipgraft.data.dataset import CaptionDataset, Split
from clipgraft.data.flickr8k import read_flickr8k
from clipgraft.data.names import check_image_name
from clipgraft.data.raw import (
    DataFolder,
    RawCaption,
    RawDataset,
    assemble,
    claim_split,
    is_utf8,
    tidy,
)
from clipgraft.errors import DataError, MissingFileError
from clipgraft.files import parse_json, read_text
from clipgraft.flatland import draw_flatland8k

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
"""First folder of an image -> its split, as in Hugging Face's imagefolder."""

_CAPTION_FIELD = re.compile(r"text|captions?|caption_\d+")
_COCO_NAME = re.compile(r"captions_((train|val|test)\w*)", re.IGNORECASE)


def load_dataset(
    source: str | Path | Iterable[tuple[str | Path, str | Sequence[str]]] = "",
    *,
    include_unsplit: bool = False,
) -> CaptionDataset:
    """Load captioned images; photographs are not opened.

    The files in a folder decide its format, in the order of `READERS`.

    Args:
        source: A folder, or pairs of an image's path and its captions, split by a hash of the path's name;
            empty for flatland8k, drawn into the cache the first time.
        include_unsplit: Put images outside every split into train instead of excluding them.

    Returns:
        Every image and caption, included or excluded with a reason.

    Raises:
        MissingFileError: If there is no such folder.
        DataError: If it is no folder, no format fits, a caption file is damaged, an image name points out of
            the image folder, or no captioned image remains.
    """
    if not isinstance(source, (str, Path)):
        texts = ((path, [text] if isinstance(text, str) else text) for path, text in source)
        return _from_pairs({Path(path).absolute(): captions for path, captions in texts})
    root = Path(source) if str(source) else _flatland8k()
    if not root.exists():
        raise MissingFileError(f"{root}: no such folder; expected a folder of images with captions")
    if not root.is_dir():
        raise DataError(f"{root}: is a file; give the folder that holds the captions and the images")
    if not is_utf8(str(root)):
        raise DataError(f"{root}: the folder's name is not UTF-8; rename it")
    folder = DataFolder(root)
    for read in READERS:
        raw = read(folder)
        if raw is not None:
            return assemble(root, raw, folder.notes, include_unsplit=include_unsplit)
    num_images = len(folder.list_images(root))
    raise DataError(
        f"{root}: {num_images} image(s), but no captions in a known format. Captions belong into one of: "
        "Flickr8k.token.txt (IMAGE.jpg#0<tab>caption) or captions.txt (IMAGE.jpg,caption) beside Images/; "
        "metadata.jsonl or metadata.csv (file_name, text) beside the images; "
        "annotations/captions_train.json (COCO); or IMAGE.txt beside each IMAGE.jpg"
    )


def _from_pairs(pairs: Mapping[Path, Sequence[str]]) -> CaptionDataset:
    root = Path(os.path.commonpath([path.parent for path in pairs])) if pairs else Path()
    names = {path.relative_to(root).as_posix(): path for path in pairs}
    captions = [
        RawCaption(name, number, tidy(text))
        for name, path in names.items()
        for number, text in enumerate(pairs[path])
    ]
    raw = RawDataset("pairs of image and captions", {}, names, captions, None)
    return assemble(root, raw, include_unsplit=False)


def draw_data(out_dir: Path, *, seed: int, num_images: int) -> None:
    """Draw flatland8k into a folder with a progress bar."""
    with track("drawing flatland8k", num_images) as update:
        draw_flatland8k(
            out_dir, seed=seed, num_images=num_images, on_image=lambda done: update(done, "images")
        )


def _flatland8k() -> Path:
    path = cache_dir() / "flatland8k"
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_data(path, seed=0, num_images=8000)
    return path


def read_lines(path: Path, kind: str) -> list[str]:
    """Read a text file of captions or prompts, one per line.

    Blank lines are skipped; `kind` is "caption" or "prompt", for messages.

    Raises:
        MissingFileError: If there is no such file.
        DataError: If it is not UTF-8 text, or empty.
    """
    if not path.is_file():
        raise MissingFileError(f"{kind}s file not found: {path}; it is a text file with one {kind} a line")
    found = list(filter(None, map(str.strip, read_text(path).splitlines())))
    if not found:
        raise DataError(f"{path} holds no {kind}; write one a line")
    return found


def read_metadata(folder: DataFolder) -> RawDataset | None:
    """Read Hugging Face's imagefolder: `metadata.jsonl` or `.csv`, in subfolders too."""
    root = folder.root
    parts = [root, *sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.is_symlink())]
    found = [path for part in parts if (path := _metadata_file(part)) is not None]
    if not found:
        return None
    captions: list[RawCaption] = []
    splits: dict[str, Split] = {}
    for path in found:
        prefix = "" if path.parent == root else f"{path.parent.name}/"
        rows = _jsonl_rows(folder, path) if path.suffix == ".jsonl" else _csv_rows(folder, path)
        for where, row in rows:
            read = _row_captions(row, prefix, where)
            captions += read
            if row.get("split") not in (None, ""):
                claim_split(splits, (caption.image_id for caption in read), _row_split(row, where), where)
    files = {
        "captions" if path.parent == root else f"{path.parent.name} captions": folder.name(path)
        for path in found
    }
    return _folder_reading("metadata file (imagefolder)", folder, files, captions, splits)


def read_coco(folder: DataFolder) -> RawDataset | None:
    """Read COCO captions: `captions_train2017.json` for each split, beside folders of images."""
    root = folder.root
    found = sorted(path for part in (root, root / "annotations") for path in part.glob("captions*.json"))
    if not found:
        return None
    captions: list[RawCaption] = []
    photographs: dict[str, Path] = {}
    splits: dict[str, Split] = {}
    files: dict[str, str] = {}
    for path in found:
        match = _COCO_NAME.match(path.stem)
        image_dir = _coco_image_dir(root, match[1] if match else "")
        prefix = "" if image_dir == root else folder.name(image_dir) + "/"
        read = list(_coco_captions(folder, path, prefix))
        files[f"captions {path.stem}"] = folder.name(path)
        files[f"images {path.stem}"] = prefix or "."
        photographs |= {prefix + name: image for name, image in folder.list_images(image_dir).items()}
        captions += read
        if match:
            names = (caption.image_id for caption in read)
            claim_split(splits, names, SPLIT_FOLDERS[match[2].lower()], str(path))
    return RawDataset("COCO captions", files, photographs, captions, splits or None)


def read_caption_files(folder: DataFolder) -> RawDataset | None:
    """Read images with text files of the same names (one caption per line)."""
    captions: list[RawCaption] = []
    for name, path in folder.list_images(folder.root).items():
        caption_file = path.with_suffix(".txt")
        if caption_file.is_file():
            lines = [tidy(line) for _, line in folder.read_lines(caption_file)]
            _refuse_json(caption_file, lines)
            captions += [RawCaption(name, number, line) for number, line in enumerate(lines)]
    if not captions:
        return None
    return _folder_reading("caption files beside images", folder, {"captions": "*.txt"}, captions, {})


READERS: tuple[Callable[[DataFolder], RawDataset | None], ...] = (
    read_flickr8k,
    read_metadata,
    read_coco,
    read_caption_files,
)
"""Readers, tried in this order; each returns None for a folder in another format."""


def _folder_reading(
    format: str,
    folder: DataFolder,
    files: dict[str, str],
    captions: list[RawCaption],
    splits: dict[str, Split],
) -> RawDataset:
    """Return all images below the root, split by `splits` or first folder."""
    photographs = folder.list_images(folder.root)
    if not splits:
        splits = {
            name: split for name in photographs if (split := SPLIT_FOLDERS.get(name.split("/")[0].lower()))
        }
    return RawDataset(format, {**files, "images": "."}, photographs, captions, splits or None)


def _refuse_json(path: Path, lines: list[str]) -> None:
    if lines and lines[0].startswith(("{", "[")):
        try:
            json.loads("\n".join(lines))
        except (ValueError, RecursionError):
            return
        raise DataError(f"{path}: holds JSON; expected captions as plain text, one a line")


def _metadata_file(folder: Path) -> Path | None:
    found = [path for name in ("metadata.jsonl", "metadata.csv") if (path := folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: metadata.jsonl and metadata.csv are both there; keep one")
    return found[0] if found else None


def _jsonl_rows(folder: DataFolder, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in folder.read_lines(path):
        where = f"{path}, line {number}"
        yield where, parse_json(line, where)


def _csv_rows(folder: DataFolder, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(folder.read_text(path), newline=""), strict=True)
    try:
        names = rows.fieldnames or []
        if len(set(names)) < len(names):
            raise DataError(
                f"{path}: a column's name comes twice in {', '.join(names)}; give each one its own"
            )
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


def _row_split(row: dict[str, Any], where: str) -> Split:
    split = SPLIT_FOLDERS.get(str(row["split"]).strip().lower())
    if split is None:
        raise DataError(f"{where}: read the split {str(row['split'])[:120]!r}; expected train, val or test")
    return split


def _coco_image_dir(root: Path, name: str) -> Path:
    """Return the folder of a COCO file's images (`train2017`, `images/train2017`, `images`, root)."""
    candidates = [root / name, root / "images" / name] if name else []
    return next((folder for folder in [*candidates, root / "images"] if folder.is_dir()), root)


def _coco_captions(folder: DataFolder, path: Path, prefix: str) -> Iterator[RawCaption]:
    content = parse_json(folder.read_text(path), str(path))
    names: dict[int | str, str] = {}
    for image in _coco_entries(content, "images", {"id": (int, str), "file_name": (str,)}, path):
        name = check_image_name(image["file_name"], str(path))
        if names.setdefault(image["id"], name) != name:
            raise DataError(
                f"{path}: the id {image['id']!r} stands for {names[image['id']]!r} and for {name!r}"
            )
    seen: Counter[int | str] = Counter()
    fields: dict[str, tuple[type, ...]] = {"image_id": (int, str), "caption": (str, type(None))}
    for entry in _coco_entries(content, "annotations", fields, path):
        image_id = entry["image_id"]
        if image_id not in names:
            raise DataError(f"{path}: a caption belongs to image_id {image_id!r}, which images does not list")
        yield RawCaption(prefix + names[image_id], seen[image_id], tidy(entry["caption"] or ""))
        seen[image_id] += 1


def _coco_entries(
    content: dict[str, Any], key: str, fields: dict[str, tuple[type, ...]], path: Path
) -> list[dict[str, Any]]:
    entries = content.get(key)
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not all(
            name in entry and isinstance(entry[name], kinds) for name, kinds in fields.items()
        ):
            raise DataError(
                f"{path}: read {repr(entry)[:120]} in {key}; expected COCO captions: images with id and "
                "file_name, annotations with image_id and caption"
            )
    return entries or []
