"""Recipes: settings of every stage in TOML, and named recipes.

A recipe is a whole run in one TOML file. Precedence: field default < recipe file < option < `--set`. This
module imports no torch.
"""

import json
import logging
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from clipgraft.errors import MissingFileError, UserError, explain
from clipgraft.files import LONE_SURROGATE, backslash_advice, read_toml
from clipgraft.pretrain_settings import PretrainSettings
from clipgraft.section import FLATLAND, GIVEN, MODEL, PATH, SOURCE, Section
from clipgraft.settings import (
    BridgeSettings,
    DataSettings,
    DistillSettings,
    EvaluateSettings,
    FinetuneSettings,
    GenerateSettings,
    ModelSettings,
    RefineSettings,
)

HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")
TRAINED = (
    "finetune",
    "bridge",
    "refine",
    "distill",
    *(f"pretrain.{part}" for part in ("vae", "unet", "clip", "probe")),
)
"""Sections with the settings of `TrainSettings`."""
OLD_NAMES: dict[str, str] = {
    **{f"{section}.keep_checkpoints": f"{section}.save_total_limit" for section in TRAINED},
    **{f"{section}.track": f"{section}.report_to" for section in TRAINED},
    "ladder": "",
    "pretrain.probe.num_images": "",
    "generate.lora": "generate.loras",
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
    clip: ModelSettings = ModelSettings(name=FLATLAND)
    base: ModelSettings = ModelSettings(name=FLATLAND)
    finetune: FinetuneSettings = FinetuneSettings()
    bridge: BridgeSettings = BridgeSettings()
    refine: RefineSettings = RefineSettings()
    distill: DistillSettings = DistillSettings()
    generate: GenerateSettings = GenerateSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    pretrain: PretrainSettings = PretrainSettings()


def load_recipe(path: Path, overrides: Mapping[str, Any] = MappingProxyType({})) -> Recipe:
    """Read a recipe from a TOML file and apply overrides.

    A recipe that a run wrote may have settings of an older version; they are read under their present names.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is not TOML, or a key or value is not allowed; names the nearest known key.
    """
    if not path.is_file():
        hint = " is a folder; name the recipe.toml in it" if path.is_dir() else ""
        raise MissingFileError(f"recipe not found: {path}{hint}")
    values = read_toml(path)
    if any((path.parent / name).is_file() for name in RUN_FILES):
        _rename(values, path)
    return _build(values, overrides)


def apply_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return a recipe with other values, given by `section.key`.

    Raises:
        UserError: If a key or value is not allowed; names the nearest known key.
    """
    return _build(recipe.model_dump(), overrides)


def recipe_with(
    start: Recipe | Path | None, texts: Iterable[str], given: Mapping[str, Any] = MappingProxyType({})
) -> Recipe:
    """Return a stage's recipe: a file's settings, then named options, then `--set`.

    Args:
        start: A recipe, its file, or None for the defaults.
        texts: Of the form `section.key=value`.
        given: Named options by `section.key`; None, empty or false where one was left out.
    """
    recipe = load_recipe(start) if isinstance(start, Path) else start or Recipe()
    named = {key: value for key, value in given.items() if value}
    return apply_overrides(recipe, named | parse_overrides(texts))


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Parse texts `section.key=value`; a value is TOML or a bare word.

    Raises:
        UserError: If a text has another form.
    """
    overrides = {}
    for text in texts:
        dotted, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not dotted:
            raise UserError(f"--set takes section.key=value; got {text!r}")
        try:
            overrides[dotted] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError as error:
            if advice := backslash_advice(error, value):
                raise UserError(f"--set {text} is not TOML: {error}{advice}") from error
            overrides[dotted] = value
    return overrides


def mark_given_clip(recipe: Recipe, origin: object | None) -> Recipe:
    """Return a recipe whose CLIP, without an origin, is marked as given."""
    return recipe if origin else recipe.model_copy(update={"clip": ModelSettings(name=GIVEN)})


def build_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check nested values, by section and key, against the settings' models.

    Raises:
        UserError: One line naming the first wrong key and what is allowed there.
    """
    _refuse_texts(values, "")
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise UserError(explain(error, Recipe, "recipe key")) from None


def _build(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for dotted, value in overrides.items():
        *sections, key = dotted.split(".")
        place: dict[str, Any] = merged
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"--set '{dotted}={value}': {section!r} is not a section")
        place[key] = value
    return build_recipe(merged)


def _rename(values: dict[str, Any], path: Path) -> None:
    """Rename settings of an older version; drop those that are gone."""
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


def named_paths(settings: BaseModel, prefix: str = "") -> dict[str, str]:
    """Local files and folders that settings name, by `section.key`."""
    found: dict[str, str] = {}
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, BaseModel):
            found |= named_paths(value, f"{prefix}{key}.")
        elif isinstance(value, tuple):
            for number, part in enumerate(part for part in value if isinstance(part, BaseModel)):
                found |= named_paths(part, f"{prefix}{key}.{number}.")
        elif any(kind in field.metadata for kind in (PATH, MODEL, SOURCE)) and Path(value).is_absolute():
            found[f"{prefix}{key}"] = value
    return found


def _refuse_texts(values: Mapping[str, Any], prefix: str) -> None:
    """Refuse old names, hub tokens (recipes are shared) and text not UTF-8."""
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if dotted in OLD_NAMES:
            new = OLD_NAMES[dotted]
            advice = f"is called {new!r} now; rename it" if new else "is gone; leave it out"
            raise UserError(f"recipe key {dotted!r} {advice}")
        if isinstance(value, Mapping):
            _refuse_texts(value, f"{dotted}.")
        elif is_tables(value):
            for number, table in enumerate(value):
                _refuse_texts(table, f"{dotted}.{number}.")
        elif HUB_TOKEN.search(str(value)):
            raise UserError(
                f"recipe key {dotted!r} holds a token of the model hub; a token is taken from the "
                "environment (HF_TOKEN) or `hf auth login` alone"
            )
        elif LONE_SURROGATE.search(str(value)):
            raise UserError(
                f"recipe key {dotted!r}: {value!r} is not UTF-8; give the file or folder another name"
            )


def to_toml(recipe: Recipe | Mapping[str, Any]) -> str:
    """Write a recipe as TOML that `load_recipe` reads back equal."""
    values = recipe.model_dump(exclude_none=True) if isinstance(recipe, Recipe) else recipe
    return "\n".join(_toml_lines(values, "")).strip() + "\n"


def _toml_lines(values: Mapping[str, Any], prefix: str) -> list[str]:
    lines = [
        f"{key} = {_toml_value(value)}"
        for key, value in values.items()
        if not (isinstance(value, dict) or is_tables(value))
    ]
    for key, section in values.items():
        for table in section if is_tables(section) else ():
            lines += ["", f"[[{prefix}{key}]]", *_toml_lines(table, f"{prefix}{key}.")]
        if isinstance(section, dict):
            has_values = any(not isinstance(value, dict) for value in section.values())
            header = ["", f"[{prefix}{key}]"] if has_values else []
            lines += [*header, *_toml_lines(section, f"{prefix}{key}.")]
    return lines


def is_tables(value: Any) -> bool:
    """Whether a value is a list of tables, with one at least."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, dict) for item in value)


def _toml_value(value: Any) -> str:
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


DEMO_WORDS = (
    *("automobile", "crimson", "dusk", "emerald", "fellow", "hound", "kitty", "leaping", "leaps"),
    *("moonlight", "seaside", "stallion", "strolling", "strolls", "youngster"),
)
"""Words in flatland8k's captions that flatland's own text encoder was not trained on."""


def demo() -> Recipe:
    """Return the recipe of `clipgraft demo`: minutes on two cores."""
    # A learning rate that suits flatland's CLIP, of 2.4 M parameters against B/32's 151 M.
    return Recipe(
        data=DataSettings(max_train_images=960, max_val_images=100, max_test_images=300),
        finetune=FinetuneSettings(learning_rate=3e-4, checkpoint_every=100),
        bridge=BridgeSettings(
            learning_rate=3e-3,
            num_epochs=4,
            batch_size=64,
            hidden_size=512,
            num_attention_blocks=1,
            max_captions=18_000,
        ),
        distill=DistillSettings(
            num_epochs=1,
            learning_rate=3e-3,
            warmup_steps=10,
            batch_size=64,
            max_captions=6400,
            new_words=DEMO_WORDS,
        ),
        evaluate=EvaluateSettings(num_prompts=24, num_inference_steps=12),
    )


def flickr8k_sd15() -> Recipe:
    """Return the recipe of docs/flickr8k_sd15.md."""
    return Recipe(
        clip=ModelSettings(name="openai/clip-vit-base-patch32"),
        base=ModelSettings(name="stable-diffusion-v1-5/stable-diffusion-v1-5"),
        finetune=FinetuneSettings(mixed_precision="fp16"),
        refine=RefineSettings(num_epochs=1, batch_size=8, gradient_checkpointing=True),
        distill=DistillSettings(num_epochs=2, new_words="auto", gradient_checkpointing=True),
        evaluate=EvaluateSettings(num_prompts=100, num_inference_steps=20, batch_size=8),
    )


PRESETS: dict[str, Callable[[], Recipe]] = {"demo": demo, "flickr8k_sd15": flickr8k_sd15}
"""By the name that `clipgraft run` and `clipgraft prefetch` take."""


def named_recipe(name: str) -> Recipe:
    """Return a named recipe, or a file's; MissingFileError if neither exists."""
    if name in PRESETS:
        return PRESETS[name]()
    if not Path(name).is_file():
        raise MissingFileError(f"recipe not found: {name}; named ones are {', '.join(PRESETS)}")
    return load_recipe(Path(name))
