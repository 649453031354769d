"""Metadata of a safetensors file by Stability AI's model specification.

https://github.com/Stability-AI/ModelSpec, version 1.0.0: what a file is, for tools that list and load it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from clipgraft.files import atomic_write
from clipgraft.models.weights import write_tensors

PREFIX = "modelspec."
VERSION = "1.0.0"
HASH_KEY = f"{PREFIX}hash_sha256"
NO_HASH = "0x" + "0" * 64
"""Of the hash's length, written before the hash is known."""
CHUNK_BYTES = 1 << 24


def write_model_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors with their hash in the metadata, atomically.

    Args:
        path: The `.safetensors` file.
        tensors: By name, contiguous.
        metadata: All other keys, with their prefix.

    Raises:
        OSError: If no space is left.
    """
    with atomic_write(path, on_disk=True) as part:
        write_tensors(part, tensors, {**metadata, HASH_KEY: NO_HASH})
        _fill_in_hash(part)


def content_hash(path: Path) -> str:
    """Return the sha256 of a file's tensors, as the specification writes it.

    It excludes the header, so that the header can hold it.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"0x{digest.hexdigest()}"


def _fill_in_hash(path: Path) -> None:
    found = content_hash(path).encode()
    with path.open("r+b") as file:
        header = file.read(8 + int.from_bytes(file.read(8), "little"))
        file.seek(8 + header.index(NO_HASH.encode()))
        file.write(found)
