"""Counts of images in shards, stated beside them or in parquet's footers."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from clipgraft.data.arrow_samples import num_rows
from clipgraft.data.dataset import SPLITS, Split
from clipgraft.data.shard_files import ShardFile, file_system
from clipgraft.errors import DataError
from clipgraft.files import parse_json

INDEX_NAME = "shards.json"
"""Written by `data pack` beside its shards."""
STATS_END = "_stats.json"
"""img2dataset's, beside each shard: `00000_stats.json`."""
HASHED_SHARE: Mapping[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}
"""Shares of `hash_split`."""
Counts = Mapping[Split, int]


class ShardCounts(NamedTuple):
    """Images of each split in each shard."""

    by_shard: list[Counts]
    are_exact: bool
    """Whether they are of usable samples, by what the samples themselves say."""


def stated_counts(shards: Sequence[ShardFile]) -> ShardCounts | None:
    """Return the counts stated beside shards, if all are.

    Only those of `data pack` are exact: where no name of a shard tells its split, hashes share out the
    others, which also count samples without a caption.
    """
    if packed := _packed(shards):
        return ShardCounts(packed, are_exact=True)
    totals = _totals(shards)
    if totals is None:
        return None
    return ShardCounts([_shared_out(*pair) for pair in zip(shards, totals, strict=True)], are_exact=False)


def _shared_out(shard: ShardFile, total: int) -> Counts:
    if shard.split:
        return {shard.split: total}
    return {split: int(total * share) for split, share in HASHED_SHARE.items()}


def _packed(shards: Sequence[ShardFile]) -> list[Counts] | None:
    """Return what `data pack` wrote, if it covers all shards."""
    places = {_beside(shard.url, INDEX_NAME) for shard in shards}
    rows: dict[str, dict[str, Any]] = {}
    for place, text in _texts(sorted(places)).items():
        folder = place.rpartition("/")[0]
        found = parse_json(text, place).get("shards")
        named = found.items() if isinstance(found, dict) else ()
        rows |= {f"{folder}/{name}": row for name, row in named if _is_packed(row)}
    if not all(shard.url in rows for shard in shards):
        return None
    for shard in shards:
        stated = rows[shard.url].get("bytes")
        if shard.size not in (None, stated):
            raise DataError(
                f"{shard.url} has {shard.size:,} bytes, but {INDEX_NAME} beside it says {stated}; copy or "
                "download it anew"
            )
    return [{split: rows[shard.url]["images"].get(split, 0) for split in SPLITS} for shard in shards]


def _is_packed(row: Any) -> bool:
    """Whether a shard is described as `data pack` does."""
    if not (isinstance(row, dict) and isinstance(row.get("bytes"), int)):
        return False
    images = row.get("images")
    return isinstance(images, dict) and all(isinstance(count, int) for count in images.values())


def _totals(shards: Sequence[ShardFile]) -> list[int] | None:
    if shards[0].is_tar:
        stats = [shard.url[: -len(".tar")] + STATS_END for shard in shards]
        if not _texts(stats[:1]):
            return None
        texts = _texts(stats)
        try:
            return [int(json.loads(texts[place])["successes"]) for place in stats]
        except (KeyError, TypeError, ValueError):  # one is missing or damaged
            return None
    if shards[0].suffix == "arrow" and not shards[0].is_local:
        return None
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(num_rows, (shard.url for shard in shards)))


def _texts(places: list[str]) -> dict[str, str]:
    """Return the content of small files that are there."""
    fs, _ = file_system(places[0])
    paths = {fs._strip_protocol(place): place for place in places}
    found = fs.cat(list(paths), on_error="omit")
    return {place: found[path].decode("utf-8", "replace") for path, place in paths.items() if path in found}


def _beside(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"
