"""An image is read alike from a file of its own and from within a shard."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clipgraft.data.image_file import Member, content_checksums
from clipgraft.data.images import MAX_FILE_BYTES, open_image
from clipgraft.errors import DataError, MissingFileError


def encoded(color):
    content = io.BytesIO()
    Image.new("RGB", (32, 24), color).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def members(tmp_path):
    """Members of a shard with three images, found by tarfile."""
    shard = tmp_path / "00000.tar"
    with tarfile.open(shard, "w") as tar:
        for number, color in enumerate(("red", "blue", "red")):
            info = tarfile.TarInfo(f"{number}.png")
            info.size = len(encoded(color))
            tar.addfile(info, io.BytesIO(encoded(color)))
    with tarfile.open(shard) as tar:
        found = [(info.offset_data, info.size, info.name) for info in tar.getmembers()]
    return [Member(shard, *place, shard.stat().st_mtime_ns) for place in found]


def test_member_of_a_shard_opens_as_its_file_does(members, tmp_path):
    for member, color in zip(members, ("red", "blue", "red"), strict=True):
        path = tmp_path / member.name
        path.write_bytes(encoded(color))
        assert open_image(member).tobytes() == open_image(path).tobytes()
        assert pickle.loads(pickle.dumps(member)) == member
        assert content_checksums([member, path]) == [hashlib.sha256(encoded(color)).hexdigest()] * 2


def test_error_of_a_member_names_shard_and_image(members):
    beyond = Member(members[0].shard, 0, 512, "0.png")
    with pytest.raises(DataError, match=r"00000\.tar/0\.png: is .*expected a JPEG"):
        open_image(beyond)
    with pytest.raises(DataError, match=f"big.png: has .* bytes; at most {MAX_FILE_BYTES:,} are read"):
        open_image(Member(members[0].shard, 0, MAX_FILE_BYTES + 1, "big.png"))


@pytest.mark.parametrize("read", [open_image, lambda member: content_checksums([member])])
def test_shard_that_is_cut_gone_or_changed_is_named(members, read):
    shard, last = members[-1].shard, members[-1]
    content = shard.read_bytes()
    shard.write_bytes(content[: last.offset + last.size - 1])
    os.utime(shard, ns=(0, last.mtime_ns))
    with pytest.raises(DataError, match=r"00000\.tar is cut: it ends within 2\.png; copy or"):
        read(last)
    shard.write_bytes(content)
    os.utime(shard, ns=(0, last.mtime_ns + 1))
    with pytest.raises(DataError, match=r"00000\.tar has changed since this run indexed it; run it again"):
        read(last)
    shard.unlink()
    with pytest.raises(MissingFileError, match=r"00000\.tar(/2\.png)?: no such"):
        read(last)


def test_sums_are_sha256_in_the_order_of_the_files(tmp_path: Path):
    paths = [tmp_path / f"{index}.jpg" for index in range(20)]
    for index, path in enumerate(paths):
        path.write_bytes(bytes([index]) * 1000)
    expected = [hashlib.sha256(bytes([index]) * 1000).hexdigest() for index in range(20)]
    assert content_checksums(paths) == expected == content_checksums(paths)


def test_file_that_changed_since_is_read_again(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"one")
    before = content_checksums([path])
    path.write_bytes(b"other")
    assert content_checksums([path]) == [hashlib.sha256(b"other").hexdigest()] != before


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"gone\.jpg: no such image"):
        content_checksums([tmp_path / "gone.jpg"])
