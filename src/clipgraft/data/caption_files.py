"""Caption files beside images, and what tools write into them."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path, PurePosixPath

from clipgraft.data.caption_flaws import MARKDOWN
from clipgraft.data.names import NameIndex
from clipgraft.data.raw import DataFolder, RawCaption, RawDataset, tidy
from clipgraft.data.split_names import SplitRule, splits_of_folders
from clipgraft.errors import DataError

EXTENSIONS = (".txt", ".caption")
"""Tried without a named one; captioners write the first, kohya's trainer asks for the second by default."""
_KOHYA_FOLDER = re.compile(r"[1-9][0-9]{0,2}_(.+)")
"""`10_sks dog`: repeats, and the caption of images without a caption file."""
MANY_CAPTIONS = 5
"""In one file where another has a third of them or less: probably lines of one description (a guess)."""


def read_caption_files(folder: DataFolder) -> RawDataset | None:
    """Read images with text files of the same names (one caption per line)."""
    if folder.file:
        return None
    captions: list[RawCaption] = []
    suffixes: Counter[str] = Counter()
    class_of = _kohya_classes(folder)
    files_beside = cache(_names_of_files)  # of this reading
    for name, path in folder.images.items():
        beside = files_beside(path.parent)
        found = _caption_files(path, folder.settings.caption_extension, beside)
        lines = [_read_captions(folder, file) for file in found]
        if any(other != lines[0] for other in lines):
            names = " and ".join(folder.name(file) for file in found)
            raise DataError(f"{folder.root}: {names} disagree; name one with data.caption_extension")
        suffixes.update(file.suffix for file in found[:1])
        if not found and name in class_of:
            lines = [[class_of[name]]]
            folder.note("no caption file, so the folder's name is the caption, as kohya has it: ", name)
        captions += [RawCaption(name, number, line) for number, line in enumerate(lines[0] if lines else [])]
    if not captions:
        return None
    _note_counts(folder, captions)
    files = {"captions": ", ".join(f"*{suffix}" for suffix in sorted(suffixes)) or "names of folders"}
    splits = splits_of_folders(folder.images)
    return RawDataset(
        "caption files beside images",
        files | {"images": "."},
        folder.images,
        captions,
        splits or None,
        SplitRule.FOLDERS,
    )


def other_extensions(folder: DataFolder) -> str:
    """Return the endings of files beside images: `.tags (20)`."""
    images = set(folder.images.values())
    stems = {path.with_suffix("") for path in images}
    counts: Counter[str] = Counter()
    for place in sorted({path.parent for path in images}):
        files = [path for path in place.iterdir() if path.with_suffix("") in stems]
        others = [path for path in files if path.is_file() and path not in images]
        counts.update(path.suffix for path in others if path.suffix.lower() not in EXTENSIONS)
    return ", ".join(f"{suffix} ({count:,})" for suffix, count in counts.most_common(3) if suffix)


def has_caption_files(folder: DataFolder) -> bool:
    """Whether any image has a caption file, empty or not."""
    files_beside = cache(_names_of_files)
    return any(_caption_files(path, "", files_beside(path.parent)) for path in folder.images.values())


def _names_of_files(place: Path) -> NameIndex:
    return NameIndex({path.name for path in place.iterdir() if path.is_file()})


def _caption_files(image: Path, named: str, beside: NameIndex) -> list[Path]:
    """Return an image's caption files: `a.txt`, else `a.jpg.txt`, in any case."""
    extensions = ("." + named.removeprefix("."),) if named else EXTENSIONS
    for start in (image.stem, image.name):
        names = dict.fromkeys(beside.same_file(start + end) for end in extensions)
        if found := [image.with_name(name) for name in names if name and name != image.name]:
            return found
    return []


def _read_captions(folder: DataFolder, path: Path) -> list[str]:
    lines = [tidy(line) for _, line in folder.read_lines(path)]
    _refuse_json(path, lines)
    if any(MARKDOWN.match(line) for line in lines):
        folder.note("Markdown in a caption file, read as it stands: ", folder.name(path))
    return lines


def _refuse_json(path: Path, lines: list[str]) -> None:
    """Refuse JSON, whole or cut off, which some captioners write."""
    text = "\n".join(lines)
    if not text.startswith(("{", "[")):
        return
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        if not re.match(r'[{\[]\s*[{"]?[^"]*"\s*[:,]', text):
            return
    raise DataError(f"{path}: holds JSON; expected plain text, one caption per line")


def _kohya_classes(folder: DataFolder) -> dict[str, str]:
    """Return the class that kohya's folders name for each image.

    None has one if any image lies in another folder.
    """
    matches = {name: _KOHYA_FOLDER.fullmatch(PurePosixPath(name).parent.name) for name in folder.images}
    if not all(matches.values()):
        return {}
    for place in sorted({str(PurePosixPath(name).parent) for name in matches}):
        folder.note("kohya's folders, whose number of repeats is not used: ", place)
    return {name: match[1] for name, match in matches.items() if match}


def _note_counts(folder: DataFolder, captions: list[RawCaption]) -> None:
    counts = Counter(caption.image_id for caption in captions)
    (most, high), low = counts.most_common(1)[0], min(counts.values())
    if high >= max(MANY_CAPTIONS, 3 * low):
        folder.note(f"each line is a caption, and images have {low} to {high} of them; most has ", most)
