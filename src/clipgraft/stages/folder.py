"""A stage's folder: the resolved recipe and the environment beside every result."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipgraft.config import Recipe, load_recipe, to_toml
from clipgraft.errors import CheckpointError
from clipgraft.runtime import (
    RECIPE_NAME,
    choose_device,
    describe_environment,
    quiet_libraries,
    run_folder,
    write_json,
)


@contextmanager
def stage_folder(path: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Hold a run's folder while a stage works in it, with recipe and environment written first.

    Raises:
        ValueError: If the folder is another run's, or holds what is not a run.
        CheckpointError: If a run is to go on with another recipe than it began with.
    """
    quiet_libraries()
    device = choose_device(recipe.device)
    with run_folder(path, resume=resume, overwrite=overwrite) as folder:
        written = folder / RECIPE_NAME
        if written.is_file() and load_recipe(written) != recipe:
            raise CheckpointError(
                f"{path} was begun with other settings; go on with its own {RECIPE_NAME}, or add --overwrite"
            )
        written.write_text(to_toml(recipe), encoding="utf-8")
        write_json(folder / "environment.json", describe_environment(device))
        yield folder


def fingerprint(*parts: object) -> str:
    """Name of data and settings together: the sha256 (hex) of their JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
