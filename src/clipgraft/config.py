"""Recipes: the settings of every stage, in and out of TOML, one section each; this module imports no torch.

A recipe is a whole run in one TOML file. Precedence: field default < recipe file < `--set section.key=value`.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from clipgraft.errors import MissingFileError, UserError
from clipgraft.settings import (
    BridgeSettings,
    DataSettings,
    EvaluateSettings,
    FinetuneSettings,
    GenerateSettings,
    LadderSettings,
    ModelSettings,
    PretrainSettings,
    RefineSettings,
    Section,
)

HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")


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
    ladder: LadderSettings = LadderSettings()
    pretrain: PretrainSettings = PretrainSettings()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a TOML file and apply overrides.

    Args:
        path: The TOML file.
        overrides: Texts of the form `section.key=value`, value in TOML or a bare word.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML, or a key or value is not allowed; names the nearest known key.
    """
    if not path.is_file():
        raise MissingFileError(f"recipe not found: {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from error
    return apply_overrides(values, overrides)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    """Build a recipe from nested values, with `section.key=value` texts on top.

    Raises:
        ValueError: If an override has another form, or a key or value is not allowed.
    """
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted.strip():
            raise UserError(f"--set takes section.key=value; got {override!r}")
        *sections, key = dotted.strip().split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {override!r}: {section!r} is not a section")
        target[key] = _parse_value(text.strip())
    return build_recipe(merged)


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check nested values against the settings' models.

    Raises:
        ValueError: One line naming the first wrong key and what is allowed there.
    """
    _refuse_tokens(values, "")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _refuse_tokens(values: Mapping[str, Any], prefix: str) -> None:
    """Keep tokens of the model hub out of recipes, which are written beside results and handed on."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _refuse_tokens(value, f"{prefix}{key}.")
        elif HUB_TOKEN.search(str(value)):
            raise UserError(
                f"recipe key '{prefix}{key}' holds a token of the model hub; a token is taken from the "
                "environment (HF_TOKEN) or `hf auth login` alone"
            )


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML that `load_recipe` reads back to an equal recipe."""
    return "\n".join(_toml_lines(recipe.model_dump(), "")).strip() + "\n"


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
