"""Recipes: the settings of every stage, in and out of TOML, one section each; this module imports no torch.

A recipe is a whole run in one TOML file. Precedence: field default < recipe file < `--set section.key=value`.
"""

import difflib
import json
import logging
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from clipgraft.errors import MissingFileError, UserError
from clipgraft.files import LONE_SURROGATE, read_toml
from clipgraft.settings import (
    MODEL,
    PATH,
    BridgeSettings,
    DataSettings,
    EvaluateSettings,
    FinetuneSettings,
    GenerateSettings,
    ModelSettings,
    PretrainSettings,
    RefineSettings,
    Section,
)

HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")
TRAINED = ("finetune", "bridge", "refine", *(f"pretrain.{part}" for part in ("vae", "unet", "clip", "probe")))
"""Sections with the settings of `TrainSettings`."""
OLD_NAMES: dict[str, str] = {
    **{f"{section}.keep_checkpoints": f"{section}.save_total_limit" for section in TRAINED},
    **{f"{section}.track": f"{section}.report_to" for section in TRAINED},
    "ladder": "",
    "finetune.samples_every": "finetune.preview_steps",
    "finetune.samples_graft": "finetune.preview_graft",
    "finetune.same_image": "finetune.duplicate_images",
    "finetune.preservation_weight": "finetune.distill_weight",
}
"""Earlier name of a setting or section -> its present one; "" for one that is gone. All dotted.

Values keep their meaning. A recipe that a run wrote is read with its names mapped; a hand-written one and
`--set` are answered with the present name.
"""
RUN_FILES = ("environment.json", "metrics.json", "log.jsonl")
"""Any of these beside a recipe says that a run wrote it."""

logger = logging.getLogger(__name__)


class Recipe(Section):
    """A whole run: fine-tune CLIP, bridge it to a base, draw."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random in training."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    data: DataSettings = DataSettings()
    clip: ModelSettings = ModelSettings(name="flatland")
    base: ModelSettings = ModelSettings(name="flatland")
    finetune: FinetuneSettings = FinetuneSettings()
    bridge: BridgeSettings = BridgeSettings()
    refine: RefineSettings = RefineSettings()
    generate: GenerateSettings = GenerateSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    pretrain: PretrainSettings = PretrainSettings()


def load_recipe(
    path: Path, overrides: Sequence[str] = (), given: Mapping[str, Any] = MappingProxyType({})
) -> Recipe:
    """Read a recipe from a TOML file and apply overrides.

    Args:
        path: The TOML file.
        overrides: See `apply_overrides`, as for `given`.

    Raises:
        FileNotFoundError: If there is no such file.
        UserError: If it is not TOML, or a key or value is not allowed; names the nearest known key.
    """
    if not path.is_file():
        raise MissingFileError(f"recipe not found: {path}")
    values = read_toml(path)
    if any((path.parent / name).is_file() for name in RUN_FILES):
        values = _renamed(values, path)
    return apply_overrides(values, overrides, given)


def _renamed(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Give settings of an older version their present names, and leave out those that are gone."""
    for old, new in OLD_NAMES.items():
        *sections, key = old.split(".")
        place: Any = values
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if not isinstance(place, dict) or key not in place:
            continue
        value = place.pop(key)
        if not new:
            logger.warning("%s: %r of an older version has no effect any more", path, old)
            continue
        *sections, key = new.split(".")
        place = values
        for section in sections:
            place = place.setdefault(section, {})
        place.setdefault(key, value)
    return values


def _refuse_old_names(values: Mapping[str, Any], prefix: str = "") -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted in OLD_NAMES:
            new = OLD_NAMES[dotted]
            raise UserError(
                f"recipe key {dotted!r} is {f'called {new!r} now' if new else 'gone'}; "
                f"{'rename it' if new else 'leave it out'}"
            )
        if isinstance(value, Mapping):
            _refuse_old_names(value, f"{dotted}.")


def apply_overrides(
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """Build a recipe from nested values, with given settings and then overrides on top.

    Args:
        values: Of a recipe, by section.
        overrides: Texts of the form `section.key=value`, value in TOML or a bare word.
        given: Values by `section.key`, taken as they are.

    Raises:
        UserError: If an override has another form, or a key or value is not allowed.
    """
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for dotted, value in given.items():
        _set(merged, dotted, value, f"{dotted}={value}")
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted.strip():
            raise UserError(f"--set takes section.key=value; got {override!r}")
        _set(merged, dotted.strip(), _parse_value(text.strip()), override)
    return build_recipe(merged)


def _set(values: dict[str, Any], dotted: str, value: Any, override: str) -> None:
    *sections, key = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override!r}: {section!r} is not a section")
    values[key] = value


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check nested values against the settings' models.

    Raises:
        ValueError: One line naming the first wrong key and what is allowed there.
    """
    _refuse_texts(values, "")
    _refuse_old_names(values)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def named_paths(settings: BaseModel, prefix: str = "") -> dict[str, str]:
    """Local files and folders that settings name, by `section.key`."""
    found: dict[str, str] = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, BaseModel):
            found |= named_paths(value, f"{prefix}{key}.")
        elif (PATH in field.metadata or MODEL in field.metadata) and Path(value).is_absolute():
            found[f"{prefix}{key}"] = value
    return found


def _refuse_texts(values: Mapping[str, Any], prefix: str) -> None:
    """Keep out of recipes what cannot be written, and tokens of the model hub: recipes are handed on."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _refuse_texts(value, f"{prefix}{key}.")
        elif HUB_TOKEN.search(str(value)):
            raise UserError(
                f"recipe key '{prefix}{key}' holds a token of the model hub; a token is taken from the "
                "environment (HF_TOKEN) or `hf auth login` alone"
            )
        elif LONE_SURROGATE.search(str(value)):
            raise UserError(
                f"recipe key '{prefix}{key}': {value!r} is not UTF-8; give the file or folder another name"
            )


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that `load_recipe` reads back to an equal recipe; what is unset is left out."""
    return "\n".join(_toml_lines(recipe.model_dump(exclude_none=True), "")).strip() + "\n"


def _toml_lines(values: Mapping[str, Any], prefix: str) -> list[str]:
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, section in values.items():
        if isinstance(section, dict):
            has_values = any(not isinstance(value, dict) for value in section.values())
            header = ["", f"[{prefix}{key}]"] if has_values else []
            lines += [*header, *_toml_lines(section, f"{prefix}{key}.")]
    return lines


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    dotted = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = _keys_beside(location)
        nearest = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
        return f"unknown recipe key {dotted!r}; {hint}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"recipe key {dotted!r}: {message}; got {first['input']!r}"


def _keys_beside(location: list[str]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        section = section.model_fields[part].annotation  # type: ignore[assignment]
    return list(section.model_fields)
