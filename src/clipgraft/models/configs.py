"""Checks of types and bounds in model configurations from outside.

Libraries trust configurations: 10^9 layers hang them, a wrong type fails in a distant place, and some keys
load code or files. Bounds are far above any published model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clipgraft.errors import CheckpointError, UserError
from clipgraft.files import parse_json, read_text
from clipgraft.section import Like

Width = Annotated[int, Field(ge=1, le=1 << 16)]
Layers = Annotated[int, Field(ge=1, le=256)]
"""Building takes about a millisecond a layer."""
BlockLayers = Annotated[int, Field(ge=1, le=16)]
"""These multiply: 8 blocks of 16 x 16 layers are built in seconds; Stable Diffusion 1 has 4 of 2 x 1."""
TokenId = Annotated[int, Field(ge=0, le=1 << 24)]
Positions = Annotated[int, Field(ge=3, le=4096)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, le=1e4)]
Beta = Annotated[float, Field(gt=0, lt=1)]
Dtype = Literal["float32", "float16", "bfloat16", "float64"] | None
Blocks = Annotated[list[str], Field(min_length=1, max_length=8)]
Channels = Annotated[list[Width], Field(min_length=1, max_length=8)]
PerBlock = BlockLayers | Annotated[list[BlockLayers], Field(max_length=8)]

LATENT_CHANNELS = 4
MAX_BYTES = 64_000_000
"""Size limit of a file; the largest are tokenizers (CLIP's: 2.2 MB)."""
CODE_KEYS = (
    "auto_map",
    "custom_pipeline",
    "custom_pipelines",
    "distributed_config",
    "fusion_config",
    "kernel_config",
    "quantization_config",
    "transformers_weights",
    "use_kernels",
)
"""Keys that make transformers and diffusers run other code, rebuild a model, or read other files."""
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation")
ATTENTIONS = (None, "eager", "sdpa")
"""Other names may load kernels, that is code, from the hub."""


class Checked(BaseModel):
    """A configuration; further keys are left to the library."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class TextConfig(Checked):
    """Configuration of a CLIP's text tower."""

    vocab_size: Annotated[int, Field(ge=1, le=1 << 24)] = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 8
    max_position_embeddings: Positions = 77
    projection_dim: Width | None = 512
    layer_norm_eps: Positive = 1e-5
    attention_dropout: Share = 0.0
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | None = None
    pad_token_id: TokenId | None = None
    dtype: Dtype = None
    torch_dtype: Dtype = None


class VisionConfig(Checked):
    """Configuration of a CLIP's vision tower."""

    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Layers = 12
    num_attention_heads: Width = 12
    num_channels: Annotated[int, Field(ge=1, le=16)] = 3
    image_size: Pixels = 224
    patch_size: Pixels = 32
    projection_dim: Width | None = 512
    layer_norm_eps: Positive = 1e-5
    attention_dropout: Share = 0.0
    dtype: Dtype = None
    torch_dtype: Dtype = None


class ClipConfig(Checked):
    """Configuration of a CLIP with both towers, or a safety checker."""

    text_config: TextConfig | None = None
    text_config_dict: TextConfig | None = None
    vision_config: VisionConfig | None = None
    vision_config_dict: VisionConfig | None = None
    projection_dim: Width = 512
    logit_scale_init_value: float = 2.6592
    dtype: Dtype = None
    torch_dtype: Dtype = None


class GraftConfig(Checked):
    """Configuration of a graft: CLIP's text tower and a bridge."""

    text_config: TextConfig
    hidden_size: Width
    bridge_hidden_size: Annotated[int, Field(ge=0, le=1 << 16)] = 0
    bridge_num_maps: Literal[1, 3] = 1
    bridge_num_positions: Annotated[int, Field(ge=1, le=4096)] = 1
    bridge_num_attention_blocks: Annotated[int, Field(ge=0, le=64)] = 0
    eos_token_id: TokenId
    dtype: Dtype = None

    @model_validator(mode="after")
    def _fits(self) -> "GraftConfig":
        if self.bridge_num_attention_blocks and not self.bridge_hidden_size:
            raise ValueError("attention blocks come before an MLP, and bridge_hidden_size is 0")
        if 1 < self.bridge_num_positions < self.text_config.max_position_embeddings:
            raise ValueError("bridge_num_positions must be 1, or at least the text tower's positions")
        return self


class VaeConfig(Checked):
    """Configuration of a base's VAE."""

    sample_size: Width = 32
    scaling_factor: Positive = 0.18215
    shift_factor: float | None = None
    block_out_channels: Channels
    down_block_types: Blocks
    up_block_types: Blocks
    layers_per_block: BlockLayers = 1
    latent_channels: Width = 4
    in_channels: Width = 3
    out_channels: Width = 3
    norm_num_groups: Width = 32
    act_fn: str = "silu"


class TinyVaeConfig(Checked):
    """Configuration of a tiny VAE."""

    latent_channels: Width = 4
    encoder_block_out_channels: Channels = [64] * 4
    decoder_block_out_channels: Channels = [64] * 4
    num_encoder_blocks: Annotated[list[BlockLayers], Field(max_length=8)] = [1, 3, 3, 3]
    num_decoder_blocks: Annotated[list[BlockLayers], Field(max_length=8)] = [3, 3, 3, 1]
    upsampling_scaling_factor: Literal[2] = 2
    upsample_fn: Literal["nearest", "bilinear", "bicubic"] = "nearest"
    scaling_factor: Positive = 1.0
    act_fn: str = "relu"

    @model_validator(mode="after")
    def _has_one_width(self) -> "TinyVaeConfig":
        if any(
            len(set(widths)) > 1
            for widths in (self.encoder_block_out_channels, self.decoder_block_out_channels)
        ):
            raise ValueError("the blocks of a tiny VAE must have one width")
        return self


class DownBlocksConfig(Checked):
    """What configurations of U-Nets and ControlNets have in common."""

    cross_attention_dim: Width
    block_out_channels: Channels
    down_block_types: Blocks
    layers_per_block: PerBlock = 2
    transformer_layers_per_block: PerBlock = 1
    attention_head_dim: Width | list[Width] = 8
    num_attention_heads: Width | list[Width] | None = None
    in_channels: Literal[4, 9] = 4
    """An inpainting U-Net has 9: latents, a mask, and the latents of what the mask leaves."""
    addition_embed_type: None = None
    """Not None in a U-Net conditioned on more: a second text encoder (SDXL), or below classes or images."""
    class_embed_type: None = None
    num_class_embeds: None = None
    encoder_hid_dim_type: None = None
    norm_num_groups: Width | None = 32
    norm_eps: Positive = 1e-5
    freq_shift: Annotated[float, Field(ge=0, le=1)] = 0
    flip_sin_to_cos: bool = True
    mid_block_scale_factor: Positive = 1.0
    act_fn: str = "silu"


class UnetConfig(DownBlocksConfig):
    """Configuration of a base's U-Net."""

    sample_size: Width
    up_block_types: Blocks
    reverse_transformer_layers_per_block: None = None
    out_channels: Literal[4] = 4
    time_cond_proj_dim: Width | None = None
    dropout: Share = 0.0
    center_input_sample: bool = False
    resnet_out_scale_factor: Positive = 1.0


class ControlNetConfig(DownBlocksConfig):
    """Configuration of a ControlNet."""

    in_channels: Literal[4] = 4
    conditioning_channels: Literal[3] = 3
    conditioning_embedding_out_channels: Channels | None = None
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"
    global_pool_conditions: bool = False


class SchedulerConfig(Checked):
    """Configuration of a base's noise schedule."""

    num_train_timesteps: Annotated[int, Field(ge=1, le=100_000)] = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: str = "linear"
    trained_betas: Annotated[list[Beta], Field(max_length=100_000)] | None = None
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: Annotated[int, Field(ge=0, le=1000)] = 0
    clip_sample: bool = False
    clip_sample_range: Positive = 1.0
    set_alpha_to_one: bool = False
    skip_prk_steps: bool = False
    rescale_betas_zero_snr: bool = False


class TokenizerConfig(Checked):
    """Configuration of a CLIP tokenizer; special tokens are strings or objects."""

    model_max_length: Annotated[int, Field(ge=3)] | None = None
    bos_token: str | dict[str, Any] | None = None
    eos_token: str | dict[str, Any] | None = None
    pad_token: str | dict[str, Any] | None = None
    unk_token: str | dict[str, Any] | None = None


def _has_sides(size: dict[str, Pixels]) -> dict[str, Pixels]:
    if set(size) not in ({"shortest_edge"}, {"height", "width"}, {"max_height", "max_width"}):
        raise ValueError("a size has a shortest_edge, a height and width, or a max_height and max_width")
    return size


Size = Pixels | Annotated[dict[str, Pixels], AfterValidator(_has_sides)]


class ProcessorConfig(Checked):
    """Configuration of CLIP's image processor."""

    size: Size = 224
    crop_size: Size = 224
    resample: Annotated[int, Field(ge=0, le=5)] = 3
    rescale_factor: Positive = 1 / 255
    image_mean: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    image_std: Annotated[list[Positive], Field(min_length=3, max_length=3)] | None = None
    do_resize: bool = True
    do_center_crop: bool = True
    do_rescale: bool = True
    do_normalize: bool = True


class JointProcessorConfig(Checked):
    """Configuration of a joint image and text processor."""

    image_processor: ProcessorConfig | None = None


class BaseRecord(Checked):
    """The base of a graft: name, commit, and sums of its weights."""

    name: Annotated[str, Field(min_length=1)]
    revision: str = ""
    """Hub commit, or empty."""
    sums: dict[str, Annotated[str, Like("^[0-9a-f]{512}$", "512 digits of 0-9 and a-f")] | None]
    """64 float32 numbers (hexadecimal) by rule; missing in grafts of the first version."""


class ModelIndex(Checked):
    """Index of a base's components: library and class of each."""

    safety_checker: list[str | bool | None] | None = None


def read_config(path: Path, kind: type[Checked]) -> dict[str, Any]:
    """Read and check a JSON configuration; return it unchanged.

    Raises:
        MissingFileError: If there is no such file.
        CheckpointError: If it is not a JSON object, a value has a wrong type or is out of bounds, or a key
            loads code or other files; names file, key and value.
    """
    text = read_text(path, error=CheckpointError, max_bytes=MAX_BYTES)
    config = parse_json(text, str(path), error=CheckpointError)
    _refuse_code(config, path, "")
    try:
        kind.model_validate(config)
    except ValidationError as wrong:
        # In a union, blame the deepest member: in `[2, "x"]` the second item, not that a list is no number.
        errors = wrong.errors(include_url=False, include_context=False)
        furthest = max(errors, key=lambda error: len(_place(error, config)))
        place = ".".join(_place(furthest, config))
        raise CheckpointError(
            f"{path} is damaged or of another model: {place}{_explain(furthest)}; fetch it again"
        ) from wrong
    return config


@contextmanager
def loading(path: Path, what: str) -> Iterator[None]:
    """Turn any library's error in loading `path` as `what` into one line.

    Raises:
        CheckpointError: Replaces any error except our own and lack of memory.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:
        # A Rust library's panic is a BaseException, as is Ctrl-C, which passes.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{path} cannot be loaded as {what}: {reason}") from error


def _place(wrong: Any, config: Any) -> list[str]:
    """Return the keys to a wrong value, without pydantic's union members."""
    keys: list[str] = []
    for part in wrong["loc"]:
        try:
            config = config[part]
        except (LookupError, TypeError):
            continue
        keys.append(str(part))
    return [*keys, wrong["loc"][-1]] if wrong["type"] == "missing" else keys


def _explain(wrong: Any) -> str:
    if wrong["type"] == "missing":
        return " is missing"
    reason = wrong["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f" is {str(wrong['input'])[:60]!r}, {reason}" if wrong["loc"] else reason


def _refuse_code(value: Any, path: Path, place: str) -> None:
    if isinstance(value, list):
        for item in value:
            _refuse_code(item, path, place)
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        is_code = key in CODE_KEYS and inner not in (None, False, {}, [])
        if is_code or (key in ATTENTION_KEYS and inner not in ATTENTIONS):
            raise CheckpointError(
                f"{path}: {place}{key} is refused ({str(inner)[:60]!r}): it would run other code or load "
                "other weights than this folder's; take the key out, or a copy of the model without it"
            )
        _refuse_code(inner, path, f"{place}{key}.")
