"""Options that several commands share, and the recipe that they make."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from clipgraft.config import Recipe

DataOption = Annotated[str, typer.Option("--data", help="Folder or file with captioned images.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
RecipeOption = Annotated[Path | None, typer.Option("--recipe", help="TOML file with settings.")]
SetOption = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: finetune.learning_rate=3e-5."),
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the run in the out folder.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Delete the run in the out folder first.")]
ClipOption = Annotated[str, typer.Option("--clip", help="CLIP: folder, hub id or flatland.")]
BaseOption = Annotated[
    str, typer.Option("--base", help="Base: folder, hub id, .safetensors file or flatland.")
]


def with_overrides(recipe: "Recipe", overrides: list[str]) -> "Recipe":
    """Return the recipe with `section.key=value` texts on top."""
    from clipgraft.config import apply_overrides

    return apply_overrides(recipe.model_dump(), overrides)


def recipe_from_options(path: Path | None, overrides: list[str], **names: str) -> "Recipe":
    """A stage's recipe: the file's settings, then the named options, then `--set`."""
    from clipgraft.config import Recipe, load_recipe

    return with_overrides(load_recipe(path) if path else Recipe(), options_as_overrides(overrides, **names))


def options_as_overrides(overrides: list[str], **names: str) -> list[str]:
    """Return what named options set as `section.key=value` texts, and then the given ones."""
    keys = {
        "data": "data.source",
        "clip": "clip.name",
        "base": "base.name",
        "captions": "bridge.captions",
        "track": "finetune.track",
    }
    return [*(f"{keys[name]}={json.dumps(value)}" for name, value in names.items() if value), *overrides]
