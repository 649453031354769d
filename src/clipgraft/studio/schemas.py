"""Requests and limits: strict types, no unknown fields, every number bounded."""

import itertools
import math
import secrets
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from clipgraft.errors import UserError
from clipgraft.generation.requests import RENAMED, ImageRequest, image_requests
from clipgraft.models.defaults import SamplingDefaults
from clipgraft.sampling_params import PromptParams, TextToImageParams
from clipgraft.section import (
    FROM_LIST,
    PIXELS_PER_LATENT,
    Count,
    Every,
    Like,
    Positive,
    Section,
    Seed,
    random_seed,
)
from clipgraft.studio.image_files import FILE_QUALITY
from clipgraft.studio.named_files import NamedFiles, NamedParams


class Limits(Section):
    """Bounds of requests, queue, history and memory."""

    max_waiting_images: Count = 256
    """Of all clients together; more are answered with 429."""
    max_jobs_per_client: Count = 16
    """Waiting or running, of one address."""
    max_images_per_job: Count = 64
    max_steps: Count = 150
    max_side: Count = 1024
    """Pixels of an image's height and width."""
    max_pixel_steps: Count = 64 * 512 * 512 * 50
    """Images times height times width times steps of a job: 64 images of 512 x 512 in 50 steps."""
    max_history: Count = 10_000
    """Images kept; the oldest are deleted first."""
    max_body_bytes: Count = 12_000_000
    body_seconds: Positive = 30.0
    """Time for a request to arrive."""
    max_upload_pixels: Count = 16_000_000
    """Of one image."""
    max_uploads_bytes: Count = 2 * 2**30
    """Of all uploaded images; those not used for longest are deleted first."""
    max_request_pixels: Count = 64_000_000
    """Of all images of a request together."""
    max_prompt_characters: Count = 4000
    """Prompt and negative prompt together."""
    max_texts: Count = 256
    """Texts and images of one request for embeddings."""
    max_search_images: Count = 1000
    """Test images of a run that are searched."""
    batch_size: Count = 8
    memory_bytes: Every = 0
    """Bound of loaded weights; 0 = half of the machine's memory."""


LIMITS = Limits()
"""Bounds in the API's description; a studio's own stricter ones are checked with each job."""
MAX_IMAGE_TEXT = 16_000_000
"""Characters of an image in base64; the body's own bound is lower."""
Text = Annotated[str, Field(max_length=LIMITS.max_prompt_characters)]
Name = Annotated[str, Field(max_length=200)]
Side = Annotated[int, Field(ge=0, le=LIMITS.max_side, multiple_of=PIXELS_PER_LATENT)]
Steps = Annotated[int, Field(ge=1, le=LIMITS.max_steps)]
Label = Annotated[str, Field(max_length=64)] | None
WITHOUT_EFFECT = {
    "quality": ("auto", "standard"),
    "style": ("natural",),
    "background": ("auto", "opaque"),
    "moderation": ("auto",),
    "complexity": ("medium",),
    "input_fidelity": ("low",),
}
"""OpenAI's fields that are ignored -> values that change nothing, which need no note."""
AxisName = Literal[
    "prompt", "negative_prompt", "model", "seed", "num_inference_steps", "guidance_scale", "scheduler"
]


class Request(BaseModel):
    """A body that refuses unknown fields and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class BoundedParams(NamedParams, TextToImageParams, PromptParams):
    """Sampling parameters within the API's bounds; `steps` and `num_images` are earlier names."""

    negative_prompt: Text = ""
    seed: Annotated[Seed | None, BeforeValidator(random_seed)] = None  # type: ignore[assignment]
    """Of the first image, the next ones count up; random if missing, or -1."""
    num_images_per_prompt: Annotated[int, Field(ge=1, le=LIMITS.max_images_per_job)] = 1
    num_inference_steps: Steps | None = None
    height: Side = 0
    width: Side = 0
    dynamic_prompts: bool = False
    """Draw one of the alternatives `{a|b}` of each prompt, by the image's seed."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {RENAMED.get(name, name): value for name, value in values.items()}

    def expand(self, prompt: str, files: NamedFiles, **changes: Any) -> list[ImageRequest]:
        """Return a prompt's image requests, with some parameters changed.

        Raises:
            UserError: If a value is not allowed, or a file is not there.
        """
        return image_requests([prompt], files.located(BoundedParams.of(self, **changes), prompt))

    def first_seed(self) -> int:
        """Return the seed, or a random one by default."""
        return secrets.randbelow(2**32) if self.seed is None else self.seed


def _present_name(name: Any) -> Any:
    return RENAMED.get(name, name) if isinstance(name, str) else name


class Axis(Request):
    """One direction of a grid: what changes along it."""

    name: Annotated[AxisName, BeforeValidator(_present_name)]
    values: Annotated[list[str | int | float], Field(min_length=1, max_length=64)]


class JobRequest(BoundedParams):
    """Images to generate: every combination of axis values, models and seeds."""

    prompt: Text = Field(examples=["A dog running on the beach at sunset"])
    models: Annotated[tuple[Name, ...], Field(max_length=8), FROM_LIST] = ()
    """Of `GET /v1/models`; none = the default one. All start from the same seeds."""
    axes: Annotated[tuple[Axis, ...], Field(max_length=3), FROM_LIST] = ()
    client: Annotated[str, Field(max_length=64)] = ""

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

    def requests(
        self,
        default_model: str,
        defaults: Callable[[str], SamplingDefaults],
        max_images: int,
        files: NamedFiles,
    ) -> list[tuple[str, ImageRequest]]:
        """Return models and requests; the last axis changes fastest.

        Raises:
            UserError: If there are too many, or a value along an axis is not allowed.
        """
        count = math.prod(len(axis.values) for axis in self.axes) * max(1, len(self.models))
        count *= self.num_images_per_prompt
        if count > max_images:
            raise UserError(f"{count} images; a job holds at most {max_images}")
        unchanged: dict[str, Any] = {"prompt": self.prompt, "seed": self.first_seed()}
        requests = []
        for values in itertools.product(*(axis.values for axis in self.axes)):
            changed = unchanged | {axis.name: value for axis, value in zip(self.axes, values, strict=True)}
            model = changed.pop("model", None)
            models = self.models or (default_model,) if model is None else (str(model),)
            for name, request in itertools.product(models, self.expand(files=files, **changed)):
                requests.append((name, request.resolved(defaults(name))))
        return requests


SIZE = Like(r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$", "WIDTHxHEIGHT in pixels, such as 512x512, or auto")


class ImagesRequest(BoundedParams):
    """OpenAI's request for images, with sampling parameters in addition."""

    event: ClassVar[str] = "image_generation"
    """Prefix of a stream's events."""
    prompt: Annotated[Text, Field(min_length=1, examples=["A dog running on the beach at sunset"])]
    model: Name | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = 1
    size: Annotated[str, SIZE] | None = "auto"
    response_format: Literal["url", "b64_json"] | None = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] | None = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of JPEG and WebP."""
    stream: bool | None = False
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = 0
    """With `stream`, the most of each image."""
    user: Label = ""
    safety_identifier: Label = ""
    """Names the client before `user`, as in OpenAI's API."""
    quality: Label = None
    """No effect, as `style`, `background`, `moderation` and `complexity`; the answer notes it."""
    style: Label = None
    background: Label = None
    moderation: Label = None
    complexity: Label = None

    @model_validator(mode="after")
    def _streams_base64(self) -> "ImagesRequest":
        if self.stream and self.response_format == "url":
            raise UserError("a stream sends images as b64_json; leave out response_format or stream")
        return self

    @property
    def file_format(self) -> str:
        return self.output_format or "png"

    @property
    def file_quality(self) -> int:
        return FILE_QUALITY if self.output_compression is None else self.output_compression

    def notes(self) -> list[str]:
        """Return a sentence on each field without effect here."""
        given = self.model_dump(exclude_none=True)
        idle = [
            name for name, as_here in WITHOUT_EFFECT.items() if given.get(name, as_here[0]) not in as_here
        ]
        if self.partial_images and not self.stream:
            idle.append("partial_images (needs stream)")
        if self.output_compression is not None and self.file_format == "png":
            idle.append("output_compression (PNG loses nothing)")
        return [f"{name} has no effect" for name in idle]

    def requests(self, defaults: SamplingDefaults, files: NamedFiles) -> list[ImageRequest]:
        """Return each image's request.

        Raises:
            UserError: If the size is no multiple of 8 pixels, or seeds leave 64 bits.
        """
        width, height = (0, 0) if self.size in (None, "auto") else map(int, str(self.size).split("x"))
        sized = {"width": width, "height": height, "num_images_per_prompt": self.n or 1}
        each = self.expand(self.prompt, files, seed=self.first_seed(), **sized)
        return [request.resolved(defaults) for request in each]


class EditRequest(ImagesRequest):
    """OpenAI's request to change an image: a form beside its files."""

    event: ClassVar[str] = "image_edit"
    input_fidelity: Label = None
    """No effect; the answer notes it."""

    def edits(
        self, defaults: SamplingDefaults, files: NamedFiles, image: str, mask: str
    ) -> list[ImageRequest]:
        """Return each image's request, from uploads by id; "" = no mask.

        Raises:
            UserError: As `requests`; or if the mask has another size.
        """
        own = self.model_copy(update={"init_image": image, "mask_image": mask})
        return own.requests(defaults, files)


class VariationRequest(EditRequest):
    """OpenAI's request for variations of an image, without a prompt."""

    prompt: Text = ""


class ImageInput(Request):
    """An image to embed."""

    image: Annotated[str, Field(max_length=MAX_IMAGE_TEXT)]
    """PNG, JPEG or WebP in base64, or as `data:image/...;base64,`."""


EmbeddingInput = Annotated[str, Field(min_length=1, max_length=MAX_IMAGE_TEXT)] | ImageInput


def _is_embeddable(item: Any) -> bool:
    return isinstance(item, str) or (
        isinstance(item, dict) and item.keys() == {"image"} and isinstance(item["image"], str)
    )


class EmbeddingsRequest(Request):
    """OpenAI's request for embeddings, of images as well."""

    input: EmbeddingInput | Annotated[list[EmbeddingInput], Field(min_length=1, max_length=LIMITS.max_texts)]
    """Texts and images; a text that begins with `data:image/` is an image."""
    model: Name | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    user: Label = ""
    dimensions: None = None
    """OpenAI's; refused, since embeddings have their CLIP's own width."""

    @field_validator("input", mode="before")
    @classmethod
    def _no_token_ids(cls, value: Any) -> Any:
        # Of LangChain's default client, which tokenizes with OpenAI's vocabulary.
        items = value if isinstance(value, list) else [value]
        rows = [item if isinstance(item, list) else [item] for item in items]
        if any(isinstance(each, int) for row in rows for each in row):
            raise UserError(
                "token ids are another tokenizer's; send texts "
                "(in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False, ...))"
            )
        if not 0 < len(items) <= LIMITS.max_texts or not all(map(_is_embeddable, items)):
            raise UserError(
                'expected a text, or an image as {"image": BASE64}, or a list of 1 to '
                f"{LIMITS.max_texts} of them"
            )
        if "" in items:
            raise UserError("a text is empty; send texts of 1 character or more")
        return value

    @field_validator("dimensions", mode="before")
    @classmethod
    def _own_width(cls, value: Any) -> Any:
        if value is not None:
            raise UserError("embeddings have their CLIP's own width; leave it out")
        return value

    def items(self) -> list[str | ImageInput]:
        return self.input if isinstance(self.input, list) else [self.input]


class PromptRequest(PromptParams):
    """A prompt to describe."""

    prompt: Text = Field(examples=["A dog on the beach"])
    model: Name = ""


class SearchRequest(Request):
    """A caption to search a run's images by."""

    run: Name = Field(examples=["demo"])
    caption: Annotated[Text, Field(min_length=1, examples=["a red kite"])]
    limit: Annotated[int, Field(ge=1, le=48)] = 12
