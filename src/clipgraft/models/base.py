"""The frozen base: VAE, U-Net, scheduler and text encoder (the teacher)."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, PreTrainedModel

from clipgraft.errors import CheckpointError, UserError
from clipgraft.models.attention import ATTENTION
from clipgraft.models.base_scheduler import load_scheduler
from clipgraft.models.clip import check_vocabulary, empty_prompt_ids, load_image_processor, text_hidden_states
from clipgraft.models.configs import (
    LATENT_CHANNELS,
    BaseRecord,
    Checked,
    ClipConfig,
    ModelIndex,
    TextConfig,
    UnetConfig,
    VaeConfig,
    read_config,
)
from clipgraft.models.cross_attention import (
    LARGEST_DIFFERENCE,
    difference_from,
    identity_sums,
    read_cross_attention,
)
from clipgraft.models.defaults import FILE_NAME as DEFAULTS_NAME
from clipgraft.models.defaults import STABLE_DIFFUSION, SamplingDefaults, read_defaults
from clipgraft.models.hub import COMMIT, PINS, resolve_model
from clipgraft.models.loading import load_strictly, refuse_links_out
from clipgraft.models.single_file import UNET_CONFIG, in_channels_of, load_single_file
from clipgraft.models.tokenizer import load_tokenizer
from clipgraft.models.weights import Needed, Weights, module_sha256
from clipgraft.runs.folder_kinds import kind_of
from clipgraft.section import FLATLAND

logger = logging.getLogger(__name__)

WEIGHT_STEMS = {
    "vae": "vae/diffusion_pytorch_model",
    "unet": "unet/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
    "safety_checker": "safety_checker/model",
}
COMPONENTS = ("vae", "unet", "scheduler", "tokenizer", "text_encoder")


class Origin(NamedTuple):
    """Where a base was loaded from."""

    name: str
    revision: str
    """Hub commit, or empty."""
    path: Path


NOT_LOADED: Any = None
"""A component that was left out; of any type, as code reads only components that it has asked for."""


@dataclass
class FrozenBase:
    """Components of a base, frozen, in eval mode; None if not loaded."""

    vae: AutoencoderKL | AutoencoderTiny = NOT_LOADED
    unet: UNet2DConditionModel = NOT_LOADED
    scheduler: SchedulerMixin = NOT_LOADED
    tokenizer: CLIPTokenizer = NOT_LOADED
    text_encoder: CLIPTextModel = NOT_LOADED
    """The teacher."""
    safety_checker: StableDiffusionSafetyChecker | None = None
    feature_extractor: CLIPImageProcessorPil | None = None
    """The safety checker's image processor."""
    origin: Origin = NOT_LOADED
    """None if it was put together from components."""

    def __post_init__(self) -> None:
        for module in self.modules.values():
            module.requires_grad_(False).eval()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Components with weights, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, nn.Module)}

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        components: Collection[str] = COMPONENTS,
        dtype: torch.dtype | None = torch.float32,
        tokenizer: CLIPTokenizer | None = None,
    ) -> "FrozenBase":
        """Load a base.

        Args:
            name: `flatland`, a diffusers folder, a hub id, or one `.safetensors` file with LDM's key names.
            revision: Commit of a hub id; None or empty = the pinned one, or main with a warning.
            components: From COMPONENTS, and optionally "safety_checker", loaded if the base has one.
            dtype: Of the weights; None = as stored.
            tokenizer: Tokenizer for a single file, which has none.

        Raises:
            MissingFileError: If there is no such path and the name is not a hub id.
            CheckpointError: If it is not a complete base in safetensors, or the hub is unreachable.
        """
        needed = needed_files(components, dtype)
        path = resolve_model(name, part="base", revision=revision, needed=needed)
        load = load_single_file if path.is_file() else _load_folder
        parts = load(path, components, dtype)
        if "tokenizer" in components and "tokenizer" not in parts:
            if tokenizer is None:
                raise CheckpointError(
                    f"{name} is a single file and has no tokenizer; give that of the CLIP to graft, or name "
                    "a diffusers folder"
                )
            parts["tokenizer"] = tokenizer
        base = cls(**parts, origin=Origin(name, _commit(name, revision, path), path))
        if base.text_encoder is not None and base.tokenizer is not None:
            check_vocabulary(base.text_encoder, base.tokenizer, path)
        return base

    @property
    def defaults(self) -> SamplingDefaults:
        """Guidance and steps suited to the base."""
        return read_defaults(self.origin.path) if self.origin else STABLE_DIFFUSION

    @property
    def in_channels(self) -> int:
        """Channels that the U-Net takes; 9 of an inpainting base, else 4."""
        return self.unet_config.get("in_channels", LATENT_CHANNELS)

    @property
    def unet_config(self) -> dict[str, Any]:
        """The U-Net's configuration, which is read if it is not loaded."""
        if self.unet is not None:
            return dict(self.unet.config)
        if self.origin.path.is_file():
            return {**UNET_CONFIG, "in_channels": in_channels_of(self.origin.path)}
        return _read_config(self.origin.path / "unet", UnetConfig)

    @torch.no_grad()
    def encode_latents(self, vae_pixel_values: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1] as scaled mean `latents` (B, 4, H / 8, W / 8)."""
        return self.vae.encode(vae_pixel_values).latent_dist.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode scaled `latents` (B, 4, H / 8, W / 8) to pixels (B, 3, H, W) in [-1, 1], unclamped."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    @torch.no_grad()
    def empty_prompt_embeds(self) -> Tensor:
        """Return the teacher's embeds of the empty prompt, (77, W)."""
        ids = empty_prompt_ids(self.tokenizer).to(self.text_encoder.device)
        return text_hidden_states(self.text_encoder, ids)[0]

    def pipeline(self, text_encoder: PreTrainedModel | None = None) -> StableDiffusionPipeline:
        """Return a plain diffusers pipeline of the base.

        Args:
            text_encoder: Replaces the base's own.

        Raises:
            UserError: If the text encoder's width is not the U-Net's `cross_attention_dim`.
        """
        encoder = text_encoder or self.text_encoder
        width, needed = encoder.config.hidden_size, self.unet.config.cross_attention_dim
        if width != needed:
            raise UserError(
                f"the graft gives states of width {width}, but this base's U-Net takes {needed}; "
                "use the base that the graft was made for"
            )
        return StableDiffusionPipeline(
            vae=self.vae,
            unet=self.unet,
            text_encoder=encoder,
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
            safety_checker=self.safety_checker,
            feature_extractor=self.feature_extractor,
            requires_safety_checker=self.safety_checker is not None,
        )

    def record(self) -> BaseRecord:
        """Return the base's name, commit and sums, for `check_record`."""
        name, revision, _ = self.origin
        return BaseRecord(name=name, revision=revision, sums=identity_sums(self._cross_attention()))

    def check_record(self, record: BaseRecord) -> None:
        """Check that a graft was made for this base, in any dtype.

        Raises:
            CheckpointError: If its cross-attention has other weights.
        """
        difference = difference_from(record.sums, self._cross_attention())
        if difference is None:
            logger.warning("the graft says nothing of its base's weights; they are not compared")
            return
        if not difference <= LARGEST_DIFFERENCE:
            raise CheckpointError(
                f"the graft was made for another base: {record.name}, not {self.origin.name} (sums "
                f"of their cross-attention weights differ by {difference:.3f} of their size, "
                f"{LARGEST_DIFFERENCE} is allowed); use that base, or fit a bridge to this one with "
                "`clipgraft bridge`"
            )

    def _cross_attention(self) -> dict[str, Tensor]:
        return self.unet.state_dict() if self.unet is not None else read_cross_attention(self.origin.path)

    def weight_checksums(self) -> dict[str, str]:
        """Return the sha256 (hex) of each component's weights."""
        return {name: module_sha256(module) for name, module in self.modules.items()}


load_base = FrozenBase.load
"""`FrozenBase.load` under its public name in `clipgraft`."""


def needed_files(components: Collection[str], dtype: torch.dtype | None) -> Needed:
    """List the files of components, in the precision nearer to a dtype.

    The U-Net is always needed: its config to check widths, its cross-attention to identify the base.
    """
    texts = [f"{name}/*.json" for name in {*components, "unet"}]
    if "safety_checker" in components:
        texts.append("feature_extractor/*.json")
    weights = [
        Weights(
            stem,
            prefer_half=dtype not in (None, torch.float32) or name not in components,
            is_optional=name == "safety_checker",
        )
        for name, stem in WEIGHT_STEMS.items()
        if name in components or name == "unet"
    ]
    texts += ["model_index.json", DEFAULTS_NAME, "tokenizer/*.json", "tokenizer/*.txt"]
    return Needed(tuple(texts), tuple(weights))


def check_fit(text_model: nn.Module, tokenizer: CLIPTokenizer, base: FrozenBase) -> None:
    """Refuse a CLIP unfit to replace the base's text encoder.

    Raises:
        CheckpointError: If it is not CLIP's text tower, or vocabulary, BOS, EOS, padding or length differ.
    """
    # CLIP B/32's vision tower would fit too: it is 768 wide, like Stable Diffusion's text encoder.
    if not isinstance(text_model, CLIPTextModel):
        raise CheckpointError(
            f"only CLIP's text tower (CLIPTextModel) can be grafted; got {type(text_model).__name__}, "
            "whose states are not words"
        )
    check_vocabularies(tokenizer, base)
    ours, theirs = (tower.config.max_position_embeddings for tower in (text_model, base.text_encoder))
    if ours != theirs:
        raise CheckpointError(
            f"CLIP reads {ours} positions, the base's text encoder {theirs}; they must be equal: use a CLIP "
            "and a base of one length"
        )


def check_vocabularies(tokenizer: CLIPTokenizer, base: FrozenBase) -> None:
    """Refuse a CLIP with other tokens than the base's.

    Raises:
        CheckpointError: If vocabulary, BOS, EOS or padding differ, or captions are not padded with EOS.
    """
    for what in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = getattr(tokenizer, what), getattr(base.tokenizer, what)
        if ours != theirs:
            raise CheckpointError(
                f"{what} differs: CLIP's tokenizer has {ours}, the base's {theirs}; they must be equal: use "
                "a CLIP and a base with one tokenizer"
            )
    # A single file has no tokenizer: CLIP's own was compared with itself.
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        raise CheckpointError(
            f"pad_token_id is {tokenizer.pad_token_id} in CLIP's tokenizer; only one that pads with EOS "
            f"({tokenizer.eos_token_id}) can be grafted, as Stable Diffusion 1 has it: use a CLIP that does"
        )
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise CheckpointError(
            f"CLIP's tokenizer ({len(tokenizer)} tokens) is not the base's ({len(base.tokenizer)} tokens), "
            "so their positions hold different words; use a CLIP and a base with one vocabulary"
        )


def _load_folder(folder: Path, components: Collection[str], dtype: torch.dtype | None) -> dict[str, Any]:
    loaders: dict[str, Callable[[Path], Any]] = {
        "vae": lambda path: load_strictly(AutoencoderKL, path, VaeConfig, dtype=dtype),
        "unet": lambda path: load_strictly(UNet2DConditionModel, path, UnetConfig, dtype=dtype),
        "scheduler": load_scheduler,
        "tokenizer": load_tokenizer,
        "text_encoder": lambda path: load_strictly(
            CLIPTextModel, path, TextConfig, dtype=dtype, attn_implementation=ATTENTION
        ),
    }
    for name in {*components, "unet"} & {*loaders}:
        if not (folder / name).is_dir():
            there = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir())) or "no folder"
            raise CheckpointError(
                f"{folder} is {kind_of(folder)}, not a base: it has no {name}/ (found: {there}); name a "
                "diffusers folder, a .safetensors file or a hub id"
            )
    checker = ["feature_extractor"] if "safety_checker" in components else []
    names = ["model_index.json", DEFAULTS_NAME, *sorted({*components, "unet", *checker})]
    refuse_links_out(folder, [folder / name for name in names])
    if "text_encoder" in components:
        _check_text_encoder(folder)
    parts = {name: loaders[name](folder / name) for name in components if name in loaders}
    if "safety_checker" in components:
        parts |= _load_safety_checker(folder)
    return parts


def _commit(name: str, revision: str | None, path: Path) -> str:
    """Return a model's hub commit, not that of a mirror."""
    if name == FLATLAND or Path(name).expanduser().exists():
        return ""
    asked = revision or (PINS[name].revision if name in PINS else "")
    return asked if COMMIT.fullmatch(asked) else path.name


def _load_safety_checker(folder: Path) -> dict[str, Any]:
    """Load the safety checker (in float32: its thresholds are fine) and its image processor."""
    index = folder / "model_index.json"
    named = read_config(index, ModelIndex).get("safety_checker") if index.is_file() else None
    if not named or not named[0]:
        return {}
    if not any(folder.glob("safety_checker/*.safetensors")):
        logger.warning(
            "this base names a safety checker, but safety_checker/*.safetensors is not there: "
            "images are generated unchecked"
        )
        return {}
    return {
        "safety_checker": load_strictly(
            StableDiffusionSafetyChecker, folder / "safety_checker", ClipConfig, dtype=torch.float32
        ),
        "feature_extractor": load_image_processor(folder / "feature_extractor"),
    }


def _read_config(folder: Path, kind: type[Checked]) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a component of a base: it has no config.json; fetch the base again, whole"
        )
    return read_config(path, kind)


def _check_text_encoder(folder: Path) -> None:
    """Check type and width of a base's text encoder without loading weights."""
    config = _read_config(folder / "text_encoder", TextConfig)
    unet = _read_config(folder / "unet", UnetConfig)
    if config.get("model_type") != "clip_text_model":
        raise CheckpointError(
            f"base {folder}: its text encoder is of type {config.get('model_type')!r}; only one of CLIP's, "
            "'clip_text_model', can be a bridge's teacher, as Stable Diffusion 1 has it"
        )
    width, needed = config.get("hidden_size", 512), unet.get("cross_attention_dim")
    if width != needed:
        raise CheckpointError(
            f"base {folder}: its text encoder is {width} wide, its U-Net's cross_attention_dim is {needed}; "
            "take both from one model"
        )
