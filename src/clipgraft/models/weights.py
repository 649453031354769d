"""Weight folders: names, atomic writes, verification against `manifest.json`.

Names of diffusers and transformers:

    model.safetensors        model.safetensors.index.json with model-00001-of-00002.safetensors
    model.fp16.safetensors   model.safetensors.index.fp16.json with model.fp16-00001-of-00002.safetensors
"""

import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from clipgraft.errors import NO_SPACE_NUMBERS, CheckpointError, is_no_space
from clipgraft.files import atomic_write, file_sha256, read_json, sync

MANIFEST_NAME = "manifest.json"
DECIDING_SUFFIXES = (".json", ".txt", ".safetensors", ".bin", ".ckpt", ".pt", ".pth")
"""Files that libraries read beside a model: configurations, vocabularies, adapters, weights."""
SHA256 = re.compile(r"[0-9a-f]{64}")
FULL, HALF = "", "fp16"
"""Variants of weights, by diffusers' and transformers' names."""
SHARD = re.compile(r"-\d+-of-(\d+)")


class Weights(NamedTuple):
    """Weights of one model."""

    stem: str
    """Path without endings: `unet/diffusion_pytorch_model`."""
    prefer_half: bool = False
    is_optional: bool = False


@dataclass(frozen=True)
class Needed:
    """Files to load a model from."""

    texts: tuple[str, ...]
    """Patterns of configurations and vocabularies; none is required."""
    weights: tuple[Weights, ...]

    def choose(self, held: Collection[str], *, full_where_preferred: bool = False) -> list[str]:
        """Return the needed files among those held; empty if weights are missing.

        Args:
            held: Paths relative to the model's root.
            full_where_preferred: Refuse half precision if full is preferred.
        """
        chosen = self.choose_texts(held)
        for weights in self.weights:
            variants: tuple[str, ...] = (HALF, FULL) if weights.prefer_half else (FULL, HALF)
            if full_where_preferred and not weights.prefer_half:
                variants = (FULL,)
            files = find_weights(held, weights.stem, variants)
            if not files and not weights.is_optional:
                return []
            chosen += files
        return chosen

    def choose_texts(self, held: Collection[str]) -> list[str]:
        """Return the configurations and vocabularies among the files held."""
        return sorted({name for pattern in self.texts for name in fnmatch.filter(held, pattern)})

    def lacking(self, held: Collection[str]) -> str:
        """Return the first missing weights' name; empty if complete."""
        stems = (weights.stem for weights in self.weights if not weights.is_optional)
        missing = (stem for stem in stems if not find_weights(held, stem, (FULL, HALF)))
        return next((f"{stem}.safetensors" for stem in missing), "")


def find_weights(held: Collection[str], stem: str, variants: Sequence[str]) -> list[str]:
    """Return the first complete variant's weight files, an index first, if any."""
    for variant in variants:
        dotted = f".{variant}" if variant else ""
        whole = f"{stem}{dotted}.safetensors"
        if whole in held:
            return [whole]
        index = f"{stem}.safetensors.index{dotted}.json"
        shards = sorted(
            {
                name
                for pattern in (f"{stem}{dotted}-*-of-*.safetensors", f"{stem}-*-of-*{dotted}.safetensors")
                for name in fnmatch.filter(held, pattern)
                if variant or f".{HALF}" not in name
            }
        )
        number = SHARD.search(shards[0]) if shards else None
        if index in held and number and len(shards) == int(number[1]):
            return [index, *shards]
    return []


@contextmanager
def write_folder_atomically(out_dir: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `out_dir` if the block succeeds.

    Unlike `files.new_folder` it takes the place of what is there, and gets a manifest of its files' sums.

    Raises:
        CheckpointError: If no space is left; `out_dir` stays unchanged.
    """
    temporary = out_dir.with_name(f".{out_dir.name}.part")
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    if replaced.exists() and not out_dir.exists():  # an earlier process ended between two renames
        replaced.rename(out_dir)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        _write_manifest(temporary)
        _replace(out_dir, temporary, replaced)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if _is_no_space(error):
            free_mb = shutil.disk_usage(out_dir.parent).free / 1e6
            raise CheckpointError(
                f"no space left to write {out_dir} ({free_mb:.0f} MB free); free some and run again; "
                "what was there before is untouched"
            ) from error
        raise


def verify_folder(folder: Path) -> set[str]:
    """Verify a folder's listed files by its manifest; return their names.

    Raises:
        CheckpointError: If the manifest is missing or damaged, or a listed file is missing or differs; names
            the file and its expected sha256.
    """
    listed = _read_manifest(folder)
    for name, (size, checksum) in listed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing (sha256 {checksum} in {MANIFEST_NAME}); write the folder again"
            )
        found_size = path.stat().st_size
        if found_size != size:
            raise CheckpointError(
                f"{path} is damaged: {found_size} bytes; {size} bytes with sha256 {checksum} "
                "were written; write the folder again"
            )
        found = file_sha256(path)
        if found != checksum:
            raise CheckpointError(
                f"{path} is damaged: sha256 {found}, {checksum} was written; write the folder again"
            )
    return set(listed)


def verify_model(folder: Path) -> None:
    """Verify a model's folder, whose manifest must list every deciding file.

    Raises:
        CheckpointError: As `verify_folder`; or if a configuration, vocabulary or weight file is not listed.
    """
    listed = verify_folder(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in DECIDING_SUFFIXES and path.name not in {*listed, MANIFEST_NAME}:
            raise CheckpointError(
                f"{path} is not listed in {MANIFEST_NAME}, so it is none of this model's files; take it away"
            )
    if not any(name.endswith(".safetensors") for name in listed):
        raise CheckpointError(f"{folder / MANIFEST_NAME} lists no weights; write the folder again")


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and sha256 of each file listed."""
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST_NAME}; it was not written by clipgraft, or not whole"
        )
    files = read_json(manifest, error=CheckpointError).get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{manifest} is damaged: it has no list of files; write the folder again")
    listed = {}
    for name, entry in files.items():
        entry = entry if isinstance(entry, dict) else {}
        size, checksum = entry.get("bytes"), str(entry.get("sha256"))
        is_inside = bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts
        if type(size) is not int or not SHA256.fullmatch(checksum) or not is_inside:
            raise CheckpointError(
                f"{manifest} is damaged: its entry {name!r} is no file of the folder with its bytes and "
                "sha256; write the folder again"
            )
        listed[name] = (size, checksum)
    return listed


def module_sha256(module: torch.nn.Module) -> str:
    """Return `tensors_sha256` of a module's parameters and buffers."""
    return tensors_sha256(module.state_dict())


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 (hex) of tensors: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Viewed as bytes, because NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors as safetensors, atomically, and flush them to disk.

    Raises:
        OSError: If no space is left.
    """
    try:
        with atomic_write(path, on_disk=True) as temporary:
            save_file(dict(tensors), temporary, metadata=metadata)
    except SafetensorError as error:  # it holds the errno only in its text
        number = re.search(r"os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    sync(manifest)


def _replace(out_dir: Path, temporary: Path, replaced: Path) -> None:
    shutil.rmtree(replaced, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(replaced)
    try:
        temporary.rename(out_dir)
    except OSError:
        if replaced.exists():
            replaced.rename(out_dir)
        raise
    sync(out_dir.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _is_no_space(error: BaseException) -> bool:
    if isinstance(error, SafetensorError):
        return any(f"os error {number})" in str(error) for number in NO_SPACE_NUMBERS)
    return is_no_space(error)
