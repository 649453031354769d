"""From a model's name to a folder or file on this machine: a path, an embedded model, or a hub id.

The hub's library retries in silence for nearly a minute where there is no network; here it is asked once,
briefly, before anything is downloaded. Only safetensors, JSON and text are fetched.
"""

import fnmatch
import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

import clipgraft
from clipgraft.errors import CheckpointError
from clipgraft.models.checkpoint import verify_folder

logger = logging.getLogger(__name__)

ASSETS = Path(clipgraft.__file__).parent / "assets" / "flatland"
"""The embedded models: `base/` in diffusers layout, `clip/` in transformers layout, `probe.safetensors`."""
PINNED_REVISIONS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    # Its main branch holds pickled weights alone; this commit holds the same ones as safetensors.
    "openai/clip-vit-base-patch32": "c237dc49a33fc61debc9276459120b7eac67e7ef",
}
HUB_TIMEOUT_SECONDS = 5.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")


def resolve_model(
    name: str | Path, *, part: str, allow_patterns: Sequence[str], revision: str | None = None
) -> Path:
    """Find a model on this machine, fetching it from the hub if need be.

    Args:
        name: Folder or file; `flatland`; or a hub id, `owner/name`.
        part: Part of flatland that is meant: "base" or "clip".
        allow_patterns: Files that are needed, relative to the model's root; those of weights must be there.
        revision: Commit of a hub id; without one, this package's own pin, or main with a warning.

    Returns:
        Path of a folder, or of a single file.

    Raises:
        FileNotFoundError: If there is no such path and the name is no hub id.
        CheckpointError: If flatland is not whole in this package, or the hub cannot be reached or has no such
            model; names what to fetch beforehand, and how.
    """
    if str(name) == "flatland":
        return embedded_models() / part
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not HUB_ID.fullmatch(str(name)):
        raise FileNotFoundError(f"no model at {name}; give a folder, a hub id (owner/name) or flatland")
    revision = revision or PINNED_REVISIONS.get(str(name))
    if revision is None:
        logger.warning("%s without a revision is what its main branch holds today; pin a commit", name)
    return _fetch(str(name), revision, allow_patterns)


def hub_is_reachable(timeout_seconds: float) -> bool:
    """Whether the model hub answers; False too where HF_HUB_OFFLINE switches it off."""
    try:
        HfApi().model_info(next(iter(PINNED_REVISIONS)), timeout=timeout_seconds)
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


def _fetch(name: str, revision: str | None, files: Sequence[str]) -> Path:
    cached = _cached(name, revision, files)
    if cached and revision and COMMIT.fullmatch(revision):  # a commit cannot have changed: no need to ask
        return cached
    try:
        held = HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS).siblings or []
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"no folder {name} here, and the model hub refused {name} at revision {revision or 'main'}: "
            f"{_first_line(error)}"
        ) from error
    except Exception as error:  # the hub's library has no class of its own for a connection that fails
        if cached:
            logger.warning("the model hub cannot be reached; using the copy of %s in its cache", name)
            return cached
        raise CheckpointError(_unreachable(name, revision, error)) from error
    lacking = _lacking([file.rfilename for file in held], files)
    if lacking:
        raise CheckpointError(
            f"{name} at revision {revision or 'main'} has no {lacking} on the hub; only safetensors are "
            "loaded: name a revision that holds them"
        )
    return Path(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(files),
            etag_timeout=HUB_TIMEOUT_SECONDS,
        )
    )


def _cached(name: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """Folder of an earlier download, where it holds all that is needed now."""
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    held = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return None if _lacking(held, files) else folder


def _lacking(held: Sequence[str], files: Sequence[str]) -> str:
    """First pattern of weights that no held file matches; JSON and text files come in several ways."""
    weights = [pattern for pattern in files if pattern.endswith(".safetensors")]
    return next((pattern for pattern in weights if not fnmatch.filter(held, pattern)), "")


def _unreachable(name: str, revision: str | None, error: Exception) -> str:
    pin = f" --revision {revision}" if revision else ""
    return (
        f"no folder {name} here, and the model hub cannot be reached ({_first_line(error)}); fetch it where "
        f"there is network with `hf download {name}{pin} --local-dir DIR` and name DIR instead"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
