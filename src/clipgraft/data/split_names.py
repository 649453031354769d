"""Names of splits: in columns, folders and names of files."""

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from clipgraft.data.dataset import Split
from clipgraft.errors import DataError

SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "restval": "train",  # Karpathy: the part of COCO's val images that everybody trains on
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class SplitRule(StrEnum):
    """What decides the split of each image, in words."""

    LISTS = "split lists"
    COLUMN = "a split column or field"
    KARPATHY = "Karpathy's JSON"
    FILES = "names of caption files"
    FOLDERS = "names of folders"
    HASH = "no split is named, so a hash of each image's name: 80% train, 10% val, 10% test"


_IN_FILE_NAME = re.compile(rf"(?:^|[^a-z])({'|'.join(SPLIT_NAMES)})(?:[^a-z]|$)")


def parse_split(value: Any, where: str) -> Split:
    """Return the split that a column names."""
    split = SPLIT_NAMES.get(str(value).strip().lower())
    if split is None:
        raise DataError(f"{where}: read the split {str(value)[:120]!r}; expected train, val or test")
    return split


SPLIT_FIELDS = ("split", "data_split", "dataset_split", "subset", "partition", "set", "set_name")
"""Columns of splits; all but the first may mean something else, and count where they name a split."""


def split_in_column(value: Any, where: str, column: str) -> Split | None:
    """Return the split that a field of one of `SPLIT_FIELDS` names."""
    if column.lower() == SPLIT_FIELDS[0]:
        return parse_split(value, where)
    return SPLIT_NAMES.get(str(value).strip().lower())


def split_of_file(stem: str) -> Split | None:
    """Return the split in a file's name such as `captions_train2017` or `flickr30k-val`."""
    found = {SPLIT_NAMES[name] for name in _IN_FILE_NAME.findall(stem.lower())}
    return found.pop() if len(found) == 1 else None


def folder_split(name: str) -> tuple[Split | None, bool]:
    """Return the split that folders name, and whether below the first."""
    parts = [part.lower() for part in PurePosixPath(name).parts[:-1]]
    found = [SPLIT_NAMES[part] for part in parts if part in SPLIT_NAMES]
    return (found[0], parts[0] not in SPLIT_NAMES) if found else (None, False)


def splits_of_folders(names: Iterable[str]) -> dict[str, Split]:
    """Return the split of each image in a folder of a split.

    Below the first level, folders count only if there is one of train: `test` may be anything's name.
    """
    first: dict[str, Split] = {}
    deep: dict[str, Split] = {}
    for name in names:
        split, is_deep = folder_split(name)
        if split:
            (deep if is_deep else first)[name] = split
    if first or "train" not in deep.values():
        return first
    return deep
