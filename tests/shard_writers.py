"""Shards as other tools write them: webdataset's own writer, and tars with any members."""

import io
import json
import tarfile
from functools import cache
from pathlib import Path

import webdataset
from PIL import Image


@cache
def jpeg(number: int) -> bytes:
    """A small JPEG, another for each number."""
    content = io.BytesIO()
    Image.new("RGB", (20, 16), (number % 256, number // 256, 90)).save(content, "JPEG")
    return content.getvalue()


def write_shards(
    folder: Path, num_images: int, per_shard: int, pattern: str = "%05d.tar", **more: object
) -> Path:
    """Write shards as img2dataset does, with webdataset's writer; `more` are fields of each JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.ShardWriter(str(folder / pattern), maxcount=per_shard, verbose=0) as writer:
        for number in range(num_images):
            caption = f"a photo of {number}"
            fields = {"caption": caption, "url": "http://x.org", "key": f"{number:09d}", "status": "success"}
            writer.write(
                {
                    "__key__": f"{number:09d}",
                    "jpg": jpeg(number),
                    "txt": caption,
                    "json": fields | more,
                }
            )
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes | str | dict]]) -> Path:
    """Write a tar of files with these names and contents, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            content = json.dumps(content) if isinstance(content, dict) else content
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
