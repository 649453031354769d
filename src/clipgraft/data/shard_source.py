"""Datasets of shards, counted by statements beside them or by indexing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from clipgraft.console import track
from clipgraft.data.arrow_samples import holds_images
from clipgraft.data.dataset import MAX_HELD_OUT, SPLITS, CaptionDataset, CaptionedImages, Excluded
from clipgraft.data.shard import Shard
from clipgraft.data.shard_counts import INDEX_NAME, Counts, ShardCounts, stated_counts
from clipgraft.data.shard_files import ShardFile, find_shards, names_shards
from clipgraft.data.shard_index import ShardIndex
from clipgraft.data.shards import WINDOW_SHARDS, ShardedImages
from clipgraft.data.split_names import SplitRule
from clipgraft.errors import DataError, printable
from clipgraft.settings import DataSettings

FORMATS = {"tar": "webdataset shards", "parquet": "parquet with images", "arrow": "Arrow files with images"}


def load_shards(source: str, settings: DataSettings) -> CaptionDataset | None:
    """Load the shards of a source; return None without any.

    Val and test are the first images of each, in the order of the shards.

    Raises:
        MissingFileError: If nothing is there.
        DataError: If a shard is damaged, a field is not there, the number of images is not known, or none
            has a caption.
    """
    files = find_shards(source)
    if not files or not (files[0].is_tar or holds_images(files[0].url)):
        return None
    shards = [Shard(number, file, settings) for number, file in enumerate(files)]
    stated = stated_counts(files) if len(files) > WINDOW_SHARDS else None
    is_indexed = len(files) <= WINDOW_SHARDS or (
        stated is None and not settings.num_train_images and all(file.is_local for file in files)
    )
    counts = _index_all(shards) if is_indexed else stated
    if counts is None and not settings.num_train_images:
        raise DataError(
            f"{source}: how many images its {len(files):,} shards hold is stated nowhere ({INDEX_NAME} of "
            "`clipgraft data pack`, or img2dataset's _stats.json); set data.num_train_images"
        )
    train = ShardedImages(shards, counts, settings.num_train_images)
    held_out = [
        *train.held_out("val", settings.max_val_images or MAX_HELD_OUT),
        *train.held_out("test", settings.max_test_images or MAX_HELD_OUT),
    ]
    indexes = [shard.index() for shard in shards] if is_indexed else [each.index for each in train.held]
    excluded = _excluded(indexes)
    if not held_out and not len(train):
        raise DataError(_nothing_remains(source, files, excluded))
    return CaptionDataset(
        root=source if names_shards(source) else Path(source),
        format=FORMATS[files[0].suffix],
        files={"shards": _range(files)},
        images=CaptionedImages(sorted(held_out, key=lambda image: image.image_id)),
        excluded=tuple(excluded),
        notes=() if counts and counts.are_exact else (_how_counted(files, indexes, settings),),
        split_rule=_split_rule(files, indexes, counts),
        streamed=train,
    )


def _index_all(shards: Sequence[Shard]) -> ShardCounts:
    """Index all shards, as far as the cache lacks their indexes."""
    counts: list[Counts] = []
    with track("indexing shards", len(shards)) as update:
        for done, shard in enumerate(shards, start=1):
            index = shard.index()
            counts.append({split: len(index.rows(split)) for split in SPLITS})
            update(done, "shards")
    return ShardCounts(counts, are_exact=True)


def _excluded(indexes: Sequence[ShardIndex]) -> list[Excluded]:
    return [
        Excluded("image", printable(f"{index.shard}/{name}"), reason)
        for index in indexes
        for name, reason in index.left_out
    ]


def _how_counted(files: Sequence[ShardFile], indexes: Sequence[ShardIndex], settings: DataSettings) -> str:
    stated = "data.num_train_images" if settings.num_train_images else "what is stated beside the shards"
    opened = len({index.shard for index in indexes})
    return (
        f"the number of images is by {stated}; {opened:,} of {len(files):,} shards were opened, and what the "
        "others hold that cannot be used is not counted"
    )


def _split_rule(files: Sequence[ShardFile], indexes: Sequence[ShardIndex], counts: ShardCounts | None) -> str:
    is_packed = counts is not None and counts.are_exact and not indexes  # of samples that name their splits
    if is_packed or any(index.names_splits for index in indexes):
        return SplitRule.COLUMN
    return "names of shards or of their folders" if files[0].split else SplitRule.HASH


def _range(files: Sequence[ShardFile]) -> str:
    return files[0].name if len(files) == 1 else f"{len(files):,}, {files[0].name} to {files[-1].name}"


def _nothing_remains(source: str, files: Sequence[ShardFile], excluded: Sequence[Excluded]) -> str:
    counts = Counter(item.reason for item in excluded).most_common()
    reasons = "; ".join(f"{count:,}: {reason}" for reason, count in counts) or "no sample at all"
    return f"{source}: no image with a caption remains in {len(files):,} shard(s). Excluded: {reasons}"
