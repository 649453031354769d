"""Training images of shards, shuffled in windows of a few shards.

Only the shards of a window and of the next one are open, so a source may have any size. An epoch's order is a
function of source, seed and epoch; to begin in its middle, only the shards from there on are opened.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, count, takewhile
from threading import Thread
from typing import NamedTuple

import numpy as np

from clipgraft.data.dataset import CaptionedImage, CaptionedImages, Split
from clipgraft.data.shard import OpenShard, Shard, named_fields
from clipgraft.data.shard_counts import ShardCounts
from clipgraft.errors import DataError
from clipgraft.files import fingerprint

WINDOW_SHARDS = 4
"""Shards whose samples are shuffled together: 40,000 of img2dataset's default size."""


class _Window(NamedTuple):
    """Shards shuffled together in one pass over the source."""

    pass_number: int
    number: int
    shards: list[Shard]


class ShardedImages:
    """Training images of shards; see `TrainingImages`.

    Args:
        shards: All shards of the source.
        counts: Images in each shard, if known.
        num_images: Images in an epoch; 0 = the sum of the counts.
    """

    def __init__(self, shards: Sequence[Shard], counts: ShardCounts | None, num_images: int) -> None:
        self._all = tuple(shards)
        stated = counts.by_shard if counts else []
        self._exact = stated if counts and counts.are_exact else None
        self._shards = self._holding("train")
        self._num_images = num_images or sum(each.get("train", 0) for each in stated)
        self.held: list[OpenShard] = []
        """Shards of images that were handed out for good; they stay in the cache."""
        self._fingerprint = fingerprint(
            [(shard.file.name, shard.file.size) for shard in shards],
            [dict(each) for each in stated],
            num_images,
            named_fields(shards[0].settings),
        )

    def __len__(self) -> int:
        return self._num_images

    @property
    def fingerprint(self) -> str:
        """Return a checksum of the shards' names, sizes and stated counts."""
        return self._fingerprint

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, CaptionedImage]]:
        """Yield number and image in the epoch's order, from position `start` on.

        Where fewer samples are there than stated, another pass over the shards fills the epoch.
        """
        left = len(self) - start
        if left <= 0:
            return
        windows, skipped = self._from(seed, epoch, start)
        for window, opened, rows in _opened_ahead(windows, left + skipped):
            for place in self._order(seed, epoch, window, len(rows))[skipped:].tolist()[:left]:
                shard, row = opened[rows[place, 0]], int(rows[place, 1])
                yield _number(window, shard, row), shard.image(row)
                left -= 1
            skipped = 0

    def once(self, seed: int) -> Iterator[CaptionedImage]:
        """Yield each training image once, in the order of epoch 0."""
        windows = takewhile(lambda window: window.pass_number == 0, self._windows(seed, 0))
        for window, opened, rows in _opened_ahead(windows, sys.maxsize):
            for place in self._order(seed, 0, window, len(rows)):
                yield opened[rows[place, 0]].image(int(rows[place, 1]))

    def _order(self, seed: int, epoch: int, window: _Window, num_samples: int) -> np.ndarray:
        random = np.random.default_rng([seed, epoch, window.pass_number, window.number])
        return random.permutation(num_samples)

    def first(self, count: int) -> CaptionedImages:
        """Return the first training images of the shards, in memory."""
        return self.held_out("train", count)

    def held_out(self, split: Split, max_images: int) -> CaptionedImages:
        """Return the first images of a split, in memory.

        A split that the first few shards lack is taken for empty, unless the counts are exact.
        """
        images: list[CaptionedImage] = []
        for number, shard in enumerate(self._holding(split)):
            if len(images) >= max_images or (number >= WINDOW_SHARDS and not images):
                break
            opened = shard.open()
            images += [opened.image(row) for row in opened.rows(split)[: max_images - len(images)].tolist()]
            self.held.append(opened)
        return CaptionedImages(images)

    def _holding(self, split: Split) -> list[Shard]:
        """Return the shards that may hold images of a split."""
        if self._exact is not None:
            return [shard for shard in self._all if self._exact[shard.number].get(split)]
        return [shard for shard in self._all if shard.file.split in (None, split)]

    def iter_captions(self) -> Iterator[str]:
        """Yield all training captions in the order of the shards."""
        for shard in self._shards:
            index = shard.index()
            yield from index.captions(index.rows("train"))

    def _from(self, seed: int, epoch: int, start: int) -> tuple[Iterator[_Window], int]:
        """Return the windows from a position on.

        The second value is the number of samples to skip in the first window.
        """
        windows = self._windows(seed, epoch)
        for window in windows:
            num_samples = sum(map(self._num_in, window.shards)) if start else 0
            if start < num_samples or not start:
                return chain([window], windows), start
            start -= num_samples
        raise AssertionError("passes do not end")

    def _num_in(self, shard: Shard) -> int:
        """Return the exact number of training images in a shard."""
        if self._exact is not None:
            return self._exact[shard.number].get("train", 0)
        return len(shard.index().rows("train"))

    def _windows(self, seed: int, epoch: int) -> Iterator[_Window]:
        """Yield windows, pass by pass, each pass in its own order."""
        for pass_number in count():
            order = np.random.default_rng([seed, epoch, pass_number]).permutation(len(self._shards))
            for number, begin in enumerate(range(0, len(order), WINDOW_SHARDS)):
                shards = [self._shards[index] for index in order[begin : begin + WINDOW_SHARDS]]
                yield _Window(pass_number, number, shards)


class _Opening(Thread):
    """Opens a shard ahead of its use.

    It is a daemon, so that a download does not delay the end of the process.
    """

    def __init__(self, shard: Shard) -> None:
        super().__init__(daemon=True)
        self._shard = shard
        self._result: OpenShard | BaseException | None = None
        self.start()

    def run(self) -> None:
        """Open the shard; keep an error for `opened`."""
        try:
            self._result = self._shard.open()
        except BaseException as error:
            self._result = error

    def opened(self) -> OpenShard:
        """Wait for the shard."""
        self.join()
        assert self._result is not None
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


def _opened_ahead(
    windows: Iterator[_Window], num_samples: int
) -> Iterator[tuple[_Window, list[OpenShard], np.ndarray]]:
    """Yield windows, their shards, and (shard in window, row) of each training sample.

    Windows are opened one ahead, up to `num_samples`. The one before stays open: workers may still read it.
    """
    window = next(windows, None)
    opening = _opening(window)
    seen, before = 0, list[OpenShard]()
    while window is not None:
        current, opened = window, [each.opened() for each in opening]
        rows = np.concatenate([_rows(place, shard) for place, shard in enumerate(opened)])
        seen += len(rows)
        window = next(windows, None) if seen < num_samples else None
        if window is not None and window.pass_number > 0 and not seen:
            raise DataError("no shard holds a training image with a caption")
        opening = _opening(window)
        yield current, opened, rows
        before = opened
    del before


def _opening(window: _Window | None) -> list[_Opening]:
    return [_Opening(shard) for shard in window.shards] if window is not None else []


def _rows(place: int, shard: OpenShard) -> np.ndarray:
    rows = shard.rows("train")
    return np.stack([np.full_like(rows, place), rows], axis=1)


def _number(window: _Window, shard: OpenShard, row: int) -> int:
    """Return a number that no other image of the epoch has."""
    return window.pass_number << 56 | shard.shard.number << 32 | row
