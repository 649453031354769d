"""Base of all settings, and the types of their values."""

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)

from clipgraft.errors import UserError, explain
from clipgraft.files import BACKSLASHES
from clipgraft.scheduler_recipes import SCHEDULERS, scheduler_name

GIVEN = "(given in Python)"
"""Stands in a recipe for captions or a CLIP that it cannot name."""
FLATLAND = "flatland"
"""Name of the embedded base and of its CLIP."""


def _absolute(text: str) -> str:
    """Return an absolute path; an empty one and `GIVEN` stay as they are."""
    if text == GIVEN:
        return text
    if "\0" in text:
        raise ValueError("a path holds no NUL character")
    _refuse_escapes(text)
    return str(Path(os.path.expanduser(text)).absolute()) if text else ""


def _refuse_escapes(path: str) -> None:
    """Refuse a path with tabs or line ends that is not there."""
    if ESCAPED.search(path) and not os.path.exists(os.path.expanduser(path)):
        raise ValueError(f"a path that is not there holds a tab, a line end or the like; {BACKSLASHES}")


def _absolute_or_url(text: str) -> str:
    """Return a URL as it is, else an absolute path."""
    return text if "://" in text and "\0" not in text else _absolute(text)


def _absolute_if_there(name: str) -> str:
    """Return a local path as absolute; hub ids stay as they are."""
    is_there = "\0" not in name and os.path.exists(os.path.expanduser(name))
    _refuse_escapes(name)
    return _absolute(name) if is_there and name != FLATLAND else name


ESCAPED = re.compile(r"[\b\t\n\f\r\x1b]")
"""What TOML reads for a backslash and a letter."""


@dataclass(frozen=True, slots=True)
class Like:
    """A pattern of texts, for `Annotated`; a refusal says what is allowed."""

    pattern: str
    allowed: str
    """In words, such as "16 digits of 0-9 and a-f"."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return AfterValidator(self._check).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"pattern": self.pattern}

    def _check(self, text: str) -> str:
        if not re.fullmatch(self.pattern, text):
            raise ValueError(f"expected {self.allowed}")
        return text


PATH, MODEL = AfterValidator(_absolute), AfterValidator(_absolute_if_there)
SOURCE = AfterValidator(_absolute_or_url)
LocalPath = Annotated[str, PATH]
"""A file or folder; absolute in every recipe, so that it runs again from any working directory."""
Source = Annotated[str, SOURCE]
"""A file or folder, absolute, or a URL."""
ModelName = Annotated[str, MODEL]
"""A folder or file, absolute where there is one; else a hub id or `flatland`."""
MixedPrecision = Literal["auto", "no", "fp16", "bf16"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
MAX_SEEDS = 10_000
"""Of one prompt; more than anyone generates (a guess), and a list in memory."""
NumSeeds = Annotated[int, Field(ge=1, le=MAX_SEEDS)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
MAX_GUIDANCE_SCALE = 100
"""Far beyond what gives images (some 30), far below what gives NaN."""
Guidance = Annotated[float, Field(ge=1, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)]
"""1 = no guidance."""
MAX_STEPS = 1000
"""Timesteps of such bases; no scheduler can visit more."""
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Every = Annotated[int, Field(ge=0)]
"""Steps between events; 0 = never."""
LatentCrop = Literal["buckets", "center"]
"""How an image fills the base's size."""
ResizeMode = Literal["", "shortest", "longest", "squash"]
"""How an image becomes a square, in open_clip's words; empty: as the model's own processor does."""
Rank = Annotated[int, Field(ge=0, le=4096)]
"""Of a low-rank update; no text tower here is wider. 0 = none."""


MAX_LAYERS = 64
"""Of a text encoder; the largest here has 24."""
FROM_LIST = Field(strict=False)
"""TOML and JSON have lists and no tuples."""
Seed = Annotated[int, Field(ge=0, lt=2**64)]
MAX_SIDE = 2**16
"""Pixels; more than any machine here could generate (a guess)."""
PIXELS_PER_LATENT = 8
"""Along a side, of Stable Diffusion's VAE."""
Side = Annotated[int, Field(ge=0, le=MAX_SIDE, multiple_of=PIXELS_PER_LATENT)]
"""Pixels; 0 = the base's own size."""
ImageFormat = Literal["png", "jpeg", "webp"]
"""Of generated files: JPEG of quality 95, WebP without loss."""
PromptSyntax = Literal["plain", "weighted"]
Scheduler = Annotated[
    str,
    AfterValidator(scheduler_name),
    Field(json_schema_extra={"enum": [*SCHEDULERS, *(recipe.a1111_name for recipe in SCHEDULERS.values())]}),
]
"""A name of `SCHEDULERS`, given by it or by A1111's."""
_NO_PATH = BeforeValidator(lambda path: str(path or "") if isinstance(path, Path | None) else path)
FROM_PATH = BeforeValidator(lambda path: str(path) if isinstance(path, Path) else path)
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
Words = Annotated[tuple[str, ...], FROM_LIST] | LocalPath
"""Words themselves, or a text file with one per line."""
OptionalPath = Annotated[LocalPath, _NO_PATH]
"""A `LocalPath` that also takes a `Path`, or None for none."""
OptionalModel = Annotated[ModelName, _NO_PATH]
"""A `ModelName` that also takes a `Path`, or None for none."""


def _tracker_names(given: Any) -> Any:
    """Split "tensorboard, mlflow"; "none" and "" name no tracker."""
    if not isinstance(given, str):
        return given
    return () if given in ("", "none") else tuple(name.strip() for name in given.split(","))


TrackerNames = Annotated[
    tuple[Literal["tensorboard", "wandb", "mlflow", "trackio", "all"], ...],
    BeforeValidator(_tracker_names),
    FROM_LIST,
]
"""Names of `TRACKERS`, or "all" for those installed; also one text, with commas, or "none"."""


def random_seed(seed: Any) -> Any:
    """Replace -1, as A1111 writes it, and "random" by a random seed."""
    return secrets.randbelow(2**32) if seed in (-1, "random") and seed is not True else seed


class Section(BaseModel):
    """Frozen settings that refuse unknown keys and wrong types."""

    # Strict: else `true` would be 1 worker, and a text a learning rate.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Check values that a user gave.

        Raises:
            UserError: One line naming the first wrong value, or the nearest name for an unknown one.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(explain(error, cls, "setting")) from None

    @classmethod
    def of(cls, settings: "Section", **changes: Any) -> Self:
        """Take the shared fields of other settings, some of them changed."""
        shared = cls.model_fields.keys() & type(settings).model_fields.keys()
        return cls.build({name: getattr(settings, name) for name in shared} | changes)

    def updated(self, values: Mapping[str, object]) -> Self:
        """Return the settings with some fields changed; raises as `build`."""
        return self.build({**self.model_dump(), **values})
