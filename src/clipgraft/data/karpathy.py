"""Karpathy's JSON: captions and the split of published recall."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipgraft.data.coco import json_files
from clipgraft.data.dataset import Split
from clipgraft.data.names import NameIndex, check_image_name
from clipgraft.data.raw import DataFolder, RawCaption, RawDataset, claim_split, tidy
from clipgraft.data.split_names import SplitRule, parse_split
from clipgraft.errors import DataError


def read_karpathy(folder: DataFolder) -> RawDataset | None:
    """Read captions, splits and images of Karpathy's `dataset_flickr8k.json` and its like."""
    path = _nearest_to_images(folder)
    if path is None:
        return None
    captions: list[RawCaption] = []
    splits: dict[str, Split] = {}
    seen: Counter[str] = Counter()
    for where, name, image in _entries(folder, path, NameIndex(folder.images)):
        for text in _sentences(image, where):
            captions.append(RawCaption(name, seen[name], tidy(text)))
            seen[name] += 1
        if image.get("split") not in (None, ""):
            claim_split(splits, [name], parse_split(image["split"], where), where)
    files = {"captions": folder.name(path), "images": "."}
    return RawDataset("Karpathy's JSON", files, folder.images, captions, splits or None, SplitRule.KARPATHY)


def with_karpathy_split(folder: DataFolder, raw: RawDataset) -> RawDataset:
    """Return a reading with the split of a Karpathy file beside it.

    Split lists and columns of the data set's own win over it, names of folders and of COCO's files do not.
    """
    path = _nearest_to_images(folder)
    if path is None or folder.name(path) in raw.files.values():
        return raw
    if raw.splits is not None and raw.split_rule in (SplitRule.LISTS, SplitRule.COLUMN):
        folder.note("there too, and its split not used: ", folder.name(path))
        return raw
    splits: dict[str, Split] = {}
    for where, name, image in _entries(folder, path, NameIndex(raw.photographs)):
        if name in raw.photographs and image.get("split") not in (None, ""):
            claim_split(splits, [name], parse_split(image["split"], where), where)
    if not splits:
        return raw
    files = raw.files | {"splits": folder.name(path)}
    return replace(raw, splits=splits, split_rule=SplitRule.KARPATHY, files=files)


def _nearest_to_images(folder: DataFolder) -> Path | None:
    """Return the Karpathy file with most of the folder's images (the three are given out in one archive)."""
    found = [path for path in json_files(folder) if _is_karpathy(folder, path)]
    if len(found) < 2:
        return found[0] if found else None
    names = {path.name for path in folder.images.values()}
    counts = {
        path: sum(_file_name(image) in names for image in folder.json(path)["images"]) for path in found
    }
    best = max(found, key=lambda path: counts[path])
    for path in found:
        if path != best:
            folder.note(f"there too, with fewer of the images than {best.name}: ", folder.name(path))
    return best


def _is_karpathy(folder: DataFolder, path: Path) -> bool:
    try:
        content = folder.json(path)
    except DataError:
        if path.stem.startswith("dataset"):
            raise
        return False
    images = content.get("images") if isinstance(content, dict) else None
    first = images[0] if isinstance(images, list) and images else None
    return isinstance(first, dict) and "sentences" in first and "filename" in first


def _file_name(image: Any) -> str:
    return str(image.get("filename")).replace("\\", "/").rsplit("/", 1)[-1] if isinstance(image, dict) else ""


def _entries(folder: DataFolder, path: Path, index: NameIndex) -> list[tuple[str, str, dict[str, Any]]]:
    """Return place, image id and fields of each image."""
    entries = []
    base = folder.image_base(path)
    for number, image in enumerate(folder.json(path)["images"], start=1):
        where = f"{path}, image {number}"
        name = image.get("filename") if isinstance(image, dict) else None
        if not isinstance(name, str) or not name:
            raise DataError(f"{where}: read {repr(image)[:120]}; expected filename, split and sentences")
        name = check_image_name(folder.relative(name), where)
        place = image.get("filepath")
        found = index.same_file(name)
        if found is None and isinstance(place, str) and place:
            found = index.below(base, check_image_name(f"{place}/{name}", where), where)
            found = found if index.same_file(found) else None
        entries.append((where, found or index.below(base, name, where), image))
    return entries


def _sentences(image: dict[str, Any], where: str) -> list[str]:
    sentences = image.get("sentences")
    texts = [
        sentence.get("raw") if isinstance(sentence, dict) else sentence
        for sentence in (sentences if isinstance(sentences, list) else [sentences])
    ]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: read the caption {text!r}; expected text")
    return [text or "" for text in texts]
