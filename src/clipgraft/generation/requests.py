"""Image requests: prompts with sampling parameters, checked before loading."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clipgraft.errors import UserError
from clipgraft.files import whole_characters
from clipgraft.generation.dynamic_prompts import DynamicPrompts
from clipgraft.generation.embedding_files import Embeddings
from clipgraft.generation.prompt_syntax import parse_prompt
from clipgraft.generation.request_adapters import (
    EmbeddingFolder,
    adapter_record,
    check_adapters,
    check_lora_dir,
    read_tags,
)
from clipgraft.generation.request_files import IMAGES, check_files, file_record, without_files
from clipgraft.generation.request_guides import GUIDES, check_guides, guide_record
from clipgraft.models.defaults import SamplingDefaults
from clipgraft.sampling_params import DEFAULT_SAMPLING, PromptParams, SamplingParams, TextToImageParams
from clipgraft.scheduler_recipes import max_steps

MAX_SLUG_LENGTH = 50
"""Characters of a prompt in a file name: file systems end at 255 bytes, a character has up to four."""
RECORDED = (
    *("seed", "negative_prompt", "num_inference_steps", "guidance_scale", "scheduler", "height", "width"),
)
"""Parameters that every record of an image has."""
UNRECORDED = PromptParams(prompt_syntax="plain", long_prompts="cut", clip_skip=0)
"""How prompts are read where a record does not say: as in the first version."""
RENAMED = {"steps": "num_inference_steps", "num_images": "num_images_per_prompt"}
"""Names of earlier versions, in files of prompts and in Python."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to generate.

    Raises:
        UserError: If the scheduler cannot take the steps, the prompt's syntax is wrong, or a file that is
            named cannot be used.
    """

    prompt: str
    params: SamplingParams = DEFAULT_SAMPLING

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise UserError(f"prompt must be a text; got {self.prompt!r}")
        try:
            whole_characters(self.prompt)
        except ValueError as error:
            raise UserError(f"prompt: {error}; got {self.prompt!r}") from None
        assert self.params.num_images_per_prompt == 1
        for prompt in (self.prompt, self.params.negative_prompt):
            parse_prompt(prompt, self.params.prompt_syntax)
        if self.params.num_inference_steps is not None:
            self._check_steps(max_steps(self.params.scheduler))
        check_files(self.params)
        check_guides(self.params)
        check_adapters(self.params)

    def _check_steps(self, most: int) -> None:
        steps, scheduler = self.params.num_inference_steps, self.params.scheduler
        assert steps is not None
        if steps > most:
            raise UserError(
                f"num_inference_steps must be from 1 to {most} with scheduler {scheduler!r}; got {steps}"
            )
        if not self.num_steps:
            raise UserError(f"{steps} steps at strength {self.params.strength} leave none to run; raise one")

    def resolved(self, defaults: SamplingDefaults, num_train_timesteps: int = 1000) -> "ImageRequest":
        """Return the request with the base's own values in place of None.

        Args:
            defaults: The base's.
            num_train_timesteps: The base's, which bound the number of steps.

        Raises:
            UserError: If the scheduler cannot take so many steps on that base.
        """
        request, params = self, self.params
        if params.num_inference_steps is None or params.guidance_scale is None:
            update = {
                "num_inference_steps": params.num_inference_steps or defaults.num_inference_steps,
                "guidance_scale": params.guidance_scale or defaults.guidance_scale,
            }
            request = replace(self, params=params.model_copy(update=update))
        request._check_steps(max_steps(params.scheduler, num_train_timesteps))
        return request

    @property
    def seed(self) -> int:
        """Of the parameters."""
        return self.params.seed

    @property
    def num_steps(self) -> int:
        """Denoising steps to run; with an `init_image` only the last ones."""
        assert self.params.num_inference_steps is not None
        if not self.params.init_image:
            return self.params.num_inference_steps
        return int(self.params.num_inference_steps * self.params.strength)

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt has an effect; of a resolved request."""
        assert self.params.guidance_scale is not None
        return self.params.guidance_scale > 1

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], files: Mapping[str, Any] = MappingProxyType({})
    ) -> "ImageRequest":
        """Return the request of a record.

        Args:
            record: From `as_record`.
            files: From `files_of` and `guides_of`; without them a request from text alone.

        Raises:
            UserError: If a value is unknown or not allowed.
        """
        values = {name: value for name, value in without_files(record).items() if name not in GUIDES}
        prompt = values.pop("prompt", None)
        return cls(prompt, SamplingParams.build(dict(UNRECORDED) | values | dict(files)))

    def as_record(self) -> dict[str, Any]:
        """Return the request as plain values, with checksums in place of files."""
        record = {"prompt": self.prompt} | {name: getattr(self.params, name) for name in RECORDED}
        record |= file_record(self.params) | guide_record(self.params) | adapter_record(self.params)
        read = PromptParams.of(self.params)
        return record | {name: value for name, value in read if value != getattr(UNRECORDED, name)}


def image_requests(prompts: Iterable[str], params: TextToImageParams) -> list[ImageRequest]:
    """Make a request for each prompt and seed.

    Args:
        prompts: What to generate; with `dynamic_prompts` or `wildcards` templates of it.
        params: Of all of them; settings that inherit from it will do.

    Raises:
        UserError: If a value is not allowed.
    """
    seeds = range(params.seed, params.seed + params.num_images_per_prompt)
    each = [SamplingParams.of(params, seed=seed, num_images_per_prompt=1) for seed in seeds]
    pairs = [(prompt, own) for prompt in prompts for own in each]
    if each[0].dynamic_prompts or each[0].wildcards:
        templates = DynamicPrompts(each[0].wildcards)
        pairs = [templates.resolved(prompt, own) for prompt, own in pairs]
    if each[0].lora_dir:
        check_lora_dir(Path(each[0].lora_dir))
    if each[0].prompt_syntax == "weighted":
        pairs = [read_tags(prompt, own) for prompt, own in pairs]
    if each[0].embedding_dir:
        embeddings = EmbeddingFolder(each[0].embedding_dir)
        pairs = [(prompt, embeddings.added(prompt, own)) for prompt, own in pairs]
    return [ImageRequest(prompt, own) for prompt, own in pairs]


def with_changes(params: SamplingParams, changes: Mapping[str, Any]) -> SamplingParams:
    """Return parameters with some changed by name.

    Raises:
        UserError: If a name is unknown, naming the nearest one, or a value is not allowed.
    """
    for name in changes.keys() & RENAMED.keys():
        raise UserError(f"{name!r} is called {RENAMED[name]!r} now")
    return SamplingParams.of(params, **changes)


def batches(requests: Iterable[ImageRequest], batch_size: int) -> Iterator[list[ImageRequest]]:
    """Split requests into batches that differ in prompts and seeds alone."""
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size!r}")
    for _, same in groupby(requests, key=shared_params):
        while batch := list(islice(same, batch_size)):
            yield batch


def shared_params(request: ImageRequest) -> SamplingParams:
    """Return what all requests of a batch have in common."""
    params = request.params
    images: dict[str, Any] = {name: "any" for name in IMAGES if getattr(params, name)}
    images["controls"] = tuple(control.model_copy(update={"image": "any"}) for control in params.controls)
    return params.model_copy(update={"seed": 0, "negative_prompt": "", **images})


def idle_settings(request: ImageRequest) -> list[str]:
    """Say which settings of a resolved request have no effect."""
    params = request.params
    unused = Embeddings(params.embeddings).unused([request.prompt, params.negative_prompt])
    notes = [f"embedding {word!r} is in neither prompt" for word in unused]
    if params.negative_prompt.strip() and not request.is_guided:
        notes.append("the negative prompt has no effect at guidance scale 1")
    if params.strength != DEFAULT_SAMPLING.strength and not params.init_image:
        notes.append("strength has no effect without an initial image")
    return notes


def image_file_name(prompt: str, seed: int) -> str:
    """Name a file, without suffix, after prompt and seed: "a-dog-on-the-beach_seed0"."""
    slug = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:MAX_SLUG_LENGTH].rstrip("-") or "empty-prompt"
    return f"{slug}_seed{seed}"
