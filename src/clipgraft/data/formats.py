"""Load captioned images in one of the forms that people have (`docs/data.md`)."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipgraft.cache import bound_cache, cache_dir
from clipgraft.console import track
from clipgraft.data.caption_files import has_caption_files, other_extensions, read_caption_files
from clipgraft.data.coco import read_coco
from clipgraft.data.damage import skip_damaged
from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.flickr8k import read_flickr8k
from clipgraft.data.karpathy import read_karpathy, with_karpathy_split
from clipgraft.data.listed_images import load_listing
from clipgraft.data.mixed import mix_sources
from clipgraft.data.raw import DataFolder, RawCaption, RawDataset, assemble, is_utf8, tidy
from clipgraft.data.shard_files import names_shards
from clipgraft.data.shard_source import load_shards
from clipgraft.data.tables import first_fields, is_table, names_columns, read_metadata, read_tables
from clipgraft.errors import DataError, MissingFileError
from clipgraft.files import naming, read_text
from clipgraft.runs.folder_kinds import is_result, wrong_kind
from clipgraft.settings import DataSettings

CAPTION_FOLDERS = ("annotations", "captions", "text", "flickr8k_text", "labels", "splits", "metadata")
"""Folders of caption files that lie beside those of images."""
IMAGE_NAME = re.compile(r"[^\s.]\.(jpe?g|png|webp)\b", re.IGNORECASE)
"""Of a line in a table of images."""
ARCHIVES = (".zip", ".7z", ".rar", ".gz", ".tgz")
MAX_SHOWN, MAX_CHARACTERS = 3, 80
"""Files named in an error, and characters of their fields."""


def load_dataset(
    source: str | Path | DataSettings | Iterable[tuple[str | Path, str | Sequence[str]]] = "",
    *,
    include_unsplit: bool = False,
    **settings: object,
) -> CaptionDataset:
    """Load captioned images; photographs are opened only to skip damaged ones.

    The files in a folder decide its format, in the order of `READERS`.

    Args:
        source: A folder, a caption file, shards (also as a pattern or URL), settings that name one of them,
            or pairs of an image's path and its captions, split by a hash of the path's name; empty for
            flatland8k, drawn into the cache.
        include_unsplit: Put images outside every split into train instead of excluding them.
        settings: Other fields of `DataSettings`: `image_field`, `caption_field`, `separator`,
            `caption_extension`, `on_damaged`, ...

    Returns:
        Every image and caption, included or excluded with a reason.

    Raises:
        MissingFileError: If there is no such folder.
        DataError: If it is no folder, no format fits, a caption file is damaged, an image name points out of
            the image folder, or no captioned image remains.
    """
    if isinstance(source, DataSettings):
        given = source
        bound_cache(given.cache_gb)
    else:
        given = DataSettings.build({"include_unsplit": include_unsplit, **settings})
    if isinstance(source, (str, Path)):
        given = given.model_copy(update={"source": os.path.expanduser(source)})
    if given.sources:
        dataset = mix_sources(given, load_dataset)
    elif isinstance(source, (str, Path, DataSettings)):
        dataset = _load(given.source, given)
    else:
        dataset = _from_pairs(_captions_by_path(source))
    named = "" if given.sources else given.source or str(dataset.root)
    if is_utf8(named):  # else it can be read, but not be written into a recipe
        dataset = replace(dataset, settings=given.updated({"source": named}))
    return skip_damaged(dataset) if given.on_damaged == "skip" else dataset


def _load(source: str, settings: DataSettings) -> CaptionDataset:
    if not source:
        return _load_folder(_flatland8k(), settings)
    if not is_utf8(source):
        raise DataError(f"{source}: the folder's name is not UTF-8; rename it")
    is_there = os.path.exists(source)  # unlike Path's, also of a name that is too long for any file
    if not (names_shards(source) or is_there):
        raise MissingFileError(f"{source}: no such folder; expected a folder of images with captions")
    if is_there and not (os.path.isdir(source) or os.path.isfile(source)):
        raise DataError(f"{source}: is neither a folder nor a file, but a device or a pipe")
    listing = load_listing(Path(source), settings) if is_there else None
    is_in_question = not listing and (names_shards(source) or Path(source).is_dir())
    if is_in_question and (shards := load_shards(source, settings)):
        return shards
    if settings.num_train_images:
        raise DataError(f"{source} holds no shards, so data.num_train_images says nothing; leave it out")
    try:
        return listing or _load_folder(Path(source), settings)
    except DataError as error:
        if is_result(Path(source)):
            advice = "a folder of images with captions"
            raise DataError(wrong_kind(Path(source), "a data set", advice=advice)) from error
        raise


def _load_folder(source: Path, settings: DataSettings) -> CaptionDataset:
    root = source if source.is_dir() else _folder_of(source)
    folder = DataFolder(root, settings, None if source.is_dir() else source)
    for read in _readers(settings):
        raw = read(folder)
        if raw is not None:
            raw = with_karpathy_split(folder, raw)
            _note_unread(folder, raw)
            return assemble(root, raw, folder.notes, include_unsplit=settings.include_unsplit)
    if folder.file:
        raise DataError(f"{source}: is no table, token file or JSON of captions; docs/data.md has the forms")
    raise DataError(_no_format(folder))


def _readers(settings: DataSettings) -> Sequence[Callable[[DataFolder], RawDataset | None]]:
    """Return the readers in question, by what the settings name."""
    if settings.caption_extension:
        return (read_caption_files,)
    return (read_metadata, read_tables) if names_columns(settings) else READERS


def _note_unread(folder: DataFolder, raw: RawDataset) -> None:
    """Note tables, which nobody reads beside another format."""
    read = set(raw.files.values())
    for path in folder.documents:
        if (
            folder.name(path) not in read
            and path.suffix.lower() not in (".json", ".txt")
            and is_table(folder, path)
        ):
            folder.note("there too, and not read: ", folder.name(path))


def _folder_of(file: Path) -> Path:
    """Return the folder of a caption file and its images."""
    is_apart = file.parent.name.lower() in CAPTION_FOLDERS
    return file.parent.parent if is_apart and file.is_file() else file.parent


def _no_format(folder: DataFolder) -> str:
    others = other_extensions(folder)
    hint = f"; files beside images end in {others}: name one with data.caption_extension" if others else ""
    if extension := folder.settings.caption_extension:
        return (
            f"{folder.root}: {len(folder.images)} image(s), but no caption in files beside them that end in "
            f"{extension!r} (data.caption_extension){hint}"
        )
    are_read = not names_columns(folder.settings)
    hint += "; caption files beside images are empty" if are_read and has_caption_files(folder) else ""
    hint += "" if are_read else "; data.image_field, caption_field and separator apply to tables only"
    hint += "".join(_why_no_table(folder, path) for path in folder.documents[:MAX_SHOWN])
    archives = [path.name for path in folder.root.iterdir() if path.suffix.lower() in ARCHIVES]
    hint += f"; {', '.join(archives[:MAX_SHOWN])} must be unpacked" if archives else ""
    shard = next(folder.root.rglob("*.tar"), None)
    hint += f"; there are shards, too: name them as {shard.parent}/*.tar" if shard else ""
    return (
        f"{folder.root}: {len(folder.images)} image(s), but no captions in a known format{hint}. Captions "
        "belong into one of: Flickr8k.token.txt (IMAGE.jpg#0<tab>caption) or captions.txt "
        "(IMAGE.jpg,caption) beside Images/; metadata.jsonl or metadata.csv (file_name, text) beside the "
        "images; another CSV, TSV or JSON with columns of images and captions (data.image_field and "
        "data.caption_field name them); "
        "annotations/captions_train.json (COCO); or IMAGE.txt or IMAGE.caption beside each IMAGE.jpg"
    )


def _why_no_table(folder: DataFolder, path: Path) -> str:
    try:
        fields = first_fields(folder, path)
    except DataError as error:
        return f"; {error}"
    if not fields:
        return f"; {folder.name(path)} has no rows of images and captions"
    return f"; the columns or fields in {folder.name(path)} are {', '.join(fields)[:MAX_CHARACTERS]}"


def _captions_by_path(pairs: Any) -> dict[Path, list[str]]:
    """Return the captions of each path, which may come several times."""
    found: dict[Path, list[str]] = {}
    for pair in pairs if isinstance(pairs, Iterable) else [pairs]:
        path, texts = pair if isinstance(pair, list | tuple) and len(pair) == 2 else (None, None)
        captions = [texts] if isinstance(texts, str) else texts
        if (
            not isinstance(path, str | Path)
            or not isinstance(captions, list | tuple)
            or not all(isinstance(text, str) and is_utf8(text) for text in captions)
        ):
            raise DataError(
                "expected a folder, or pairs of an image's path and its caption or captions in whole "
                f"characters; got {repr(pair)[:MAX_CHARACTERS]}"
            )
        found.setdefault(Path(path).expanduser().absolute(), []).extend(captions)
    if not found:
        raise DataError("no image with a caption remains: no pair of a path and captions was given")
    return found


def _from_pairs(pairs: Mapping[Path, Sequence[str]]) -> CaptionDataset:
    root = Path(os.path.commonpath([path.parent for path in pairs]))
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
    from clipgraft.flatland import draw_flatland8k

    with naming(out_dir), track("drawing flatland8k", num_images) as update:
        draw_flatland8k(
            out_dir, seed=seed, num_images=num_images, on_image=lambda done: update(done, "images")
        )


def _flatland8k() -> Path:
    from clipgraft.flatland import DRAWING_VERSION

    # A folder for each version, so that a cache filled by an older one is not taken for this one's.
    path = cache_dir() / f"drawn-v{DRAWING_VERSION}" / "flatland8k"
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_data(path, seed=0, num_images=8000)
    return path


def read_lines(path: Path, kind: str) -> list[str]:
    """Read a text file of captions or prompts, one per line.

    Blank lines are skipped; `kind` is "caption" or "prompt", for messages.

    Raises:
        MissingFileError: If there is no such file.
        DataError: If it is not UTF-8 text, empty, or a table that names images beside their captions.
    """
    if not path.is_file():
        raise MissingFileError(f"{kind}s file not found: {path}; it is a text file with one {kind} per line")
    text = read_text(path, by_people=True)
    lines = re.split(r"\r\n|\n|\r", text)  # not splitlines: U+2028 is part of a line
    found = list(filter(None, map(str.strip, lines)))
    if not found:
        raise DataError(f"{path} holds no {kind}; write one per line")
    named = [line for line in found if IMAGE_NAME.search(line)] if kind == "caption" else []
    if 2 * len(named) > len(found):
        raise DataError(
            f"{path} is a table of images and captions ({named[0][:MAX_CHARACTERS]!r}); "
            "name it with --data, or write its captions alone, one per line"
        )
    return found


READERS: tuple[Callable[[DataFolder], RawDataset | None], ...] = (
    read_flickr8k,
    read_metadata,
    read_karpathy,
    read_coco,
    read_caption_files,
    read_tables,
)
"""Readers, tried in this order; each returns None for a folder in another format."""
