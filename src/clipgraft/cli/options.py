"""Options that several commands share, and the recipe that they make."""

from collections.abc import Mapping, Sequence
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
ResumeOption = Annotated[bool, typer.Option("--resume", help="Continue the run in the out folder.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the out folder.")]
ClipOption = Annotated[str, typer.Option("--clip", help="CLIP: folder, hub id or flatland.")]
BaseOption = Annotated[
    str, typer.Option("--base", help="Base: folder, hub id, .safetensors file or flatland.")
]


def recipe_from_options(path: Path | None, set_: Sequence[str], given: Mapping[str, Any]) -> "Recipe":
    """Return a stage's recipe: the file's settings, then named options, then `--set`.

    Args:
        path: The recipe file, if any.
        set_: Texts of the form `section.key=value`.
        given: Named options by `section.key`; None, empty or false where one was left out.
    """
    from clipgraft.config import Recipe, load_recipe

    return with_options(load_recipe(path) if path else Recipe(), set_, given)


def with_options(
    recipe: "Recipe", set_: Sequence[str], given: Mapping[str, Any] = MappingProxyType({})
) -> "Recipe":
    """Return a recipe with named options, then `--set`, on top; see `recipe_from_options`."""
    from clipgraft.config import apply_overrides, parse_overrides

    named = {key: value for key, value in given.items() if value}
    return apply_overrides(recipe, named | parse_overrides(set_))
