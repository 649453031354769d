"""Parameters of sampling and of inference: frozen, strict models, without torch."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from clipgraft.files import whole_characters
from clipgraft.section import (
    FROM_LIST,
    FROM_PATH,
    MAX_LAYERS,
    Count,
    Guidance,
    LocalPath,
    ModelName,
    NumSeeds,
    OptionalModel,
    OptionalPath,
    PromptSyntax,
    Scheduler,
    Section,
    Seed,
    Share,
    Side,
    Steps,
    random_seed,
)

MAX_CONTROLS = 8
"""ControlNets of one image; each takes as long as half a U-Net."""
MAX_GUIDE_SCALE = 10.0
"""Far beyond what gives images (some 2; a guess)."""
_NUMBER = r"\d+\.?\d*|\.\d+"
GUIDE = re.compile(
    rf"(?P<model>[^=]+)=(?P<image>.+?)(@(?P<scale>{_NUMBER})(:(?P<start>{_NUMBER})-(?P<end>{_NUMBER}))?)?",
    re.DOTALL,
)
MAX_STRENGTH = 10.0
"""Far beyond what keeps an image whole (some 1.5); negative ones lead away."""
Strength = Annotated[float, Field(ge=-MAX_STRENGTH, le=MAX_STRENGTH, allow_inf_nan=False)]
_STRENGTH = rf"[+-]?(?:(?:{_NUMBER})(?:e[+-]?\d+)?|nan|inf)"
LORA = re.compile(
    rf"(?P<file>.+?)(?::(?P<strength>{_STRENGTH})(?::(?P<text_strength>{_STRENGTH}))?)?", re.I | re.S
)
"""A file with its strengths; a path may hold colons too."""
MAX_FILES = 32
"""LoRAs or embeddings of one request; more than anyone mixes (a guess)."""


class TextToImageParams(Section):
    """Sampling of images from text alone, in diffusers' names."""

    negative_prompt: Annotated[str, AfterValidator(whole_characters)] = ""
    """Text to steer away from."""
    seed: Annotated[Seed, BeforeValidator(random_seed)] = 0
    """Of a prompt's first image; the next ones count up. -1 or "random": drawn once, and recorded."""
    num_images_per_prompt: NumSeeds = 1
    num_inference_steps: Steps | None = None
    """None = the base's default, for guidance_scale too."""
    guidance_scale: Guidance | None = None
    scheduler: Scheduler = "dpm++"
    """DPM-Solver++ 2M with Karras sigmas; pndm in 50 steps is Stable Diffusion's own, lcm for few steps."""
    height: Side = 0
    """Pixels, a multiple of 8; 0 = the base's own size."""
    width: Side = 0


class PromptParams(Section):
    """How prompts are read."""

    prompt_syntax: PromptSyntax = "plain"
    """weighted: `(word:1.3)`, `((word))`, `[word]` and `BREAK` as in A1111; plain: all is text."""
    long_prompts: Literal["chunk", "cut"] = "chunk"
    """Beyond 77 tokens: encode the rest in chunks of its own, or cut it off."""
    clip_skip: Annotated[int, Field(ge=0, le=MAX_LAYERS)] = 0
    """Last layers left out of a base's own text encoder; 1 is "Clip skip 2" in A1111."""


class Guide(Section):
    """A model with the image that it follows; also as text, `MODEL=IMAGE@SCALE`.

    A ControlNet's image is as that takes it (edges, a depth map), and cropped to height and width.
    """

    model: Annotated[ModelName, FROM_PATH, Field(min_length=1)]
    image: Annotated[LocalPath, FROM_PATH, Field(min_length=1)]
    scale: Annotated[float, Field(ge=0, le=MAX_GUIDE_SCALE, allow_inf_nan=False)] = 1.0
    """Factor on what the model adds; 0 = nothing."""

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        return parse_guide(value) if isinstance(value, str) else value


class Control(Guide):
    """A ControlNet with its image; also as text, `MODEL=IMAGE@SCALE:START-END`."""

    start: Share = 0.0
    """Share of the steps at which it begins to act."""
    end: Share = 1.0

    @model_validator(mode="after")
    def _has_steps(self) -> Self:
        if self.start >= self.end:
            raise ValueError("end must be above start")
        return self


def parse_guide(text: str) -> dict[str, str | float]:
    """Parse `MODEL=IMAGE`, with `@SCALE` or `@SCALE:START-END` behind; else ValueError."""
    found = GUIDE.fullmatch(text)
    if found is None:
        raise ValueError("expected MODEL=IMAGE, MODEL=IMAGE@SCALE or MODEL=IMAGE@SCALE:START-END")
    given = {name: value for name, value in found.groupdict().items() if value is not None}
    return {name: value if name in ("model", "image") else float(value) for name, value in given.items()}


def _listed(value: Any) -> Any:
    """Return one value, as in a table's cell, as a list."""
    return (value,) if isinstance(value, str) else value


class Lora(Section):
    """A LoRA's file, and how strongly it changes U-Net and text encoder."""

    file: Annotated[OptionalPath, Field(min_length=1)]
    """A `.safetensors` file in kohya's or diffusers' names, or a folder with one."""
    strength: Strength = 1.0
    text_strength: Strength | None = None
    """Of its part for the text encoder; None = `strength`."""

    @property
    def strengths(self) -> dict[str, float]:
        """By component."""
        text = self.strength if self.text_strength is None else self.text_strength
        return {"unet": self.strength, "text_encoder": text}


def _loras(value: Any) -> Any:
    """Read texts `FILE[:STRENGTH[:TEXT_STRENGTH]]`, one alone too; empty = none."""
    if isinstance(value, str | Path):
        value = [value] if str(value) else []
    if not isinstance(value, list | tuple):
        return value
    return tuple(_lora(str(each)) if isinstance(each, str | Path) else each for each in value)


def _lora(text: str) -> dict[str, Any]:
    found = LORA.fullmatch(text)
    if found is None or os.path.exists(text):
        return {"file": text}
    strengths = {name: float(value) for name, value in found.groupdict().items() if value and name != "file"}
    return {"file": found["file"]} | strengths


class EmbeddingFile(Section):
    """A textual inversion embedding: a `.safetensors` file of A1111 or diffusers."""

    file: Annotated[OptionalPath, Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str | Path) else value


class EncodeParams(PromptParams):
    """How prompts are read and encoded."""

    embeddings: Annotated[
        tuple[EmbeddingFile, ...], FROM_LIST, BeforeValidator(_listed), Field(max_length=MAX_FILES)
    ] = ()
    """Files of textual inversion; a prompt names the token within, or of A1111's the file's name."""


class SamplingParams(EncodeParams, TextToImageParams):
    """Sampling of images, from every interface down to the sampler."""

    init_image: OptionalPath = ""
    """Image file to start from, cropped to height and width; empty: noise alone."""
    mask_image: OptionalPath = ""
    """Image file of the same size: of `init_image`, what is white here is repainted, the rest stays."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the steps that change `init_image`; 1 = none of it remains."""
    controls: Annotated[
        tuple[Control, ...], FROM_LIST, BeforeValidator(_listed), Field(max_length=MAX_CONTROLS)
    ] = ()
    """ControlNets, each with its image; also as text, `MODEL=IMAGE@SCALE:START-END`."""
    ip_adapters: Annotated[
        tuple[Guide, ...], FROM_LIST, BeforeValidator(_listed), Field(max_length=MAX_CONTROLS)
    ] = ()
    """IP-Adapters: `.safetensors` files with `image_encoder/` beside them, each with its image."""
    loras: Annotated[tuple[Lora, ...], FROM_LIST, Field(max_length=MAX_FILES), BeforeValidator(_loras)] = ()
    """LoRAs of U-Net and text encoder; also as texts `FILE[:STRENGTH[:TEXT_STRENGTH]]`."""
    lora_dir: OptionalPath = ""
    """Folder with the LoRAs that weighted prompts name, as in `<lora:NAME:0.8>`."""
    embedding_dir: OptionalPath = ""
    """Folder with the embeddings that prompts name by their files' names."""
    dynamic_prompts: bool = False
    """Draw one of the alternatives `{a|b}` of each prompt, by the image's seed."""
    wildcards: OptionalPath = ""
    """Folder of wildcard files: `__name__` is a line of name.txt; also draws alternatives."""


SafetyChecker = Literal["auto", "on", "off"]


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] >= interval[1]:
        raise ValueError("the second share of the steps must be above the first")
    return interval


class InferenceConfig(Section):
    """Inference engine of a base's networks, and approximations that save time."""

    engine: Literal["auto", "torch", "openvino"] = "auto"
    """Engine of the U-Net and the VAE's decoder; the image is equal up to rounding. auto: the faster one,
    measured at the first use of an architecture."""
    compile: bool = False
    """Compile torch's networks at their first run; pays after many images. Equal up to rounding."""
    guidance_interval: Annotated[tuple[Share, Share], FROM_LIST, AfterValidator(_rising)] = (0.0, 1.0)
    """Interval of steps with guidance, as shares; other than (0, 1) changes the image."""
    feature_cache: Count = 1
    """Steps between full runs of the U-Net; above 1 changes the image."""
    quantize: Literal["none", "int8"] = "none"
    """int8: the U-Net's layers in INT8, calibrated on the first prompts; changes the image."""
    vae: OptionalModel = ""
    """VAE in place of the base's own: file, folder or hub id, TAESD's tiny one too; changes the image."""
    safety_checker: SafetyChecker = "auto"
    """auto: the base's own, if it brings one; on: refuse a base without; off: check no image."""


DEFAULT_SAMPLING, DEFAULT_INFERENCE = SamplingParams(), InferenceConfig()
