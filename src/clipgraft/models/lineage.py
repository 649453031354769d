"""Lineage of a graft: its training stages, their settings and figures.

It is stored in the graft's folder, as `lineage.json`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, field_serializer

from clipgraft.config import Recipe, build_recipe, load_recipe
from clipgraft.errors import CheckpointError, UserError
from clipgraft.files import read_json, read_text
from clipgraft.runs.folder import RECIPE_NAME
from clipgraft.section import GIVEN
from clipgraft.settings import ModelSettings

FILE_NAME = "lineage.json"
SECTIONS = {"seed", "device", "data", "clip", "base", "finetune", "bridge", "refine", "distill"}
"""Parts of a recipe that decide a graft."""

Figures = Mapping[str, Mapping[str, float | None]]


def _settings(values: object) -> object:
    if not isinstance(values, dict):
        return values
    try:
        return build_recipe(values)
    except UserError:  # settings of another version
        return None


class Stage(BaseModel):
    """One stage of training."""

    model_config = ConfigDict(frozen=True)

    stage: Literal["finetune", "bridge", "refine", "distill"]
    recipe: Annotated[Recipe | None, BeforeValidator(_settings)]
    """None if an earlier version wrote settings unknown to this one."""
    started_from: str = ""
    """Folder of the graft that was refined or distilled."""
    figures: Figures = {}
    """By row and column: recall, state error by token class, or noise error by timestep."""
    counts: dict[str, int] = {}
    """Training captions and images."""
    words: dict[str, int] = {}
    """New words of a distilled text encoder, with their numbers of training captions."""

    @property
    def clip_given(self) -> bool:
        """Whether the CLIP was a Python object that no recipe can name."""
        return self.recipe is not None and self.recipe.clip.name == GIVEN

    @field_serializer("recipe")
    def _own_sections(self, recipe: Recipe | None) -> dict[str, Any] | None:
        return recipe.model_dump(mode="json", include=SECTIONS) if recipe else None


class Lineage(BaseModel):
    """Stages of a graft in order; empty if unknown."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    stages: tuple[Stage, ...] = ()

    def find(self, stage: str) -> Stage | None:
        """Return the last stage with a name."""
        return next((found for found in reversed(self.stages) if found.stage == stage), None)

    @property
    def clips(self) -> tuple[ModelSettings, ...]:
        """The grafted CLIP and its ancestors that have a name, newest first."""
        makers = [stage for stage in reversed(self.stages) if stage.stage in ("finetune", "bridge")]
        return tuple(stage.recipe.clip for stage in makers if stage.recipe and not stage.clip_given)


NO_LINEAGE = Lineage()


def clip_lineage(clip: ModelSettings) -> tuple[Stage, ...]:
    """Return a CLIP's fine-tuning stages in order, from recipes beside its folder."""
    stages: list[Stage] = []
    seen: set[str] = set()
    # Only absolute paths are folders; the parent of a hub id or `flatland` would be the working directory.
    while Path(clip.name).is_absolute() and clip.name not in seen:
        seen.add(clip.name)
        run = Path(clip.name).parent
        recipe, metrics = _recipe_in(run), _metrics_in(run)
        if recipe is None:
            break
        recall = {when: numbers(metrics.get(when)) for when in ("before", "after")}
        stages.insert(0, Stage(stage="finetune", recipe=recipe, figures=recall))
        clip = recipe.clip
    return tuple(stages)


def read_lineage(graft: Path) -> Lineage:
    """Read a graft's lineage, in older versions from the recipe beside it.

    Raises:
        CheckpointError: If the file is damaged; names it.
    """
    path = graft / FILE_NAME
    if not path.is_file():
        return _older_lineage(graft.parent)
    try:
        return Lineage.model_validate_json(read_text(path, error=CheckpointError))
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is damaged: {error.errors(include_url=False)[0]['msg']}; write the graft again"
        ) from error


def _older_lineage(run: Path) -> Lineage:
    recipe, metrics = _recipe_in(run), _metrics_in(run)
    if recipe is None:
        return Lineage()
    errors = {
        name: numbers(metrics[name].get("relative_error"))
        for name in ("linear", "residual")
        if isinstance(metrics.get(name), dict)
    }
    stages = [*clip_lineage(recipe.clip)]
    stages.append(Stage(stage="bridge", recipe=recipe, figures=errors, counts=_counts(metrics, "captions")))
    if "num_train_images" in metrics:
        noise = {when: numbers(metrics.get(when)) for when in ("before", "after")}
        counts = _counts(metrics, "images")
        stages.append(Stage(stage="refine", recipe=recipe, figures=noise, counts=counts))
    return Lineage(stages=tuple(stages))


def numbers(values: object) -> dict[str, float | None]:
    """Return the entries of a mapping that are numbers or None."""
    found = values if isinstance(values, Mapping) else {}
    return {str(key): value for key, value in found.items() if isinstance(value, int | float | None)}


def _counts(metrics: Mapping[str, Any], what: str) -> dict[str, int]:
    return {
        key: value for key, value in metrics.items() if key.endswith(f"_{what}") and isinstance(value, int)
    }


def _recipe_in(folder: Path) -> Recipe | None:
    path = folder / RECIPE_NAME
    if not path.is_file():
        return None
    try:
        return load_recipe(path)
    except UserError:  # damaged, or of another version
        return None


def _metrics_in(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        return read_json(path) if path.is_file() else {}
    except UserError:
        return {}
