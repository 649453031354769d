"""Fetching of remote shards; a failed transfer is tried three times."""

import time
from pathlib import Path

from clipgraft.data.shard_files import ShardFile, file_system, version_of
from clipgraft.errors import DataError, MissingFileError, is_no_space

ATTEMPTS = 3
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before the third."""


def fetch(shard: ShardFile, path: Path) -> None:
    """Fetch a shard to a path.

    Raises:
        MissingFileError: If it is not there any more.
        DataError: If it ends early or cannot be read three times, or changed since it was listed.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE_SECONDS * attempt)
        try:
            _fetch_once(shard, path)
        except FileNotFoundError:
            raise MissingFileError(f"{shard.url}: no such shard any more") from None
        except DataError:
            raise
        except Exception as error:  # each file system has errors of its own
            if is_no_space(error):
                raise
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            continue
        size = path.stat().st_size
        if shard.size in (None, size):
            return
        reason = f"it ended after {size:,} of {shard.size:,} bytes"
    raise DataError(f"{shard.url}: cannot be fetched, tried {ATTEMPTS} times: {reason}")


def _fetch_once(shard: ShardFile, path: Path) -> None:
    fs, remote = file_system(shard.url)
    fs.invalidate_cache()
    info = fs.info(remote)
    if info.get("size") != shard.size or _differ(version_of(info), shard.version):
        raise DataError(f"{shard.url} has changed since this run began; run it again")
    fs.get_file(remote, str(path))


def _differ(now: str, before: str) -> bool:
    """Whether two versions are values of one field, and unequal (listings may have other fields)."""
    return now.partition(" ")[0] == before.partition(" ")[0] and now != before
