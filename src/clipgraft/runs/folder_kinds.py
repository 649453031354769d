"""Kinds of folders, told by the files in them; for errors."""

import os
from itertools import islice
from pathlib import Path

SHOWN_NAMES = 3
ENVIRONMENT_NAME = "environment.json"
"""Every command that writes a run's folder writes this first."""
RUN = "a run"
KINDS = (
    ("a diffusers pipeline", ("model_index.json",)),
    ("a text encoder (a graft or a distilled one)", ("base.json",)),
    ("an exported bridge", ("bridge.safetensors",)),
    ("exported prompt embeds", ("prompt_embeds.safetensors",)),
    ("an export", ("README.md", "manifest.json", "recipe.toml")),
    ("a CLIP", ("config.json", "preprocessor_config.json")),
    ("a model", ("config.json",)),
    ("a data set in shards", ("shards.json",)),
)
"""Kinds of folders that are no runs, and the files by which they are told; the first one counts."""
RUN_KINDS = (
    *((RUN, (stage,)) for stage in ("finetune", "bridge_before", "bridge", "refine", "distill")),
    ("a run of pretrain", ("vae", "recipe.toml")),
    ("an evaluation", ("evaluation.json",)),
    ("a folder of generated images", ("images.json",)),
    ("a run of bridge or refine", ("graft",)),
    ("a run of distill", ("text_encoder",)),
    ("a run of finetune or interpolate", ("clip",)),
    *((RUN, (name,)) for name in ("recipe.toml", "metrics.json", "log.jsonl", "generate", "evaluate")),
)
"""Kinds of runs, whole ones first, also of older versions."""


def kind_of(path: Path) -> str:
    """Return what a file or folder is, such as "a CLIP"."""
    if path.is_file():
        return f"a {path.suffix} file" if path.suffix else "a file"
    for kind, names in (*KINDS, *RUN_KINDS):
        if all((path / name).exists() for name in names):
            return kind
    found = sorted(islice((each.name for each in path.iterdir()), SHOWN_NAMES))
    return f"a folder with {', '.join(found)}" if found else "an empty folder"


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, or a stage's."""
    return kind_of(path) in dict(RUN_KINDS)


def is_result(path: Path) -> bool:
    """Whether a folder is a model, an export or a run."""
    return path.is_dir() and (kind_of(path) in dict(KINDS) or (path / ENVIRONMENT_NAME).is_file())


def wrong_kind(path: Path, wanted: str, *places: str, advice: str) -> str:
    """Say in one line what a path is, and what to name.

    Args:
        path: A file or folder.
        wanted: Such as "a graft".
        *places: Files that tell a folder of that kind, from `path`; the first one there is named.
        advice: What to name if none of them is there.
    """
    found = next((path / place for place in places if (path / place).is_file()), None)
    name = os.path.normpath(found.parent) if found else advice
    return f"{path} is {kind_of(path)}, not {wanted}; name {name}"
