"""Several sources in one training, each as often as its weight says."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from clipgraft.data.dataset import CaptionDataset, CaptionedImage, CaptionedImages, TrainingImages
from clipgraft.errors import DataError, UserError
from clipgraft.files import fingerprint
from clipgraft.settings import FLATLAND8K, DataSettings, WeightedSource

MAX_IMAGES = 10**9
"""Of an epoch, whose order takes two bytes of memory an image."""


@dataclass(frozen=True, slots=True)
class Part:
    """Training images of one source."""

    name: str
    """Prefix of its images' ids."""
    images: TrainingImages
    weight: float
    """Times that each image comes in an epoch, on average."""

    @property
    def count(self) -> int:
        """Images of this source in an epoch."""
        return round(self.weight * len(self.images))

    def named(self, image: CaptionedImage) -> CaptionedImage:
        """Return an image with an id that no other source has."""
        return replace(image, image_id=f"{self.name}/{image.image_id}")


class MixedImages:
    """Training images of several sources in a random order; see `TrainingImages`.

    An epoch takes `count` images of each source and goes on where the epoch before ended, in passes over the
    source that have an order each. So all images of a source come equally often, whatever its weight.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = tuple(part for part in parts if len(part.images))
        for part in self.parts:
            if not part.count:
                raise DataError(
                    f"{part.name} has {len(part.images):,} training images, and a weight of {part.weight:g} "
                    "leaves none of them to an epoch; raise it, or leave the source out"
                )
        num_images = sum(part.count for part in self.parts)  # `len` takes no more than sys.maxsize
        if num_images > MAX_IMAGES:
            raise DataError(
                f"an epoch of all sources has {num_images:,} images, and {MAX_IMAGES:,} can be ordered; "
                "lower the weights"
            )

    def __len__(self) -> int:
        return sum(part.count for part in self.parts)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[tuple[int, CaptionedImage]]:
        """Yield number and image from position `start` on; two bytes of memory each."""
        counts = [part.count for part in self.parts]
        order = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
        np.random.default_rng([seed, epoch]).shuffle(order)
        taken = np.bincount(order[:start], minlength=len(counts)).tolist()
        streams = [self._stream(source, seed, epoch, done) for source, done in enumerate(taken)]
        for source in order[start:]:
            yield next(streams[source])

    def _stream(self, source: int, seed: int, epoch: int, done: int) -> Iterator[tuple[int, CaptionedImage]]:
        """Yield a source's images in an epoch, after those `done`."""
        part = self.parts[source]
        first_pass = epoch * part.count // len(part.images)
        number_of_pass, start = divmod(epoch * part.count + done, len(part.images))
        while True:
            for number, image in part.images.epoch(seed, number_of_pass, start):
                yield _number(source, number_of_pass - first_pass, number), part.named(image)
            number_of_pass, start = number_of_pass + 1, 0

    def first(self, count: int) -> CaptionedImages:
        """Return each source's first images, by its share of an epoch."""
        shares = [min(len(part.images), -(-count * part.count // len(self))) for part in self.parts]
        images = [
            part.named(image)
            for part, share in zip(self.parts, shares, strict=True)
            for image in part.images.first(share)
        ]
        return CaptionedImages(images[:count])

    def iter_captions(self) -> Iterator[str]:
        """Yield all captions, the sources in turns by their shares."""
        captions = [part.images.iter_captions() for part in self.parts]
        taken, left = [0] * len(captions), set(range(len(captions)))
        while left:
            source = min(left, key=lambda each: ((taken[each] + 1) / self.parts[each].count, each))
            caption = next(captions[source], None)
            if caption is None:
                left.remove(source)
            else:
                taken[source] += 1
                yield caption

    @property
    def unweighted(self) -> "MixedImages":
        """The same sources with each image once in an epoch."""
        return MixedImages([replace(part, weight=1.0) for part in self.parts])

    @property
    def held(self) -> CaptionedImages | None:
        """All images, if those of every source are in memory."""
        if not all(isinstance(part.images, CaptionedImages) for part in self.parts):
            return None
        return CaptionedImages(
            part.named(image) for part in self.parts for image in part.images.first(len(part.images))
        )

    @property
    def fingerprint(self) -> str:
        """Return a checksum of the sources' own and their weights."""
        return fingerprint([(part.weight, part.images.fingerprint) for part in self.parts])


def mix_sources(data: DataSettings, load: Callable[[DataSettings], CaptionDataset]) -> CaptionDataset:
    """Load each of `data.sources`, and make one dataset of them.

    Images of val and test are those of all sources.

    Raises:
        UserError: If `data.source` is set too.
        DataError: If a weight leaves no image to an epoch.
    """
    if data.source:
        raise UserError("data.source and data.sources are both set; leave one of them out")
    sets = [load(_alone(data, each)) for each in data.sources]
    names = _names([each.source for each in data.sources])
    parts = [
        Part(name, dataset.train, each.weight)
        for name, dataset, each in zip(names, sets, data.sources, strict=True)
    ]
    pairs = list(zip(parts, sets, strict=True))
    images = [part.named(image) for part, dataset in pairs for image in (*dataset.val, *dataset.test)]
    return CaptionDataset(
        root=" + ".join(names),
        format="several sources",
        files={
            part.name: f"{dataset.root} ({dataset.format}), {len(part.images):,} training images "
            f"x {part.weight:g}"
            for part, dataset in pairs
        },
        images=CaptionedImages(sorted(images, key=lambda image: image.image_id)),
        excluded=tuple(
            replace(item, name=f"{part.name}/{item.name}")
            for part, dataset in pairs
            for item in dataset.excluded
        ),
        notes=tuple(f"{part.name}: {note}" for part, dataset in pairs for note in dataset.notes),
        damaged={
            f"{part.name}/{name}": why for part, dataset in pairs for name, why in dataset.damaged.items()
        },
        split_rule="; ".join(f"{part.name}: {dataset.split_rule}" for part, dataset in pairs),
        streamed=MixedImages(parts),
    )


def _alone(data: DataSettings, source: WeightedSource) -> DataSettings:
    """Return the settings of one of several sources as the only one."""
    return data.updated({**source.model_dump(exclude={"weight"}), "sources": ()})


def _names(sources: Sequence[str]) -> list[str]:
    """Return the last part of each path, numbered where it repeats."""
    seen: Counter[str] = Counter()
    names = []
    for source in sources:
        name = Path(source).name or FLATLAND8K
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _number(source: int, repeat: int, number: int) -> int:
    """Return 60 bits, of each image and repeat others."""
    return int(sha256(f"{source} {repeat} {number}".encode()).hexdigest()[:15], 16)
