"""Images of a listing, whose Arrow file is memory-mapped."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np

from clipgraft.cache import CachedFile, cached_file
from clipgraft.data.dataset import (
    MAX_HELD_OUT,
    SPLITS,
    CaptionDataset,
    CaptionedImage,
    CaptionedImages,
    Split,
)
from clipgraft.data.listing import DEEP, NO_SPLIT, convert, key_of
from clipgraft.data.listing_tables import Table, is_large, read_layout
from clipgraft.data.raw import tidy
from clipgraft.data.split_names import SplitRule, split_of_file
from clipgraft.errors import DataError, MissingFileError, needs
from clipgraft.files import fingerprint
from clipgraft.settings import DataSettings

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
NUM_PROBED = 100
"""Names looked for before training, so that a wrong folder is named at once."""
ROWS_AT_ONCE = 4_096
"""Numbers of an epoch's order that become Python's own at once."""


class Listing:
    """The rows of a converted listing, a few bytes each.

    Args:
        file: From `listing.convert`.
    """

    def __init__(self, file: CachedFile) -> None:
        with needs("data", "pyarrow"):
            import pyarrow as pa
        self.file = file  # which is not evicted as long as it is referred to
        reader = pa.ipc.open_file(pa.memory_map(str(file.path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches - 1)]
        told = dict(reader.get_batch_with_custom_metadata(len(batches)).custom_metadata)
        self.content = told[b"fingerprint"].decode()
        self.num_excluded = int(told[b"num_excluded"])
        self._columns: list[Sequence[pa.Array]] = [batch.columns for batch in batches]
        self._starts = [0, *accumulate(batch.num_rows for batch in batches)]
        self.splits, self.split_rule = self._decide()

    def _decide(self) -> tuple[np.ndarray, SplitRule]:
        """Return each row's split code, and the rule that decides it."""
        named, hashed = self._column(2), self._column(3)
        if ((named >= 0) & (named < DEEP)).any():
            return np.where(named < DEEP, named, NO_SPLIT), SplitRule.FOLDERS
        if (named == DEEP + SPLITS.index("train")).any():
            return np.where(named >= DEEP, named - DEEP, NO_SPLIT), SplitRule.FOLDERS
        return hashed, SplitRule.HASH

    def _column(self, number: int) -> np.ndarray:
        parts = [columns[number].to_numpy() for columns in self._columns]
        return np.concatenate([np.empty(0, np.int8), *parts])

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, row: int) -> tuple[str, tuple[str, ...]]:
        """Return the image's name and the captions of a row."""
        number = bisect_right(self._starts, row) - 1
        names, captions, *_ = self._columns[number]
        at = row - self._starts[number]
        return names[at].as_py(), tuple(tidy(text) for text in captions[at].as_py())


class ListedImages:
    """Training images of a listing.

    Args:
        listing: The rows of all splits.
        rows: Numbers of the training images' rows.
        base: Folder that names are relative to.
    """

    def __init__(self, listing: Listing, rows: np.ndarray, base: Path) -> None:
        self._listing, self._rows, self._base = listing, rows, base

    def __len__(self) -> int:
        return len(self._rows)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, CaptionedImage]]:
        """Yield index and image, from a permutation for each seed and epoch."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        for begin in range(start, len(order), ROWS_AT_ONCE):
            for index in order[begin : begin + ROWS_AT_ONCE].tolist():
                yield index, image_of(self._listing, int(self._rows[index]), self._base, "train")

    def first(self, count: int) -> CaptionedImages:
        """Return the first images of the listing."""
        return CaptionedImages(
            image_of(self._listing, row, self._base, "train") for row in self._rows[:count].tolist()
        )

    def iter_captions(self) -> Iterator[str]:
        """Yield all captions, image by image."""
        for row in self._rows:
            yield from self._listing.read(int(row))[1]

    @property
    def fingerprint(self) -> str:
        """Return a checksum of names, captions and splits, without photographs' bytes."""
        return fingerprint(self._listing.content, self._listing.split_rule, len(self))


def image_of(listing: Listing, row: int, base: Path, split: Split) -> CaptionedImage:
    """Return the image of a row."""
    name, captions = listing.read(row)
    return CaptionedImage(name, base / name, captions, split)


def load_listing(source: Path, settings: DataSettings) -> CaptionDataset | None:
    """Load a listing, or return None for other sources.

    A listing is a table above `LISTING_BYTES`, or of parquet, at the top of a folder or named itself.

    Raises:
        MissingFileError: If none of its first images is there.
        DataError: As `listing.convert`, or if no training image remains.
    """
    tables = find_tables(source, settings)
    if not tables:
        return None
    root = tables[0].path.parent
    file = cached_file("listings", key_of(tables, settings), partial(convert, tables, root))
    listing = Listing(file)
    splits = listing.splits
    if settings.include_unsplit:
        splits = np.where(splits == NO_SPLIT, np.int8(SPLITS.index("train")), splits)
    rows = np.flatnonzero(splits == SPLITS.index("train")).astype(np.uint32)
    if not len(rows):
        raise DataError(f"{tables[0].path}: no training image with a caption among {len(listing):,} rows")
    base = _base(listing, tables[0].path, rows)
    held_out, notes = _held_out(listing, splits, base, settings)
    if num_unsplit := int((splits == NO_SPLIT).sum()):
        notes.append(f"{num_unsplit:,} images are in no split, and excluded")
    if listing.num_excluded:
        notes.append(f"{listing.num_excluded:,} captions are empty or too long, and excluded")
    return CaptionDataset(
        root=root,
        format="listing",
        files={_role(table): table.path.name for table in tables} | {"images": "."},
        images=CaptionedImages(held_out),
        excluded=(),
        notes=tuple(notes),
        split_rule=_rule(tables[0], listing),
        streamed=ListedImages(listing, rows, base),
    )


def _rule(table: Table, listing: Listing) -> SplitRule:
    if table.split:
        return SplitRule.FILES
    is_told = table.columns.split and listing.split_rule is SplitRule.FOLDERS
    return SplitRule.COLUMN if is_told else listing.split_rule


def _role(table: Table) -> str:
    return f"captions {table.split}" if table.split else "captions"


def find_tables(source: Path, settings: DataSettings) -> list[Table]:
    """Return the tables named, or at the top of a folder."""
    if source.is_file():
        paths = [source] if source.suffix.lower() in (*SUFFIXES, ".txt") else []
    else:
        found = sorted(path for path in source.iterdir() if not path.name.startswith("."))
        # Beside shards, tables are of what was downloaded.
        is_shards = any(path.suffix.lower() == ".tar" for path in found)
        paths = [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
        paths = [] if is_shards else paths
    if settings.caption_extension or not any(is_large(path) for path in paths):
        return []
    tables = [table for table in (read_layout(path, settings) for path in paths) if table]
    if len(tables) < 2:
        return tables if tables and is_large(tables[0].path) else []
    splits = [split_of_file(table.path.stem) for table in tables]
    if None in splits:
        told = ", ".join(table.path.name for table in tables)
        raise DataError(f"{source}: {len(tables)} tables of captions ({told}); name one as the source")
    return [table._replace(split=split) for table, split in zip(tables, splits, strict=True)]


def _base(listing: Listing, path: Path, rows: np.ndarray) -> Path:
    """Return the table's folder or the one above, as names have it."""
    probed = [listing.read(int(row))[0] for row in rows[:: max(1, len(rows) // NUM_PROBED)][:NUM_PROBED]]
    for folder in (path.parent, path.parent.parent):
        if any((folder / name).is_file() for name in probed):
            return folder
    raise MissingFileError(
        f"{path}: none of {len(probed)} images looked for is there, such as {path.parent / probed[0]}; names "
        "are relative to the table's folder"
    )


def _held_out(
    listing: Listing, splits: np.ndarray, base: Path, settings: DataSettings
) -> tuple[list[CaptionedImage], list[str]]:
    """Return the val and test images that are there, and notes."""
    images: dict[str, CaptionedImage] = {}
    notes: list[str] = []
    limits: Sequence[tuple[Split, int]] = (
        ("val", settings.max_val_images),
        ("test", settings.max_test_images),
    )
    for split, limit in limits:
        rows = np.flatnonzero(splits == SPLITS.index(split))
        held = [image_of(listing, row, base, split) for row in rows[: limit or MAX_HELD_OUT].tolist()]
        there = [image for image in held if Path(str(image.file)).is_file()]
        if len(there) < len(held):
            notes.append(f"{len(held) - len(there):,} of {len(held):,} {split} images are not there")
        if len(rows) > len(held) and not limit:
            notes.append(
                f"the first {len(held):,} of {len(rows):,} {split} images are held out "
                f"(data.max_{split}_images names another number)"
            )
        for image in there:  # its captions may lie in rows apart
            first = images.setdefault(image.image_id, image)
            if first is not image:
                images[image.image_id] = replace(first, captions=first.captions + image.captions)
    return [image for _, image in sorted(images.items())], notes
