"""What clients may ask for, field by field: strict types, no unknown field, every number bounded."""

import itertools
import math
import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clipgraft.errors import UserError
from clipgraft.generation.params import MAX_SEED, SIZE_MULTIPLE, Job
from clipgraft.generation.schedulers import SCHEDULERS
from clipgraft.models.defaults import DrawingDefaults
from clipgraft.settings import Count, Every, Guidance, Positive, Section


class Limits(Section):
    """Bounds of requests, queue, history and memory."""

    max_waiting_images: Count = 256
    """Of all clients together; more are answered with 429."""
    max_jobs_per_client: Count = 16
    """Waiting or at work."""
    max_images_per_job: Count = 64
    max_steps: Count = 150
    max_side: Count = 1024
    """Pixels of an image's height and width."""
    max_pixel_steps: Count = 64 * 512 * 512 * 50
    """Images times height times width times steps of a job: 64 images of 512 x 512 in 50 steps."""
    max_history: Count = 10_000
    """Images kept; the oldest go first."""
    max_body_bytes: Count = 12_000_000
    body_seconds: Positive = 30.0
    """In which a request has to arrive whole."""
    max_upload_pixels: Count = 16_000_000
    """Of one image."""
    max_request_pixels: Count = 64_000_000
    """Of all images of a request together."""
    max_prompt_characters: Count = 4000
    """Prompt and negative prompt together."""
    max_texts: Count = 256
    """Texts and images of one request for embeddings."""
    max_search_images: Count = 1000
    """The first n test images of a run's data, among which captions are searched."""
    batch_size: Count = 8
    """Images drawn at once, at most."""
    memory_bytes: Every = 0
    """Of loaded weights; 0 = half of the machine's memory."""


LIMITS = Limits()
"""Bounds that the description of the API tells; a studio's own, where stricter, are checked when it plans."""
MAX_IMAGE_TEXT = 16_000_000
"""Characters of an image in base64; the bound of the body is met first."""
Text = Annotated[str, Field(max_length=LIMITS.max_prompt_characters)]
Name = Annotated[str, Field(max_length=200)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Side = Annotated[int, Field(ge=0, le=LIMITS.max_side, multiple_of=SIZE_MULTIPLE)]
Steps = Annotated[int, Field(ge=1, le=LIMITS.max_steps)]
Scheduler = Annotated[str, Field(max_length=20, json_schema_extra={"enum": list(SCHEDULERS)})]
"""Checked where a job is made."""


AxisName = Literal["prompt", "negative_prompt", "model", "seed", "steps", "guidance_scale", "scheduler"]


class Request(BaseModel):
    """A body that refuses unknown fields and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Settings(Request):
    """What decides an image, beside the model."""

    prompt: Text = Field(examples=["A dog running on the beach at sunset"])
    negative_prompt: Text = ""
    seed: Seed | None = None
    """Of the first image, the next ones count up; without it one is drawn by lot."""
    steps: Steps | None = None
    """Without it those that suit the model."""
    guidance_scale: Guidance | None = None
    """1 = no guidance; without it the one that suits the model."""
    scheduler: Scheduler = "dpm++"
    width: Side = 0
    """Pixels; 0 = the base's own."""
    height: Side = 0


class Axis(Request):
    """One direction of a grid: what changes along it."""

    name: AxisName
    values: Annotated[list[str | int | float], Field(min_length=1, max_length=64)]


class JobRequest(Settings):
    """Images to draw: every combination of the axes' values, by every model, `num_images` of each."""

    models: Annotated[list[Name], Field(max_length=8)] = []
    """Of `GET /v1/models`; none = the default one. All draw from the same seeds."""
    num_images: Annotated[int, Field(ge=1, le=LIMITS.max_images_per_job)] = 1
    axes: Annotated[list[Axis], Field(max_length=3)] = []
    client: Annotated[str, Field(max_length=64)] = ""
    """Clients are served in turn; a name of the browser's own making."""

    @model_validator(mode="after")
    def _axes_differ(self) -> "JobRequest":
        names = [axis.name for axis in self.axes]
        if len(set(names)) < len(names):
            raise UserError("each axis changes another thing")
        return self

    @property
    def kind(self) -> str:
        """generate, compare or grid."""
        return "grid" if self.axes else "compare" if len(self.models) > 1 else "generate"

    def expand(
        self, default_model: str, defaults: Callable[[str], DrawingDefaults], max_images: int
    ) -> list[tuple[str, Job]]:
        """Make each image's model and job; the last axis changes fastest but for model and seed.

        Args:
            default_model: Draws where none is named.
            defaults: Of a model; taken where the request names none.
            max_images: At most so many.

        Raises:
            ValueError: If there are too many, or a value along an axis is not allowed.
        """
        count = math.prod(len(axis.values) for axis in self.axes) * max(1, len(self.models)) * self.num_images
        if count > max_images:
            raise UserError(f"{count} images; a job holds at most {max_images}")
        first = self.seed if self.seed is not None else secrets.randbelow(2**32)
        plain = self.model_dump(include=set(Settings.model_fields) - {"seed"})
        images = []
        for values in itertools.product(*(axis.values for axis in self.axes)):
            changed: dict[str, Any] = dict(zip((axis.name for axis in self.axes), values, strict=True))
            models = [changed.pop("model")] if "model" in changed else self.models or [default_model]
            seed = changed.pop("seed", first)
            settings = plain | changed
            for model, index in itertools.product(models, range(self.num_images)):
                seed_of = seed + index if isinstance(seed, int) else seed
                job = make_job(settings | {"seed": seed_of})
                images.append((str(model), job.resolved(defaults(str(model)))))
        return images


def make_job(settings: dict[str, Any]) -> Job:
    """Make a job from settings in clients' words.

    Raises:
        ValueError: If a value is not allowed.
    """
    values = dict(settings)
    steps = values.pop("steps")
    if isinstance(steps, int) and steps > LIMITS.max_steps:  # a job by itself may have more
        raise UserError(f"steps must be from 1 to {LIMITS.max_steps}; got {steps}")
    return Job(num_inference_steps=steps, **values)


class ImagesRequest(Request):
    """OpenAI's request for images, with this system's own settings beside it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "A dog running on the beach at sunset", "n": 1, "size": "128x128", "seed": 0}
            ]
        }
    )

    prompt: Annotated[Text, Field(min_length=1)]
    model: Name | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: Annotated[str, Field(pattern=r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$")] | None = "auto"
    response_format: Literal["url", "b64_json"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    quality: Literal["auto", "standard"] | None = "auto"
    user: Annotated[str, Field(max_length=64)] | None = ""
    seed: Seed | None = None
    negative_prompt: Text = ""
    steps: Steps | None = None
    """Without it those that suit the model."""
    guidance_scale: Guidance | None = None
    """1 = no guidance; without it the one that suits the model."""
    scheduler: Scheduler = "dpm++"

    def jobs(self, defaults: DrawingDefaults) -> list[Job]:
        """Make each image's job.

        Args:
            defaults: Taken where the request names none.

        Raises:
            ValueError: If the size is no multiple of 8 pixels, or seeds leave 64 bits.
        """
        width, height = (0, 0) if self.size in (None, "auto") else map(int, str(self.size).split("x"))
        first = self.seed if self.seed is not None else secrets.randbelow(2**32)
        settings = self.model_dump(
            include={"prompt", "negative_prompt", "steps", "guidance_scale", "scheduler"}
        )
        settings |= {"width": width, "height": height}
        return [
            make_job(settings | {"seed": first + index}).resolved(defaults) for index in range(self.n or 1)
        ]


class ImageInput(Request):
    """An image to embed."""

    image: Annotated[str, Field(max_length=MAX_IMAGE_TEXT)]
    """PNG, JPEG or WebP in base64, or as `data:image/...;base64,`."""


EmbeddingInput = Annotated[str, Field(min_length=1, max_length=MAX_IMAGE_TEXT)] | ImageInput


class EmbeddingsRequest(Request):
    """OpenAI's request for embeddings; beside texts also images, in the same space."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "flatland", "input": ["a red ball in the park"]}]}
    )

    input: EmbeddingInput | Annotated[list[EmbeddingInput], Field(min_length=1, max_length=LIMITS.max_texts)]
    """Texts; a text that begins with `data:image/` is an image, as is `{"image": base64}`."""
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    user: Annotated[str, Field(max_length=64)] | None = ""

    def items(self) -> list[str | ImageInput]:
        """Inputs as a list."""
        return self.input if isinstance(self.input, list) else [self.input]


class PromptRequest(Request):
    """A prompt to be read, not drawn."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "A dog on the beach"}]})

    prompt: Text
    model: Name = ""


class SearchRequest(Request):
    """A caption to search images by."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"run": "demo", "caption": "a red kite"}]})

    run: Name
    caption: Annotated[Text, Field(min_length=1)]
    limit: Annotated[int, Field(ge=1, le=48)] = 12
