"""Options that several commands share, and the recipe that they make."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

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


def recipe_from_options(
    path: Path | None, overrides: list[str], given: Mapping[str, Any] = MappingProxyType({})
) -> "Recipe":
    """Make a stage's recipe: the file's settings, then named options, then `--set`.

    Args:
        path: The recipe file, if any.
        overrides: Texts of the form `section.key=value`.
        given: What named options set, by `section.key`; empty where an option was left out.
    """
    from clipgraft.config import Recipe, load_recipe

    return with_overrides(load_recipe(path) if path else Recipe(), overrides, given)


def with_overrides(
    recipe: "Recipe", overrides: list[str], given: Mapping[str, Any] = MappingProxyType({})
) -> "Recipe":
    """Return a recipe with named options and then `--set` on top; see `recipe_from_options`."""
    from clipgraft.config import apply_overrides

    return apply_overrides(
        recipe.model_dump(), overrides, {key: value for key, value in given.items() if value}
    )
