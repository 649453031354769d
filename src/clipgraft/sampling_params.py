"""Parameters of sampling and of inference: frozen, strict models, without torch."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from clipgraft.files import whole_characters
from clipgraft.section import (
    FROM_LIST,
    MAX_LAYERS,
    Count,
    Guidance,
    OptionalPath,
    PromptSyntax,
    Scheduler,
    Section,
    Seed,
    Share,
    Side,
    Steps,
    _rising,
    random_seed,
)


class TextToImageParams(Section):
    """Sampling of images from text alone, in diffusers' names."""

    negative_prompt: Annotated[str, AfterValidator(whole_characters)] = ""
    """Text to steer away from."""
    seed: Annotated[Seed, BeforeValidator(random_seed)] = 0
    """Of a prompt's first image; the next ones count up. -1 or "random": drawn once, and recorded."""
    num_images_per_prompt: Count = 1
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


class SamplingParams(PromptParams, TextToImageParams):
    """Sampling of images, from every interface down to the sampler."""

    init_image: OptionalPath = ""
    """Image file to start from, cropped to height and width; empty: noise alone."""
    mask_image: OptionalPath = ""
    """Image file of the same size: of `init_image`, what is white here is repainted, the rest stays."""
    strength: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the steps that change `init_image`; 1 = none of it remains."""


class InferenceConfig(Section):
    """Inference engine of a base's networks, and approximations that save time."""

    engine: Literal["auto", "torch", "openvino"] = "auto"
    """Engine of the U-Net and the VAE's decoder; the image is equal up to rounding."""
    compile: bool = False
    """Compile torch's networks at their first run; pays after many images. Equal up to rounding."""
    guidance_interval: Annotated[tuple[Share, Share], FROM_LIST, AfterValidator(_rising)] = (0.0, 1.0)
    """Interval of steps with guidance, as shares; other than (0, 1) changes the image."""
    feature_cache: Count = 1
    """Steps between full runs of the U-Net; above 1 changes the image."""
    lora: OptionalPath = ""
    """File or folder of a LoRA for the U-Net, e.g. one for few steps; changes the image."""


DEFAULT_SAMPLING, DEFAULT_INFERENCE = SamplingParams(), InferenceConfig()
