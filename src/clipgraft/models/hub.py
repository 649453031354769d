"""Resolve model names (path, `flatland`, hub id) to local folders or files.

Only safetensors, JSON and text are downloaded, and each file's checksum is compared each time with
`pins.json` (published models, one commit each), else with the hub's for the commit. Tokens are left to the
hub's library (HF_TOKEN or its login).
"""

import hashlib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
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
from pydantic import TypeAdapter

from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.files import file_sha256
from clipgraft.models.weights import SHA256, Needed, verify_folder
from clipgraft.section import FLATLAND, GIVEN

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parents[1] / "assets" / "flatland"
"""The embedded models: `base/` in diffusers layout, `clip/` in transformers layout, `probe.safetensors`."""
HUB_TIMEOUT_SECONDS = 5.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


class FileChecksum(NamedTuple):
    """Size and sha256 of a file."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Pin:
    """A published model at one commit."""

    revision: str
    files: Mapping[str, FileChecksum]
    """Loaded files by path; others are compared with the hub's own checksums."""
    license: str
    mirrors: tuple[str, ...] = ()
    """Hub ids with copies of the files, tried in turn if the model or commit is gone."""


PINS = TypeAdapter(dict[str, Pin]).validate_json(Path(__file__).with_name("pins.json").read_bytes())


class Download(NamedTuple):
    """A model's files to download."""

    name: str
    revision: str
    files: dict[str, int]
    """Size in bytes by path."""
    pin: Pin | None

    @property
    def num_bytes(self) -> int:
        """Bytes not yet in the cache."""
        return sum(
            size
            for file, size in self.files.items()
            if not isinstance(try_to_load_from_cache(self.name, file, revision=self.revision), str)
        )


def resolve_model(name: str | Path, *, part: str, needed: Needed, revision: str | None = None) -> Path:
    """Find a model on this machine, or download it from the hub.

    Args:
        name: Folder or file; `flatland`; or a hub id, `owner/name`.
        part: Part of flatland: "base" or "clip".
        needed: The files it is loaded from.
        revision: Commit of a hub id; None or empty = the pinned one, or main with a warning. Branches and
            abbreviated commits give a warning too.

    Returns:
        A folder, or a single file.

    Raises:
        MissingFileError: If there is no such path and the name is not a hub id.
        CheckpointError: If flatland is damaged, the hub is unreachable or has no such model or commit, or a
            checksum differs; says what to do.
    """
    if str(name) == FLATLAND:
        return embedded_models() / part
    path = Path(name).expanduser()
    if path.exists():
        return path
    found = find_model(str(name), revision, needed)
    return found if isinstance(found, Path) else fetch(found)


def find_model(name: str, revision: str | None, needed: Needed) -> Path | Download:
    """Find a model in the hub's cache, else list its downloads."""
    if name == GIVEN:
        raise UserError(
            "the CLIP of this recipe was given in Python, so the recipe does not name it; name one "
            "(--clip; in a recipe clip.name), such as the `clip/` that finetune writes with an output_dir"
        )
    if not HUB_ID.fullmatch(name):
        raise MissingFileError(f"no model at {name}; give a folder, a hub id (owner/name) or flatland")
    pin = PINS.get(name)
    revision = revision or (pin.revision if pin else None)
    is_commit = bool(revision and COMMIT.fullmatch(revision))
    if revision is None:
        logger.warning("%s without a revision is what its main branch holds today; pin a commit", name)
    elif not is_commit:
        unpinned = ", and its files are not compared with this package's own checksums" if pin else ""
        text = "%s at revision %s is what that holds today%s; name a commit, 40 hexadecimal digits"
        logger.warning(text, name, revision, unpinned)
    if pin and revision != pin.revision:
        pin = None
    cached = _cached(name, revision, needed, pin, full_where_preferred=True)
    if cached and is_commit:  # a commit cannot have changed: no need to ask
        return cached
    try:
        return _ask_hub(name, revision, needed, pin)
    except HfHubHTTPError as error:
        for mirror in pin.mirrors if pin else ():
            if download := _ask_mirror(mirror, needed, pin):
                logger.warning("the model hub refused %s; its copy %s has the same checksums", name, mirror)
                return download
        raise CheckpointError(_refused(name, revision, error)) from error
    except CheckpointError:
        raise
    except Exception as error:  # the hub's library has no class for failed connections
        cached = cached or _cached(name, revision, needed, pin)
        if cached:
            logger.warning("the model hub cannot be reached; using the copy of %s in its cache", name)
            return cached
        pinned = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"no folder {name} here, and the model hub cannot be reached ({first_line(error)}); fetch it "
            f"where there is network with `hf download {name}{pinned} --local-dir DIR` and name DIR instead"
        ) from error


def fetch(download: Download) -> Path:
    """Download files to the hub's cache and verify their checksums.

    Raises:
        CheckpointError: If a checksum differs (the file leaves the cache), the hub refuses a file, or the
            connection keeps failing; complete files are kept.
    """
    name, revision = download.name, download.revision
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(download.files),
            etag_timeout=HUB_TIMEOUT_SECONDS,
        )
    except HfHubHTTPError as error:
        raise CheckpointError(_refused(name, revision, error)) from error
    except Exception as error:  # the hub's library has no class for failed connections
        if isinstance(error, OSError) and not isinstance(error, (LocalEntryNotFoundError, ConnectionError)):
            raise  # the disk's
        raise CheckpointError(
            f"the connection to the model hub failed while {name} was fetched ({first_line(error)}); run "
            "again: what is whole is kept"
        ) from error
    _verify(name, Path(folder), list(download.files), download.pin)
    return Path(folder)


def hub_is_reachable(timeout_seconds: float) -> bool:
    """Whether the model hub answers; False too if HF_HUB_OFFLINE is set."""
    try:
        HfApi().model_info(next(iter(PINS)), timeout=timeout_seconds)
    except HfHubHTTPError:  # a refusal is an answer
        return True
    except Exception:  # the hub's library has no class for failed connections
        return False
    return True


@cache
def embedded_models() -> Path:
    """Return the folder of the embedded models, its checksums verified.

    Raises:
        CheckpointError: If a file is missing or differs; names it, its checksum, and how to restore it.
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
    # One brief request: without network the library's download retries silently for nearly a minute.
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
    """List a mirror's pinned files; None if some are missing or differ."""
    assert pin is not None
    try:
        info = HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True)
    except Exception:  # refused, or the connection failed
        return None
    held = {file.rfilename: file.lfs for file in info.siblings or [] if file.rfilename in pin.files}
    files = needed.choose(held)
    if not files or any((lfs := held[file]) and lfs["sha256"] != pin.files[file].sha256 for file in files):
        return None
    # A branch is found in the cache without network; the checksums verify its content.
    return Download(name, "main", {file: pin.files[file].num_bytes for file in files}, pin)


def _cached(
    name: str, revision: str | None, needed: Needed, pin: Pin | None, *, full_where_preferred: bool = False
) -> Path | None:
    """Return the folder of a complete earlier download, its checksums verified."""
    for repository in (name, *(pin.mirrors if pin else ())):
        asked = revision if repository == name else None
        try:
            folder = Path(snapshot_download(repository, revision=asked, local_files_only=True))
        except LocalEntryNotFoundError as error:
            path = getattr(error, "snapshot_path", None)  # a part of the repository is there
            if path is None:
                continue
            folder = Path(path)
        held = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        files = needed.choose(held, full_where_preferred=full_where_preferred)
        try:
            listed = [file.path for file in get_cached_repo_tree(repository, revision=folder.name)]
        except CachedRepoTreeNotFoundError:
            listed = []
        if files and set(needed.choose_texts(listed)) <= set(files):
            _verify(repository, folder, files, pin)
            return folder
    return None


def _verify(name: str, folder: Path, files: list[str], pin: Pin | None) -> None:
    for file in files:
        path = folder / file
        # The hub's cache names a file by its listed checksum: sha256 of large ones, git's of small ones.
        expected, whose = path.readlink().name if path.is_symlink() else "", "the hub lists"
        if pin and file in pin.files:
            expected, whose = pin.files[file].sha256, "this package pins"
        if SHA256.fullmatch(expected):
            found = file_sha256(path)
        elif COMMIT.fullmatch(expected):
            content = path.read_bytes()
            found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        else:
            continue
        if found == expected:
            continue
        if path.is_symlink():
            (path.parent / path.readlink()).unlink()
        path.unlink()
        raise CheckpointError(
            f"{file} of {name} has checksum {found}, but {whose} {expected}; it was not loaded and is out of "
            "the cache: run again to fetch it anew, and if it differs again, do not use that copy"
        )


def _refused(name: str, revision: str | None, error: HfHubHTTPError) -> str:
    shown = revision or "main"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"the model hub has no revision {shown} of {name} (any more); name another commit, a copy that "
            "has it, or a folder on this machine"
        )
    reason = "it wants a login" if isinstance(error, GatedRepoError) else first_line(error)
    return (
        f"no folder {name} here, and the model hub refused {name} at revision {shown}: {reason}; if it is "
        "private or gated, log in with `hf auth login` or set HF_TOKEN"
    )


def first_line(error: Exception) -> str:
    """Return the first line of a hub's error, or its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
