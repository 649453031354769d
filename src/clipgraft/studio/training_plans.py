"""Trainings as asked for: checked, and turned into a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from clipgraft.config import PRESETS, Recipe, apply_overrides
from clipgraft.distilling.distill import DEFAULT_EPOCHS
from clipgraft.errors import UserError
from clipgraft.runs.run import GRAFT_NAMES
from clipgraft.section import FROM_LIST, Like
from clipgraft.studio.catalog import Catalog, UnknownModelError
from clipgraft.studio.schemas import Name, Request, Text

RUN_NAME = Like(
    "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
    "1 to 64 letters without accents, digits, dots, dashes and underscores, first a letter or a digit",
)
"""A name of a run that every file system takes, without path parts."""
DataName = Annotated[str, Field(max_length=255)]
"""Of a data set; "" = the studio's data folder itself."""
Kind = Literal["finetune", "bridge", "distill"]
SHOWN_SETTINGS = ("num_epochs", "learning_rate", "batch_size")
"""Settings that a training names; all others are its recipe's."""


class TrainingRequest(Request):
    """A training to start; None = as the recipe has it."""

    name: Annotated[str, RUN_NAME, Field(examples=["dogs"])]
    """Of the new run."""
    kind: Kind
    data: DataName = ""
    recipe: Name = ""
    """A named recipe, or a run whose recipe is taken; empty: the defaults."""
    clip: Name = ""
    """To fine-tune or to bridge, of `clips`; empty: the recipe's."""
    graft: Name = ""
    """To distill, of `grafts`."""
    num_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    on_damaged: Literal["stop", "skip"] = "stop"
    allow_few_captions: bool = False
    """To bridge: accept fewer than 100."""
    new_words: Annotated[tuple[Name, ...], Field(max_length=1000), FROM_LIST] = ()
    """To distill; none = found by themselves."""
    preview_graft: Name = ""
    """Of `grafts`; its bridge and base draw samples of the CLIP in training."""
    preview_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Between two samples."""
    prompts: Annotated[tuple[Text, ...], Field(max_length=4), FROM_LIST] = ()
    """Of the samples; none = the recipe's."""


class CheckRequest(Request):
    """A data set to check."""

    data: DataName = ""


@dataclass(frozen=True)
class TrainingPlan:
    """A recipe, and the command's arguments but for recipe and output."""

    recipe: Recipe
    options: tuple[str, ...] = ()


def plan_training(request: TrainingRequest, catalog: Catalog, data: Path, device: str) -> TrainingPlan:
    """Settle what a training does.

    Args:
        data: Folder of the data set.

    Raises:
        UserError: If a value is not allowed, or a name of a recipe, a CLIP or a graft is not known.
    """
    kind = request.kind
    given: dict[str, Any] = {f"{kind}.{name}": getattr(request, name) for name in SHOWN_SETTINGS}
    given |= {"data.source": str(data), "data.sources": [], "data.on_damaged": request.on_damaged}
    given |= {"device": device}
    options: tuple[str, ...] = ()
    if request.clip and kind != "distill":
        clips = catalog.clips()
        if request.clip not in clips:
            raise UnknownModelError(request.clip, clips)
        clip = clips[request.clip]
        given |= {"clip.name": clip.name, "clip.revision": clip.revision}
    if kind == "distill":
        if not request.graft:
            raise UserError("graft: name the graft to distill")
        options = ("--graft", str(_graft(request.graft, catalog)))
        given |= {"distill.new_words": list(request.new_words) or "auto"}
    if kind == "bridge":
        given |= {"bridge.allow_few_captions": request.allow_few_captions}
    if kind == "finetune":
        given |= _previews(request, catalog)
    else:
        given[f"{kind}.captions"] = ""  # those of the data set
    recipe = apply_overrides(
        start_recipe(request.recipe, catalog), {k: v for k, v in given.items() if v is not None}
    )
    if kind == "distill" and recipe.distill.num_epochs == 0:
        recipe = apply_overrides(recipe, {"distill.num_epochs": DEFAULT_EPOCHS})
    return TrainingPlan(recipe, options)


def start_recipe(name: str, catalog: Catalog) -> Recipe:
    """Return the defaults, a named recipe, or a run's."""
    if not name:
        return Recipe()
    if name in PRESETS:
        return PRESETS[name]()
    recipes = run_recipes(catalog)
    if name not in recipes:
        raise UserError(f"recipe: there is no {name!r}; known are {', '.join((*PRESETS, *recipes))}")
    return recipes[name]


def run_recipes(catalog: Catalog) -> dict[str, Recipe]:
    """Return recipes of runs by the run's name."""
    return catalog.read(lambda _, recipe: recipe)[0]


def graft_names(catalog: Catalog) -> list[str]:
    """Return models that are grafts, not distilled text encoders."""
    return [
        name
        for name, (group, variant) in catalog.models().items()
        if (folder := group.encoders[variant]) and folder.name == GRAFT_NAMES[0]
    ]


def describe_choices(catalog: Catalog) -> dict[str, Any]:
    """Return recipes with the settings that a training names, CLIPs and grafts."""
    recipes = {"": Recipe()} | {name: make() for name, make in PRESETS.items()} | run_recipes(catalog)
    return {
        "recipes": [{"name": name, **_described(recipe)} for name, recipe in recipes.items()],
        "clips": list(catalog.clips()),
        "grafts": graft_names(catalog),
    }


def _described(recipe: Recipe) -> dict[str, Any]:
    shown: dict[str, Any] = {
        kind: getattr(recipe, kind).model_dump(include=set(SHOWN_SETTINGS))
        for kind in ("finetune", "bridge", "distill")
    }
    shown["distill"]["num_epochs"] = recipe.distill.num_epochs or DEFAULT_EPOCHS
    # Of a model on this machine its last part alone.
    names = {part: Path(getattr(recipe, part).name) for part in ("clip", "base")}
    return shown | {part: name.name if name.is_absolute() else str(name) for part, name in names.items()}


def _previews(request: TrainingRequest, catalog: Catalog) -> dict[str, Any]:
    if not request.preview_graft:
        return {"finetune.preview_steps": 0, "finetune.preview_graft": ""}
    return {
        "finetune.preview_steps": request.preview_steps,
        "finetune.preview_graft": str(_graft(request.preview_graft, catalog)),
        "generate.prompts": list(request.prompts) or None,
    }


def _graft(name: str, catalog: Catalog) -> Path:
    names = graft_names(catalog)
    if name not in names:
        raise UserError(f"there is no graft {name!r}; known are {', '.join(names) or 'none yet'}")
    group, variant = catalog.model(name)
    folder = group.encoders[variant]
    assert folder is not None
    return folder.absolute()
