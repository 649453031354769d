"""Folders of weights that are whole or not there at all, and that are loaded whole or not at all.

A folder is written beside its place, listed with sizes and checksums in `manifest.json`, and then renamed.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from clipgraft.errors import CheckpointError
from clipgraft.models.weight_files import FULL, HALF, find_weights

MANIFEST_NAME = "manifest.json"
SHOWN_KEYS = 5
"""Weights that an error names; a wrong checkpoint lacks hundreds."""
READ_BYTES = 1 << 22
STEMS = ("diffusion_pytorch_model", "model")
"""Names of weights, without their endings, in diffusers and in transformers."""
PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def write_folder_atomically(out_dir: Path) -> Iterator[Path]:
    """Give a folder to write in, which becomes `out_dir` when the block ends without an error.

    What `out_dir` held before stays until the new content is complete on disk, and is then replaced.

    Args:
        out_dir: The folder to make; its parents are made too.

    Yields:
        An empty folder on the same file system.

    Raises:
        CheckpointError: If no space is left; `out_dir` is as it was before.

    Side effects:
        Writes `manifest.json` into the folder.
    """
    temporary = out_dir.with_name(f".{out_dir.name}.part")
    replaced = out_dir.with_name(f".{out_dir.name}.replaced")
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    if replaced.exists() and not out_dir.exists():  # an earlier process ended between the two renames
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


def verify_folder(folder: Path) -> None:
    """Compare a folder with its manifest.

    Args:
        folder: Written by `write_folder_atomically`; files that the manifest does not list are let be.

    Raises:
        CheckpointError: If there is no manifest, or a listed file is missing or differs in size or content;
            names the file and the sha256 that it should have.
    """
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST_NAME}; it was not written by clipgraft, or not whole"
        )
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{manifest} is damaged: {error}; write the folder again") from error
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(
                f"{path} is missing (sha256 {entry['sha256']} in {MANIFEST_NAME}); write the folder again"
            )
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise CheckpointError(
                f"{path} is damaged: {size} bytes; {entry['bytes']} bytes with sha256 {entry['sha256']} "
                "were written; write the folder again"
            )
        checksum = file_sha256(path)
        if checksum != entry["sha256"]:
            raise CheckpointError(
                f"{path} is damaged: sha256 {checksum}, {entry['sha256']} was written; write the folder again"
            )


def file_sha256(path: Path) -> str:
    """Checksum of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def load_strictly(model_class: Any, folder: Path, **kwargs: Any) -> Any:
    """Load a transformers or diffusers model from safetensors; every weight must be there and none left over.

    Args:
        model_class: Class with `from_pretrained`.
        folder: With `config.json` and `*.safetensors`, whole or in shards, in full precision or as `fp16`; of
            both the one is read that is nearer to the dtype asked for.
        **kwargs: Handed to `from_pretrained`.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: If the folder holds no safetensors, another model, or weights that do not fit.
    """
    refuse_pickles(folder)
    try:
        model, info = model_class.from_pretrained(
            folder,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            variant=_variant(folder, kwargs),
            **kwargs,
        )
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder} cannot be loaded as {model_class.__name__}: {reason}") from error
    # Files of older libraries hold the positions 0..76 too, which are no weight.
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith("position_ids")]
    refuse_other_weights(folder, missing=info["missing_keys"], unexpected=unexpected)
    return model.eval()


def _variant(folder: Path, kwargs: dict[str, Any]) -> str | None:
    names = [path.name for path in folder.iterdir()]
    stem = next((stem for stem in STEMS if any(name.startswith(stem) for name in names)), STEMS[-1])
    is_half = kwargs.get("dtype", kwargs.get("torch_dtype")) in (torch.float16, torch.bfloat16)
    return find_weights(names, stem, (HALF, FULL) if is_half else (FULL, HALF))[1] or None


def refuse_pickles(folder: Path) -> None:
    """Make sure that a folder's weights are safetensors: pickled ones can run code when opened.

    Raises:
        CheckpointError: If it holds pickled weights alone.
    """
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
    if any(folder.glob("*.safetensors")) or not pickles:
        return
    raise CheckpointError(
        f"{folder} holds pickled weights alone ({pickles[0]}), which can run code when opened; if you trust "
        "them, load them with the library they come from and write them again with its save_pretrained(DIR)"
    )


def refuse_other_weights(path: Path, *, missing: Any, unexpected: Any) -> None:
    """Raise CheckpointError naming the first weights that are missing or too many."""
    for what, keys in (("lacks", sorted(missing)), ("has unknown", sorted(unexpected))):
        if keys:
            shown = ", ".join(keys[:SHOWN_KEYS]) + (", ..." if len(keys) > SHOWN_KEYS else "")
            raise CheckpointError(
                f"{path} {what} {len(keys)} weights: {shown}; it is of another model: name the right one"
            )


def module_sha256(module: torch.nn.Module) -> str:
    """Checksum of a module's parameters and buffers, as `tensors_sha256`."""
    return tensors_sha256(module.state_dict())


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Checksum of named tensors: names, dtypes, shapes and values, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # Viewed as bytes, because NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _sync(path)
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = folder / MANIFEST_NAME
    manifest.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
    _sync(manifest)


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
    _sync(out_dir.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_no_space(error: BaseException) -> bool:
    """Whether the disk was full; safetensors tells the system's error number in its text alone."""
    if isinstance(error, SafetensorError):
        return any(f"os error {number})" in str(error) for number in NO_SPACE)
    return isinstance(error, OSError) and error.errno in NO_SPACE
