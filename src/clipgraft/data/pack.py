"""Packing of any source into shards.

The folder holds `train-000000.tar` and so on in webdataset's layout, and `shards.json`, which states the
images, size and checksum of each shard.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipgraft.config import named_paths
from clipgraft.console import Update, track
from clipgraft.data.dataset import SPLITS, CaptionDataset, CaptionedImage, Split
from clipgraft.data.formats import load_dataset
from clipgraft.data.image_file import read_image_bytes
from clipgraft.data.images import MAX_FILE_BYTES, MAX_PIXELS, read_header
from clipgraft.data.shard_counts import INDEX_NAME
from clipgraft.data.shards import ShardedImages
from clipgraft.errors import DataError, UserError
from clipgraft.files import file_sha256, new_folder, write_json
from clipgraft.runs.folder import refuse_inputs_within
from clipgraft.settings import DataSettings

SHARD_IMAGES = 10_000
"""Images in a shard, as img2dataset writes them."""
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "AVIF": "avif", "HEIF": "heic"}
"""By Pillow's names of formats."""
SEED = 0
"""Decides the order of training images."""
_ALL = 2**62
_MEGABYTE = 10**6


def pack(
    data: DataSettings, out: Path, *, shard_size: int = SHARD_IMAGES, max_mb: int = 0
) -> dict[Split, int]:
    """Pack a source's images with all of their captions into shards.

    Image files are copied byte by byte. Training images are shuffled, always alike. The folder appears when
    it is complete.

    Args:
        data: The source.
        out: Folder to make.
        shard_size: Most images of a shard.
        max_mb: Megabytes after which a shard is full; 0 = no bound.

    Returns:
        Number of images in each split.

    Raises:
        UserError: If `out` is there already or lies within the source.
        DataError: As `load_dataset`, or if an image is damaged.
    """
    if out.exists():
        raise UserError(f"{out} is there already; name a new folder, or delete it")
    refuse_inputs_within(out, named_paths(data, "data."))
    everything = {name: getattr(data, name) or _ALL for name in ("max_val_images", "max_test_images")}
    dataset = load_dataset(data.updated(everything))
    shards: dict[str, dict[str, Any]] = {}
    with new_folder(out) as folder:
        for split in SPLITS:
            images, total = _images(dataset, split, data)
            with track(f"packing {split}", total) as update:
                packed = _write_shards(images, split, folder, shard_size, max_mb * _MEGABYTE, update)
            shards |= packed
        write_json(folder / INDEX_NAME, {"schema_version": 1, "shards": shards})
    return {split: sum(shard["images"].get(split, 0) for shard in shards.values()) for split in SPLITS}


def _images(
    dataset: CaptionDataset, split: Split, data: DataSettings
) -> tuple[Iterable[CaptionedImage], int]:
    """Return a split's images and their stated number."""
    if split == "val":
        return dataset.val[: data.max_val_images or None], len(dataset.val)
    if split == "test":
        return dataset.test[: data.max_test_images or None], len(dataset.test)
    if data.max_train_images:
        first = dataset.train.first(data.max_train_images)
        return first, len(first)
    if isinstance(dataset.train, ShardedImages):
        return dataset.train.once(SEED), len(dataset.train)
    return (image for _, image in dataset.train.epoch(SEED, 0)), len(dataset.train)


def _write_shards(
    images: Iterable[CaptionedImage],
    split: Split,
    folder: Path,
    shard_size: int,
    max_bytes: int,
    update: Update,
) -> dict[str, dict[str, Any]]:
    """Write the shards of a split; return their statements for `shards.json`."""
    shards: dict[str, dict[str, Any]] = {}
    shard: _Shard | None = None
    for number, image in enumerate(images):
        shard = shard or _Shard(folder / f"{split}-{len(shards):06d}.tar", split)
        shard.add(f"{split}{number:09d}", image)
        if shard.num_images >= shard_size or 0 < max_bytes <= shard.tar.offset:
            shards[shard.path.name] = shard.close()
            shard = None
        update(number + 1, "images")
    if shard is not None:
        shards[shard.path.name] = shard.close()
    return shards


class _Shard:
    """A shard being written."""

    def __init__(self, path: Path, split: Split) -> None:
        self.path, self.split = path, split
        self.tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self.num_images = self.num_captions = 0

    def add(self, key: str, image: CaptionedImage) -> None:
        """Add an image, its captions and its split."""
        content = read_image_bytes(image.file, MAX_FILE_BYTES)
        try:
            extension = EXTENSIONS[str(read_header(content, MAX_PIXELS).format)]
        except DataError as error:
            raise DataError(f"{image.file}: {error}") from error.__cause__
        fields = {"captions": image.captions, "split": self.split, "file_name": image.image_id}
        self._write(f"{key}.{extension}", content)
        self._write(f"{key}.json", json.dumps(fields, ensure_ascii=False).encode())
        self._write(f"{key}.txt", image.captions[0].encode())
        self.num_images += 1
        self.num_captions += len(image.captions)

    def _write(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)  # of no user and time, so that equal sources give equal shards
        info.size = len(content)
        self.tar.addfile(info, io.BytesIO(content))

    def close(self) -> dict[str, Any]:
        """Finish the shard; return its statement for `shards.json`."""
        self.tar.close()
        return {
            "images": {self.split: self.num_images},
            "captions": self.num_captions,
            "bytes": self.path.stat().st_size,
            "sha256": file_sha256(self.path),
        }
