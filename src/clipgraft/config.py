"""Settings of every stage: one frozen, strict model per TOML section; this module imports no torch.

A recipe is a whole run in one TOML file. Precedence: field default < recipe file < `--set section.key=value`.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MixedPrecision = Literal["auto", "no", "fp16", "bf16"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Every = Annotated[int, Field(ge=0)]
"""Steps between events; 0 = never."""
HUB_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSettings(Section):
    """Where captioned images come from."""

    source: str = ""
    """Folder or file with captioned images; formats in docs/data.md. Empty: flatland8k is drawn."""
    include_unsplit: bool = False
    """Images outside every split list go to train instead of being counted out."""
    max_train_images: Every = 0
    """Use the first n training images only; 0 = all."""
    max_val_images: Every = 0
    """Use the first n validation images only; 0 = all."""
    max_test_images: Every = 0
    """Use the first n test images only; 0 = all."""


class ModelSettings(Section):
    """A model as a folder, a hub id, or one of the named ones."""

    name: str
    """Folder, hub id, `.safetensors` file (bases only) or `flatland`."""
    revision: str = ""
    """Commit of a hub id, 40 hexadecimal digits; empty: its own pin, or main with a warning."""


class TrainSettings(Section):
    """What every stage that trains by gradient descent has in common."""

    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after warm-up; linear and cosine end at 0."""
    warmup_steps: Every = 0
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: NotNegative = 0.01
    """AdamW's decay of matrices; biases, norms and `logit_scale` are left out."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    batch_size: Count = 32
    """Items in one forward pass."""
    gradient_accumulation_steps: Count = 1
    """Forward passes whose gradients are averaged into one optimizer step."""
    num_epochs: Annotated[int, Field(ge=0)] = 9
    """Passes over the training split."""
    mixed_precision: MixedPrecision = "auto"
    """auto: fp16 on CUDA, bf16 on a CPU that is faster in it, else no."""
    checkpoint_every: Every = 500
    """Steps between resumable checkpoints."""
    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept."""
    num_workers: Every = 0
    """Processes that decode images beside the training one."""


class FinetuneSettings(TrainSettings):
    """Contrastive fine-tuning of CLIP; the defaults: AdamW, 1e-5, batch 32, norm 1.0, nine epochs."""

    batch_size: Count = 32
    """Images in one forward pass of all processes together; each with `captions_per_image` captions."""
    captions_per_image: Annotated[int, Field(ge=1, le=5)] = 1
    """Captions drawn for each image; the image is encoded once."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """CLIP's loss or SigLIP's."""
    same_image: Literal["mask", "positive", "negative"] = "mask"
    """What another caption of the same image is: left out, right as well, or wrong (plain CLIP)."""
    accumulation: Literal["joint", "separate"] = "joint"
    """joint: negatives from all the step's forward passes, as one big batch; separate: within each."""
    crop_scale: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Least area of a random crop of each training image, as a share; 1 = none."""
    frozen_vision_layers: Annotated[int, Field(ge=-1)] = 0
    """Embeddings and the first n layers of the vision tower stay as they are; -1 = the whole tower."""
    frozen_text_layers: Annotated[int, Field(ge=-1)] = 0
    """Embeddings and the first n layers of the text tower stay as they are; -1 = the whole tower."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from each layer to the one below it."""
    lora_rank: Every = 0
    """Train low-rank updates of the attention's maps alone, merged at the end; 0 = train the weights."""
    preservation_weight: NotNegative = 0.0
    """Weight of the loss that holds the token states where they were; 0 = none."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the moving average that becomes the weights; 0 = none."""
    best_metric: str = ""
    """Keep the weights of the evaluation with the best of this metric; empty: the last weights."""
    patience: Every = 0
    """Evaluations without a better `best_metric` after which training stops; 0 = never."""
    samples_every: Every = 0
    """Steps between pictures of `generate.prompts`, drawn on the way; 0 = never."""
    samples_graft: str = ""
    """Graft folder whose bridge and base they are drawn with."""
    compile: bool = False
    """Compile both towers with torch.compile: minutes at the start, faster steps after."""


class BridgeSettings(TrainSettings):
    """The map from CLIP's token states to the teacher's."""

    learning_rate: Positive = 1e-3
    num_epochs: Annotated[int, Field(ge=0)] = 2
    """Passes of the residual MLP over the captions; 0 = the closed-form linear map alone."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 20
    ridge: NotNegative = 1e-4
    """Ridge penalty, relative to the mean variance of CLIP's token states."""
    hidden_size: Count = 1024
    """Width of the residual MLP."""
    max_captions: Every = 0
    """Use the first n training captions only; 0 = all."""


class GenerateSettings(Section):
    """Drawing pictures from prompts."""

    prompts: tuple[str, ...] = (
        "A dog running on the beach at sunset",
        "A colorful garden with blooming flowers",
    )
    negative_prompt: str = ""
    num_images_per_prompt: Count = 1
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the first picture; the next ones count up."""
    num_inference_steps: Count = 25
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 7.5
    """1 = no guidance."""
    height: Every = 0
    """Pixels, a multiple of 8; 0 = the base's own size."""
    width: Every = 0
    """Pixels, a multiple of 8; 0 = the base's own size."""
    batch_size: Count = 4
    """Pictures drawn at once; does not change them."""


class AutoencoderSettings(TrainSettings):
    """The VAE of an embedded base, trained on crops."""

    learning_rate: Positive = 1e-3
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    weight_decay: NotNegative = 0.0
    batch_size: Count = 8
    num_epochs: Annotated[int, Field(ge=0)] = 40
    crop_size: Annotated[int, Field(ge=16, multiple_of=8)] = 64
    """Side of the square cut from each picture, in pixels."""
    kl_weight: NotNegative = 1e-6
    """Weight of the latents' KL divergence from a unit Gaussian (SD's; 1e-3 cost 3 dB in a trial)."""


class DenoiserSettings(TrainSettings):
    """The U-Net of an embedded base and its text encoder, trained together."""

    learning_rate: Positive = 5e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 200
    num_epochs: Annotated[int, Field(ge=0)] = 60
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Of the moving average that becomes the weights; 0 = none."""
    snr_gamma: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    """Cap of the signal-to-noise ratio in the loss' weights (min-SNR)."""
    caption_drop: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of captions replaced by the empty prompt, for classifier-free guidance."""


class PlainClipSettings(TrainSettings):
    """CLIP as it is before fine-tuning: trained on plain captions alone."""

    learning_rate: Positive = 5e-4
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    weight_decay: NotNegative = 0.1
    batch_size: Count = 64
    num_epochs: Annotated[int, Field(ge=0)] = 12


class ProbeSettings(TrainSettings):
    """The classifier that reads from a drawn picture what is in it."""

    learning_rate: Positive = 1e-3
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: Every = 100
    num_epochs: Annotated[int, Field(ge=0)] = 8
    num_images: Count = 12000
    """Pictures drawn for it alone, held-out combinations among them."""


class PretrainSettings(Section):
    """Training an embedded base from nothing: VAE, U-Net with its text encoder, CLIP, probe."""

    vae: AutoencoderSettings = AutoencoderSettings()
    unet: DenoiserSettings = DenoiserSettings()
    clip: PlainClipSettings = PlainClipSettings()
    probe: ProbeSettings = ProbeSettings()


class EvaluateSettings(Section):
    """How far pictures follow their prompts; for bases that draw flatland."""

    num_prompts: Annotated[int, Field(ge=0, le=240)] = 0
    """The first n of the 240 fixed prompts; 0 = not measured."""
    num_inference_steps: Count = 20
    guidance_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 3.0
    """At Stable Diffusion's 7.5 a base as small as flatland burns its colours."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the first prompt's picture; each further prompt's counts up."""
    batch_size: Count = 16


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
    generate: GenerateSettings = GenerateSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
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
        raise FileNotFoundError(f"recipe not found: {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error
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
            raise ValueError(f"--set takes section.key=value; got {override!r}")
        *sections, key = dotted.strip().split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"--set {override!r}: {section!r} is not a section")
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
        raise ValueError(_explain(error)) from None


def _refuse_tokens(values: Mapping[str, Any], prefix: str) -> None:
    """Keep tokens of the model hub out of recipes, which are written beside results and handed on."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            _refuse_tokens(value, f"{prefix}{key}.")
        elif HUB_TOKEN.search(str(value)):
            raise ValueError(
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
