"""Reader of Flickr8k: token file with split lists, or Kaggle's `captions.txt`.

Public copies differ in line ends, tabs, encodings and folder names, so files are searched by name and each
caption line is parsed on its own.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from clipgraft.data.dataset import SPLITS, Split
from clipgraft.data.names import IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES, check_image_name
from clipgraft.data.raw import (
    DataFolder,
    RawCaption,
    RawDataset,
    claim_split,
    tidy,
)
from clipgraft.data.split_names import SplitRule
from clipgraft.errors import DataError

IMAGE_FOLDERS = (
    "images",
    "flicker8k_dataset",
    "flickr8k_dataset",
    "flickr8k_images",
    "flickr30k_images",
    "flickr30k-images",
)
"""Names of the image folder in circulating copies, in lower case (`Flicker8k` is the original spelling)."""

_SPLIT_LIST = re.compile(r".*[._](train|dev|val|test)images\.txt", re.IGNORECASE)
_SPLIT_NAMES: dict[str, Split] = {"train": "train", "dev": "val", "val": "val", "test": "test"}
# `name.jpg#0<tab>caption`; some copies have spaces where the tab was.
_TOKEN_LINE = re.compile(r"(?P<name>.+?)#(?P<number>[0-9]{1,9})\s+(?P<caption>.*)")
_SUFFIXES = IMAGE_SUFFIXES | OTHER_IMAGE_SUFFIXES
# The name ends at its suffix and the first comma behind it (every copy has a `.jpg.1`); unquoted captions may
# contain commas.
_CSV_LINE = re.compile(
    rf'"?(?P<name>[^,"]+(?:{"|".join(map(re.escape, sorted(_SUFFIXES)))})(?:\.\d+)?)"?,(?P<caption>.*)',
    re.IGNORECASE,
)
_CSV_QUOTED = re.compile(r'\s*"((?:[^"]|"")*)"\s*')
_CSV_HEADER = re.compile(
    r'(?P<index>"?(?:unnamed: 0|index)?"?,)?"?image\w*"?,(\s*"?comment_number\w*"?,)?'
    r'\s*"?(caption|comment)\w*"?',
    re.IGNORECASE,
)
_INDEX = re.compile(r'"?[0-9]+"?,')
"""What pandas writes before each row, under a column without a name."""
_BAR_HEADER = re.compile(r"\s*image\w*\s*\|.*\|\s*(comment|caption)\w*\s*", re.IGNORECASE)
# Flickr30k as Kaggle has it: `name.jpg| 0| caption`; one row of it lacks the second bar.
_BAR_LINE = re.compile(r"(?P<name>[^|]+)\|\s*(?P<number>[0-9]{1,9})(?P<bar>\s*\|)?\s*(?P<caption>.*)")
_CSV_NUMBERED = re.compile(r"\s*[0-9]{1,9}\s*,(.*)")
"""A caption of Flickr30k, preceded by its number."""


def read_flickr8k(folder: DataFolder) -> RawDataset | None:
    """Read Flickr8k's captions, split lists and images, up to two folders down.

    The token file takes precedence over `captions.txt`, because only it numbers the captions.

    Raises:
        DataError: If a caption line cannot be parsed, an image is in two split lists, an image name points
            out of its folder, two files of one kind lie at the same depth, or there is no image folder.
    """
    root, levels = folder.root, _list_levels(folder.root)
    forms = _find_forms(folder, levels)
    if not forms:
        return None
    (form, caption_file), *others = forms
    captions = list(_PARSERS[form](folder, caption_file))
    for _, path in others:
        folder.note("there too, and not read: ", folder.name(path))
    image_dir = _find_image_dir(root, levels, caption_file)
    lists = _find_split_lists(root, levels)
    splits = _read_split_lists(folder, lists) if lists else None
    if lists and (missing := [split for split in SPLITS if split not in lists]):
        folder.note(f"no list of the {' and '.join(missing)} split")
    files = {"captions": caption_file, "images": image_dir}
    files |= {f"{split} split": path for split, path in lists.items()}
    return RawDataset(
        format=form,
        files={role: folder.name(path) for role, path in files.items()},
        photographs=folder.list_images(image_dir),
        captions=captions,
        splits=splits,
        split_rule=SplitRule.LISTS,
    )


def _bad_line(path: Path, number: int, line: str, expected: str) -> DataError:
    return DataError(f"{path}, line {number}: read {line[:120]!r}; expected {expected}")


def _parse_token_lines(folder: DataFolder, path: Path) -> Iterator[RawCaption]:
    for number, line in folder.read_lines(path):
        match = _TOKEN_LINE.fullmatch(line)
        if match is None:
            raise _bad_line(path, number, line, "IMAGE.jpg#NUMBER, a tab and the caption")
        name = check_image_name(match["name"].strip(), f"{path}, line {number}")
        yield RawCaption(name, int(match["number"]), tidy(match["caption"]))


def _parse_kaggle_lines(folder: DataFolder, path: Path) -> Iterator[RawCaption]:
    rows: list[tuple[str, str]] = []
    has_index = False
    for number, line in folder.read_lines(path):
        if not rows and (header := _CSV_HEADER.fullmatch(line.strip())):
            has_index = header["index"] is not None
            continue
        line = _INDEX.sub("", line, count=1) if has_index else line
        match = _CSV_LINE.fullmatch(line)
        if match is None:
            raise _bad_line(path, number, line, "IMAGE.jpg, a comma and the caption")
        rows.append((check_image_name(match["name"].strip(), f"{path}, line {number}"), match["caption"]))
    numbers = [_CSV_NUMBERED.fullmatch(caption) for _, caption in rows]
    are_numbered = all(numbers)
    seen: Counter[str] = Counter()
    for (name, caption), match in zip(rows, numbers, strict=True):
        text = match[1] if match and are_numbered else caption
        quoted = _CSV_QUOTED.fullmatch(text)
        yield RawCaption(name, seen[name], tidy(quoted[1].replace('""', '"') if quoted else text))
        seen[name] += 1


def _parse_bar_lines(folder: DataFolder, path: Path) -> Iterator[RawCaption]:
    for number, line in folder.read_lines(path):
        if number == 1 and _BAR_HEADER.fullmatch(line):
            continue
        match = _BAR_LINE.fullmatch(line)
        if match is None:
            raise _bad_line(path, number, line, "IMAGE.jpg| NUMBER| and the caption")
        if match["bar"] is None:
            folder.note(
                f"no second bar, so the caption begins behind the number: line {number} of ", path.name
            )
        name = check_image_name(match["name"].strip(), f"{path}, line {number}")
        yield RawCaption(name, int(match["number"]), tidy(match["caption"]))


TOKEN_FILE = "Flickr8k token file"
KAGGLE_FILE = "Flickr8k captions.txt (Kaggle)"
BAR_FILE = "Flickr30k results.csv (Kaggle)"
_PARSERS: dict[str, Callable[[DataFolder, Path], Iterator[RawCaption]]] = {
    TOKEN_FILE: _parse_token_lines,
    KAGGLE_FILE: _parse_kaggle_lines,
    BAR_FILE: _parse_bar_lines,
}


def _find_forms(folder: DataFolder, levels: list[list[Path]]) -> list[tuple[str, Path]]:
    """Return the forms of Flickr's captions found, the best first."""
    if folder.file:
        levels = [[folder.file]]

    def is_given(name: str) -> bool:
        return folder.file is not None and name.endswith(".txt") and ".token" not in name

    found = {
        TOKEN_FILE: _find_one(
            folder.root, levels, lambda name: "lemma" not in name and name.endswith((".token", ".token.txt"))
        ),
        KAGGLE_FILE: _find_one(folder.root, levels, lambda name: name == "captions.txt" or is_given(name)),
        BAR_FILE: _find_one(folder.root, levels, lambda name: name in ("results.csv", "flickr30k.csv")),
    }
    has_own_form = {KAGGLE_FILE: _is_kaggle, BAR_FILE: lambda line: _BAR_HEADER.fullmatch(line) is not None}
    forms: list[tuple[str, Path]] = []
    for form, path in found.items():
        if path and (form == TOKEN_FILE or has_own_form[form](_first_line(folder, path))):
            forms.append((form, path))
    return forms


def _is_kaggle(line: str) -> bool:
    """Whether a first line is of `captions.txt`, or of no table."""
    is_table = "\t" in line or ";" in line or "|" in line
    return not is_table or bool(_CSV_HEADER.fullmatch(line.strip()) or _CSV_LINE.fullmatch(line))


def _first_line(folder: DataFolder, path: Path) -> str:
    return next((line for _, line in folder.read_lines(path)), "")


def _list_levels(root: Path) -> list[list[Path]]:
    """Return the entries of the folder, of its folders, and of theirs."""
    levels: list[list[Path]] = []
    folders = [str(root)]
    for _ in range(3):
        entries = [entry for folder in folders for entry in os.scandir(folder)]
        # macOS adds `__MACOSX` and `._name` to archives.
        entries = [entry for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
        levels.append(sorted(Path(entry) for entry in entries))
        folders = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return levels


def _find_one(root: Path, levels: list[list[Path]], is_wanted: Callable[[str], bool]) -> Path | None:
    """Return the wanted file nearest to the root, names in lower case."""
    for entries in levels:
        found = [entry for entry in entries if is_wanted(entry.name.lower()) and entry.is_file()]
        if len(found) > 1:
            names = ", ".join(str(entry.relative_to(root)) for entry in found)
            raise DataError(f"{root}: {len(found)} caption files ({names}); keep the one that is meant")
        if found:
            return found[0]
    return None


def _find_image_dir(root: Path, levels: list[list[Path]], caption_file: Path) -> Path:
    for entries in levels:
        for entry in entries:
            if entry.name.lower() in IMAGE_FOLDERS and entry.is_dir() and _holds_images(entry):
                return entry
    if _holds_images(caption_file.parent):
        return caption_file.parent
    raise DataError(
        f"{root}: {caption_file.name} is there, but no folder with its images; "
        "expected JPEG files in Images/ or Flicker8k_Dataset/"
    )


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in folder.iterdir())


def _find_split_lists(root: Path, levels: list[list[Path]]) -> dict[Split, Path]:
    """Return the split lists nearest to the root, all of one level."""
    for entries in levels:
        lists: dict[Split, Path] = {}
        for entry in entries:
            match = _SPLIT_LIST.fullmatch(entry.name)
            if match is None:
                continue
            split = _SPLIT_NAMES[match[1].lower()]
            if split in lists:
                names = f"{lists[split].relative_to(root)} and {entry.relative_to(root)}"
                raise DataError(f"{root}: two lists of the {split} split ({names}); keep one")
            lists[split] = entry
        if lists:
            return {split: lists[split] for split in SPLITS if split in lists}
    return {}


def _read_split_lists(folder: DataFolder, lists: dict[Split, Path]) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    for split, path in lists.items():
        for number, line in folder.read_lines(path):
            where = f"{path}, line {number}"
            claim_split(splits, [check_image_name(line.strip(), where)], split, where)
    return splits
