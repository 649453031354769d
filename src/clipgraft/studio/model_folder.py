"""LoRAs, ControlNets, IP-Adapters and embeddings of the server's own folder, by name.

A client sends names; which file a name stands for is decided here alone, so no path comes from outside. Links
are followed: the folder is its owner's, and large files are often linked.
"""

import difflib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from clipgraft.errors import MissingFileError, UserError
from clipgraft.files import LONE_SURROGATE
from clipgraft.generation.embedding_files import read_embedding
from clipgraft.generation.request_adapters import safetensors_below
from clipgraft.generation.request_files import file_state
from clipgraft.models.configs import ControlNetConfig, read_config
from clipgraft.models.ip_adapter import ENCODER_NAME, FIRST_KEY
from clipgraft.models.loading import opened_weights

Kind = Literal["loras", "controls", "ip_adapters", "embeddings"]
FOLDERS: dict[Kind, tuple[str, ...]] = {
    "loras": ("loras", "lora"),
    "controls": ("controlnets", "controlnet"),
    "ip_adapters": ("ip_adapters", "ipadapter"),
    "embeddings": ("embeddings",),
}
"""Names of the subfolders in any case: ours, then ComfyUI's and A1111's."""
TITLES: dict[Kind, str] = {
    "loras": "LoRA",
    "controls": "ControlNet",
    "ip_adapters": "IP-Adapter",
    "embeddings": "embedding",
}
SUFFIX = ".safetensors"
MAX_NAMES = 2000
"""Models of a kind that are listed."""
MAX_NEAR = 3
READS_STATES = {
    "loras": re.compile(r"attn2[._]to_[kv][._](processor\.)?lora([._]down|_A|_linear_layer\.down)(\.|_)"),
    "ip_adapters": re.compile(re.escape(FIRST_KEY)),
}
"""Weights (R, width) that take the states of a text."""


class ModelFolder:
    """A folder with a subfolder for each kind of model.

    Args:
        root: None = there are no such models.
    """

    def __init__(self, root: Path | None):
        if root is not None and not root.is_dir():
            raise MissingFileError(f"--models {root}: no such folder")
        self.root = root and root.resolve()

    def folder(self, kind: Kind) -> Path:
        """Return the subfolder of a kind.

        Raises:
            UserError: If the studio has none; says how it gets one.
        """
        subfolders = sorted(self.root.iterdir()) if self.root and self.root.is_dir() else []
        for name in FOLDERS[kind]:
            for path in subfolders:
                if path.name.lower() == name and path.is_dir():
                    return path
        raise UserError(
            f"this studio has no {TITLES[kind]}s; start it with --models and a folder that has "
            f"{FOLDERS[kind][0]}/"
        )

    def names(self, kind: Kind) -> list[str]:
        """Return the names of a kind's models, in order."""
        try:
            return list(self._paths(kind))[:MAX_NAMES]
        except UserError:
            return []

    def listed(self) -> dict[Kind, list[dict[str, Any]]]:
        """Describe all models by kind: name, width, words of an embedding.

        The width is that of the text states that a model takes, as the base's U-Net does (768 for Stable
        Diffusion 1); None if the file does not tell. Of an embedding it is the text encoder's.
        """
        return {kind: [self._described(kind, name) for name in self.names(kind)] for kind in FOLDERS}

    def _described(self, kind: Kind, name: str) -> dict[str, Any]:
        path = self.path(kind, name)
        try:
            described = _read(kind, path, *file_state(path))
        except (UserError, OSError):
            described = {"width": None}
        return {"name": name, **described}

    def path(self, kind: Kind, name: str) -> Path:
        """Return a model's file, or a ControlNet's folder.

        Raises:
            UserError: If the studio has none of this kind.
            MissingFileError: If there is no model of that name; says which names are near.
        """
        paths = self._paths(kind)
        if name not in paths:
            near = difflib.get_close_matches(name, paths, n=MAX_NEAR, cutoff=0.4)
            hint = f"; there are e.g. {', '.join(near)}" if near else ""
            raise MissingFileError(f"this studio has no {TITLES[kind]} {name!r}{hint}")
        return paths[name]

    def name_of(self, kind: Kind, path: str) -> str:
        """Return the name of a path from `path`."""
        return _name(Path(path), self.folder(kind))

    def _paths(self, kind: Kind) -> dict[str, Path]:
        folder = self.folder(kind)
        files = folder.rglob("config.json") if kind == "controls" else safetensors_below(folder)
        found = sorted(path for path in files if ENCODER_NAME not in path.parts)
        if kind == "controls":
            found = [path.parent for path in found if path.parent != folder]
        named = {_name(path, folder): path for path in found}
        return {name: path for name, path in named.items() if not LONE_SURROGATE.search(name)}


@lru_cache(4 * MAX_NAMES)
def _read(kind: Kind, path: Path, *_state: int) -> dict[str, Any]:
    """Read what tells whether a model fits; headers alone, but for embeddings."""
    if kind == "embeddings":
        words = read_embedding(path)
        return {"width": next(iter(words.values())).shape[-1], "words": list(words)}
    if kind == "controls":
        return {"width": read_config(path / "config.json", ControlNetConfig).get("cross_attention_dim")}
    with opened_weights(path) as file:
        key = next((key for key in list(file.keys()) if READS_STATES[kind].search(key)), None)
        return {"width": file.get_slice(key).get_shape()[-1] if key else None}


def _name(path: Path, folder: Path) -> str:
    relative = path.relative_to(folder).as_posix()
    return relative[: -len(SUFFIX)] if relative.lower().endswith(SUFFIX) else relative
