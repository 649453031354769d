"""COCO captions and their relatives: `images` and `annotations` in JSON."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipgraft.data.dataset import Split
from clipgraft.data.names import NameIndex, check_image_name
from clipgraft.data.raw import DataFolder, RawCaption, RawDataset, claim_split, tidy
from clipgraft.data.split_names import SplitRule, split_of_file
from clipgraft.errors import DataError

_COCO_NAME = re.compile(r"captions_((train|val|test)\w*)", re.IGNORECASE)
_OTHER_LABELS = ("instances", "person_keypoints", "panoptic", "stuff", "image_info")
"""COCO's files without captions, of up to 450 MB."""
MAX_FOLDERS = 2
"""Depth down to which JSON is opened to see what it is."""


def read_coco(folder: DataFolder) -> RawDataset | None:
    """Read COCO captions: `captions_train2017.json` or another for each split, beside folders of images."""
    found = [path for path in json_files(folder) if _is_coco(folder, path)]
    if not found:
        return None
    captions: list[RawCaption] = []
    photographs: dict[str, Path] = {}
    splits: dict[str, Split] = {}
    files: dict[str, str] = {}
    for path in found:
        image_dir = _coco_image_dir(folder, path)
        prefix = "" if image_dir == folder.root else folder.name(image_dir) + "/"
        images = {prefix + name: image for name, image in folder.list_images(image_dir).items()}
        read = list(_coco_captions(folder, path, NameIndex(images), prefix))
        role = path.stem if [other.stem for other in found].count(path.stem) == 1 else folder.name(path)
        files[f"captions {role}"] = folder.name(path)
        files[f"images {role}"] = prefix or "."
        photographs |= images
        captions += read
        if split := split_of_file(path.stem):
            claim_split(splits, (caption.image_id for caption in read), split, str(path))
    return RawDataset("COCO captions", files, photographs, captions, splits or None, SplitRule.FILES)


def json_files(folder: DataFolder) -> list[Path]:
    """Return the folder's JSON files that may hold captions, nearest first."""
    return [
        path
        for path in folder.documents
        if path.suffix.lower() == ".json"
        and len(path.relative_to(folder.root).parts) <= MAX_FOLDERS + 1
        and not path.name.startswith(_OTHER_LABELS)
    ]


def _is_coco(folder: DataFolder, path: Path) -> bool:
    """Whether a file has COCO's lists, or its name alone."""
    is_named = _COCO_NAME.match(path.stem) is not None
    try:
        content = folder.json(path)
    except DataError:
        if is_named or folder.file:
            raise
        folder.note("no JSON that can be read: ", folder.name(path))
        return False
    if not isinstance(content, dict):
        return False
    if is_named or path.stem.startswith("captions"):
        return not content or "images" in content or "annotations" in content
    entries = content.get("annotations")
    first = entries[0] if isinstance(entries, list) and entries else None
    return "images" in content and isinstance(first, dict) and "caption" in first


def _coco_image_dir(folder: DataFolder, path: Path) -> Path:
    """Return the folder of a file's images (`train2017`, `images/train2017`, `images`, root)."""
    home = folder.root / folder.image_base(path)
    match = _COCO_NAME.match(path.stem)
    names = [match[1] if match else path.stem, split_of_file(path.stem) or "images"]
    candidates = [part / name for name in names for part in (home, home / "images")]
    return next((place for place in [*candidates, home / "images"] if place.is_dir()), home)


def _coco_captions(folder: DataFolder, path: Path, index: NameIndex, prefix: str) -> Iterator[RawCaption]:
    content = folder.json(path)
    names: dict[str, str] = {}
    for image in _coco_entries(content, "images", {"id": (int, str), "file_name": (str,)}, path):
        name = check_image_name(folder.relative(image["file_name"]), str(path))
        key = str(image["id"])  # some tools write ids as texts in one of the two lists
        if names.setdefault(key, name) != name:
            raise DataError(f"{path}: the id {image['id']!r} stands for {names[key]!r} and for {name!r}")
    seen: Counter[str] = Counter()
    fields: dict[str, tuple[type, ...]] = {"image_id": (int, str), "caption": (str, type(None))}
    for entry in _coco_entries(content, "annotations", fields, path):
        image_id = str(entry["image_id"])
        if image_id not in names:
            raise DataError(
                f"{path}: a caption belongs to image_id {entry['image_id']!r}, which images does not list"
            )
        name = index.below(prefix, names[image_id], str(path))
        yield RawCaption(name, seen[image_id], tidy(entry["caption"] or ""))
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
