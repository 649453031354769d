"""From a model's name to a folder or file on this machine: a path, an embedded model, or a hub id.

The hub's library retries in silence for nearly a minute where there is no network; here it is asked once,
briefly, before anything is downloaded. Only safetensors, JSON and text are fetched, and each file's sum is
compared: with that of `pins.py` where it has one, else with the one that the hub lists for the commit. A
token comes from the environment (HF_TOKEN) or the hub's own login; nothing here reads, takes or writes one.
"""

import hashlib
import logging
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

import clipgraft
from clipgraft.errors import CheckpointError, MissingFileError
from clipgraft.files import file_sha256
from clipgraft.models.pins import PINS, Pin
from clipgraft.models.weight_files import Needed
from clipgraft.models.weights import verify_folder

logger = logging.getLogger(__name__)

ASSETS = Path(clipgraft.__file__).parent / "assets" / "flatland"
"""The embedded models: `base/` in diffusers layout, `clip/` in transformers layout, `probe.safetensors`."""
HUB_TIMEOUT_SECONDS = 5.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class Download(NamedTuple):
    """What is to be fetched of a model."""

    name: str
    revision: str
    files: dict[str, int]
    """Size in bytes by path."""
    pin: Pin | None
    """Whose sums are compared."""

    @property
    def num_bytes(self) -> int:
        """What is not in the cache yet."""
        return sum(
            size
            for file, size in self.files.items()
            if not isinstance(try_to_load_from_cache(self.name, file, revision=self.revision), str)
        )


def resolve_model(name: str | Path, *, part: str, needed: Needed, revision: str | None = None) -> Path:
    """Find a model on this machine, fetching it from the hub if need be.

    Args:
        name: Folder or file; `flatland`; or a hub id, `owner/name`.
        part: Part of flatland that is meant: "base" or "clip".
        needed: Files that it is loaded from.
        revision: Commit of a hub id; without one, this package's own pin, or main with a warning. A branch or
            a part of a commit is taken with a warning too.

    Returns:
        Path of a folder, or of a single file.

    Raises:
        FileNotFoundError: If there is no such path and the name is no hub id.
        CheckpointError: If flatland is not whole in this package, or the hub cannot be reached or has no such
            model or commit, or a file's sum is another; names what to do.
    """
    if str(name) == "flatland":
        return embedded_models() / part
    path = Path(name).expanduser()
    if path.exists():
        return path
    found = find_model(str(name), revision, needed)
    return found if isinstance(found, Path) else fetch(found)


def find_model(name: str, revision: str | None, needed: Needed) -> Path | Download:
    """Find a model of the hub in its cache, or say what is to be fetched.

    Raises:
        FileNotFoundError: If the name is no hub id.
        CheckpointError: As `resolve_model`.
    """
    if not HUB_ID.fullmatch(name):
        raise MissingFileError(f"no model at {name}; give a folder, a hub id (owner/name) or flatland")
    pin = PINS.get(name)
    revision = revision or (pin.revision if pin else None)
    is_commit = bool(revision and COMMIT.fullmatch(revision))
    if revision is None:
        logger.warning("%s without a revision is what its main branch holds today; pin a commit", name)
    elif not is_commit:
        logger.warning(
            "%s at revision %s is what that holds today%s; name a commit, 40 hexadecimal digits",
            name,
            revision,
            ", and its files are not compared with this package's own sums" if pin else "",
        )
    if pin and revision != pin.revision:
        pin = None
    cached = _cached(name, revision, needed, pin, full_where_preferred=True)
    if cached and is_commit:  # a commit cannot have changed: no need to ask
        return cached
    try:
        return _ask_hub(name, revision, needed, pin)
    except HfHubHTTPError as error:
        for mirror in pin.mirrors if pin else ():
            download = _ask_mirror(mirror, needed, pin)
            if download:
                logger.warning("the model hub refused %s; its copy %s has the same sums", name, mirror)
                return download
        raise CheckpointError(_refused(name, revision, error)) from error
    except CheckpointError:
        raise
    except Exception as error:  # the hub's library has no class of its own for a connection that fails
        cached = cached or _cached(name, revision, needed, pin)
        if cached:
            logger.warning("the model hub cannot be reached; using the copy of %s in its cache", name)
            return cached
        raise CheckpointError(_unreachable(name, revision, error)) from error


def fetch(download: Download) -> Path:
    """Fetch files and compare their sums; finished ones are kept where it is cut off.

    Returns:
        Folder in the hub's cache.

    Raises:
        CheckpointError: If a sum differs; the file is taken out of the cache. If the hub refuses a file, or
            the connection fails again and again.
    """
    try:
        folder = Path(
            snapshot_download(
                download.name,
                revision=download.revision,
                allow_patterns=list(download.files),
                etag_timeout=HUB_TIMEOUT_SECONDS,
            )
        )
    except HfHubHTTPError as error:
        raise CheckpointError(_refused(download.name, download.revision, error)) from error
    except Exception as error:  # the hub's library has no class of its own for a connection that fails
        if isinstance(error, OSError) and not isinstance(error, (LocalEntryNotFoundError, ConnectionError)):
            raise  # the disk's
        raise CheckpointError(
            f"the connection to the model hub failed while {download.name} was fetched "
            f"({_first_line(error)}); run again: what is whole is kept"
        ) from error
    _verify(download.name, folder, list(download.files), download.pin)
    return folder


def hub_is_reachable(timeout_seconds: float) -> bool:
    """Whether the model hub answers; False too where HF_HUB_OFFLINE switches it off."""
    try:
        HfApi().model_info(next(iter(PINS)), timeout=timeout_seconds)
    except HfHubHTTPError:  # a refusal is an answer
        return True
    except Exception:  # the hub's library has no class of its own for a connection that fails
        return False
    return True


@cache
def embedded_models() -> Path:
    """Return the folder of the embedded models, its files compared with their sums.

    Raises:
        CheckpointError: If a file is missing or differs; names it, its expected sum, and how to restore it.
    """
    try:
        verify_folder(ASSETS)
    except CheckpointError as error:
        raise CheckpointError(
            f"flatland, which this package brings, is not whole: {str(error).partition('; write')[0]}; "
            "restore it with `pip install --force-reinstall --no-deps clipgraft`, in a clone with "
            "`git checkout` of that file"
        ) from error
    return ASSETS


def _ask_hub(name: str, revision: str | None, needed: Needed, pin: Pin | None) -> Download:
    info = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    lacking = needed.lacking(sizes)
    if lacking:
        raise CheckpointError(
            f"{name} at revision {revision or 'main'} has no {lacking} on the hub; only safetensors are "
            "loaded, pickles can run code: name a revision that holds safetensors, or convert its weights "
            "with the library they come from and save_pretrained(DIR), and name DIR"
        )
    assert info.sha is not None
    return Download(name, info.sha, {file: sizes[file] for file in needed.choose(sizes)}, pin)


def _ask_mirror(name: str, needed: Needed, pin: Pin | None) -> Download | None:
    """What a copy of a pinned model has, where it has all that is needed with the pinned sums."""
    assert pin is not None
    try:
        info = HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True)
    except Exception:  # it refuses, or the connection fails, for which the hub's library has no class
        return None
    held = {file.rfilename: file for file in info.siblings or [] if file.rfilename in pin.files}
    files = needed.choose(held)
    sums = {file: lfs["sha256"] for file in files if (lfs := held[file].lfs)}
    if not files or any(sum_ != pin.files[file].sha256 for file, sum_ in sums.items()):
        return None
    # By branch, so that it is found in the cache without network; what it holds is told by the sums.
    return Download(name, "main", {file: pin.files[file].num_bytes for file in files}, pin)


def _cached(
    name: str, revision: str | None, needed: Needed, pin: Pin | None, *, full_where_preferred: bool = False
) -> Path | None:
    """Folder of an earlier download, where it holds all that is needed now, with the right sums."""
    for repository in (name, *(pin.mirrors if pin else ())):
        try:
            folder = Path(
                snapshot_download(
                    repository, revision=revision if repository == name else None, local_files_only=True
                )
            )
        except LocalEntryNotFoundError as error:
            path = getattr(error, "snapshot_path", None)  # a part of the repository is there
            if path is None:
                continue
            folder = Path(path)
        held = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        files = needed.choose(held, full_where_preferred=full_where_preferred)
        if files and set(needed.choose_texts(_listed(repository, folder.name))) <= set(files):
            _verify(repository, folder, files, pin)
            return folder
    return None


def _listed(name: str, commit: str) -> list[str]:
    """Files that the hub listed for a commit, as the cache remembers them; none where it does not."""
    try:
        return [file.path for file in get_cached_repo_tree(name, revision=commit)]
    except CachedRepoTreeNotFoundError:
        return []


def _verify(name: str, folder: Path, files: list[str], pin: Pin | None) -> None:
    for file in files:
        path = folder / file
        expected, whose = _listed_sum(path), "the hub lists"
        if pin and file in pin.files:
            expected, whose = pin.files[file].sha256, "this package pins"
        if not expected:
            continue
        found = _git_sum(path) if COMMIT.fullmatch(expected) else file_sha256(path)
        if found == expected:
            continue
        if path.is_symlink():
            (path.parent / path.readlink()).unlink()
        path.unlink()
        raise CheckpointError(
            f"{file} of {name} has sum {found}, but {whose} {expected}; it was not loaded and is out of the "
            "cache: run again to fetch it anew, and if it differs again, do not use that copy"
        )


def _listed_sum(path: Path) -> str:
    """Sum that the hub listed, by which its cache names a file: sha256 of large ones, git's of small ones."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if COMMIT.fullmatch(name) or SHA256.fullmatch(name) else ""


def _git_sum(path: Path) -> str:
    """Sum of a file as git takes it."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _refused(name: str, revision: str | None, error: HfHubHTTPError) -> str:
    shown = revision or "main"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"the model hub has no revision {shown} of {name} (any more); name another commit, a copy that "
            "has it, or a folder on this machine"
        )
    reason = "it wants a login" if isinstance(error, GatedRepoError) else _first_line(error)
    return (
        f"no folder {name} here, and the model hub refused {name} at revision {shown}: {reason}; if it is "
        "private or gated, log in with `hf auth login` or set HF_TOKEN"
    )


def _unreachable(name: str, revision: str | None, error: Exception) -> str:
    pin = f" --revision {revision}" if revision else ""
    return (
        f"no folder {name} here, and the model hub cannot be reached ({_first_line(error)}); fetch it where "
        f"there is network with `hf download {name}{pin} --local-dir DIR` and name DIR instead"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
