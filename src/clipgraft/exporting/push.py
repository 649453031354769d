"""Upload of an export to the model hub, private unless told otherwise.

All files are one commit, so the repository has the whole export or none of it. The hub keeps contents that
arrived: an upload that was cut off goes on where it was when it is repeated.
"""

import os
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open

from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.exporting.export import card_path
from clipgraft.files import inside
from clipgraft.models.hub import HUB_ID, first_line
from clipgraft.models.modelspec import HASH_KEY, content_hash
from clipgraft.models.weights import verify_folder
from clipgraft.runs.folder_kinds import wrong_kind

CARD_NAME = "README.md"
TOKEN_VARIABLE = "HF_TOKEN"


def push(exported: str | Path, name: str, *, public: bool = False) -> str:
    """Upload what `export` wrote: a folder, or a model file and its card.

    Args:
        exported: A folder, or a `.safetensors` file with its card beside it.
        name: Repository on the hub, `owner/name`; made if it is missing.
        public: Whether everyone may see the repository. One that exists must be as visible as this says.

    Returns:
        The repository's address.

    Raises:
        MissingFileError: If there is no such folder or file.
        UserError: If the folder is no export, the name is not OWNER/NAME, HF_TOKEN holds no token, or the
            repository has another visibility.
        CheckpointError: If a file was changed since, or the hub refuses or cannot be reached.
    """
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{name!r} is no repository; name it owner/name")
    files = _files_of(Path(exported).expanduser())
    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise UserError(f"no token in {TOKEN_VARIABLE}; set it to one that may write to {name}")
    api = HfApi(token=token)
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        if bool(api.model_info(name).private) == public:
            visible = "private" if public else "public"
            remedy = "leave out --public" if public else "add --public to push to it all the same"
            raise UserError(f"{name} exists and is {visible}; {remedy}, or name another")
        api.create_commit(
            name,
            [CommitOperationAdd(place, path) for place, path in files.items()],
            commit_message="Upload an export of clipgraft",
        )
    except UserError:
        raise
    except HfHubHTTPError as error:
        raise CheckpointError(
            f"the model hub refused {name}: {first_line(error)}; does the token in {TOKEN_VARIABLE} allow "
            "writing to it?"
        ) from error
    except Exception as error:  # the hub's library has no class for failed connections
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise  # the disk's
        raise CheckpointError(
            f"the connection to the model hub failed while {name} was uploaded ({first_line(error)}); run "
            "again: what has arrived is kept"
        ) from error
    return str(address)


def _files_of(exported: Path) -> dict[str, Path]:
    """Return the files of an export by their places in a repository.

    Raises:
        MissingFileError: If there is nothing.
        UserError: If it is no export.
        CheckpointError: If a file is missing or was changed.
    """
    if not exported.exists():
        raise MissingFileError(f"nothing at {exported}; name what `clipgraft export` wrote")
    if exported.is_dir():
        if not (exported / CARD_NAME).is_file():
            raise UserError(wrong_kind(exported, "an export", advice="what `clipgraft export` wrote"))
        listed = sorted(verify_folder(exported))
        if CARD_NAME not in listed:
            raise UserError(f"{exported} is no export: its manifest lists no {CARD_NAME}")
        return {place: inside(exported / place, exported, error=CheckpointError) for place in listed}
    card = card_path(exported)
    if not card.is_file() or not (expected := _recorded_hash(exported)):
        raise UserError(
            f"{exported} is no export: it has no card or no hash; name what `clipgraft export` wrote"
        )
    if content_hash(exported) != expected:
        raise CheckpointError(f"{exported} is damaged: its tensors have another hash than its header says")
    return {exported.name: exported, CARD_NAME: card}


def _recorded_hash(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(HASH_KEY, "")
    except SafetensorError:
        return ""
