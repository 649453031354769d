"""The frozen base: a latent diffusion model's VAE, U-Net, scheduler, text encoder (the teacher)."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, SchedulerMixin, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from clipgraft.errors import CheckpointError
from clipgraft.models import sd15
from clipgraft.models.clip import check_vocabulary, text_hidden_states
from clipgraft.models.hub import refuse_pickles, resolve_model

logger = logging.getLogger(__name__)

WEIGHT_FILES = {
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}
COMPONENTS = ("vae", "unet", "scheduler", "tokenizer", "text_encoder")
LDM_TEXT_PREFIX = "cond_stage_model.transformer.text_model."
"""Of the text encoder's keys in a single file (LDM's names)."""


@dataclass
class FrozenBase:
    """Components of a base, in eval, without gradients; None where not asked for."""

    vae: AutoencoderKL | None = None
    unet: UNet2DConditionModel | None = None
    scheduler: SchedulerMixin | None = None
    tokenizer: CLIPTokenizer | None = None
    text_encoder: CLIPTextModel | None = None
    """The teacher."""

    def __post_init__(self) -> None:
        for module in self.modules.values():
            module.requires_grad_(False).eval()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The components that have weights, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, nn.Module)}

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        components: Collection[str] = COMPONENTS,
        dtype: torch.dtype = torch.float32,
        tokenizer: CLIPTokenizer | None = None,
    ) -> "FrozenBase":
        """Load a base.

        Args:
            name: `flatland`, a diffusers folder, a hub id, or one `.safetensors` file with LDM's key names.
            revision: Commit of a hub id; without it the id's main branch is taken, with a warning.
            components: What to load: some of COMPONENTS.
            dtype: Of the weights.
            tokenizer: Used where the base has none of its own (a single file has not).

        Raises:
            FileNotFoundError: If it is nowhere, or the hub is out of reach.
            CheckpointError: If it is not a base of this kind, or not whole, or in pickles.
        """
        if "/" in name and not Path(name).exists() and not revision:
            logger.warning("%s has no pinned revision: what it names can change; set base.revision", name)
        patterns = [
            "*.json",
            "tokenizer/*",
            *(WEIGHT_FILES[part] for part in components if part in WEIGHT_FILES),
        ]
        path = resolve_model(name, part="base", revision=revision, allow_patterns=patterns)
        if path.is_file():
            parts = _load_single_file(path, components, dtype)
        else:
            parts = _load_folder(path, components, dtype)
        if "tokenizer" in components and "tokenizer" not in parts:
            if tokenizer is None:
                raise CheckpointError(f"{name} carries no tokenizer, and none was given")
            parts["tokenizer"] = tokenizer
        base = cls(**parts)
        check_base(base, name)
        return base

    @torch.no_grad()
    def encode_latents(self, vae_pixel_values: Tensor) -> Tensor:
        """Return scaled `latents` (B, 4, H / 8, W / 8), the posterior's mean, of (B, 3, H, W) in [-1, 1]."""
        assert self.vae is not None
        return self.vae.encode(vae_pixel_values).latent_dist.mean * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in [-1, 1], not clamped, of scaled `latents` (B, 4, H / 8, W / 8)."""
        assert self.vae is not None
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    @torch.no_grad()
    def empty_states(self) -> Tensor:
        """Return the teacher's states of the empty prompt, (77, W)."""
        assert self.text_encoder is not None
        assert self.tokenizer is not None
        length = self.text_encoder.config.max_position_embeddings
        ids = torch.full((1, length), self.tokenizer.eos_token_id)
        ids[0, 0] = self.tokenizer.bos_token_id
        return text_hidden_states(self.text_encoder, ids.to(self.text_encoder.device))[0]

    def weight_sums(self) -> dict[str, str]:
        """Return the sha256 (hex) of each component's weights, names and values."""
        return {name: _weight_sum(module) for name, module in self.modules.items()}


def check_base(base: FrozenBase, name: str) -> None:
    """Refuse a base whose parts do not belong together.

    Raises:
        CheckpointError: If the U-Net's cross-attention is not as wide as the teacher, or vocabularies differ.
    """
    if base.text_encoder is not None and base.tokenizer is not None:
        check_vocabulary(base.text_encoder, base.tokenizer)
    if base.text_encoder is not None and base.unet is not None:
        width, needed = base.text_encoder.config.hidden_size, base.unet.config.cross_attention_dim
        if width != needed:
            raise CheckpointError(
                f"base {name}: its text encoder is {width} wide, its U-Net's cross_attention_dim is {needed}"
            )


def check_fit(text_model: nn.Module, tokenizer: CLIPTokenizer, base: FrozenBase) -> None:
    """Refuse, by name and before anything runs, a CLIP whose token states cannot answer the teacher's.

    Args:
        text_model: The tower to graft. CLIP B/32's *vision* tower is 768 wide too and would fit in silence.
        tokenizer: CLIP's.
        base: Its tokenizer and text encoder are compared.

    Raises:
        CheckpointError: If it is not CLIP's text tower, or vocabulary, BOS, EOS, padding or length differ.
    """
    assert base.text_encoder is not None
    assert base.tokenizer is not None
    if not isinstance(text_model, CLIPTextModel):
        raise CheckpointError(
            f"only CLIP's text tower (CLIPTextModel) can be grafted; got {type(text_model).__name__}, "
            "whose states are not words"
        )
    for what in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = getattr(tokenizer, what), getattr(base.tokenizer, what)
        if ours != theirs:
            raise CheckpointError(
                f"{what} differs: CLIP's tokenizer has {ours}, the base's {theirs}; they must be equal"
            )
    if tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise CheckpointError(
            f"CLIP's tokenizer ({len(tokenizer)} tokens) is not the base's ({len(base.tokenizer)} tokens), "
            "so their positions hold different words; use a CLIP and a base with one vocabulary"
        )
    ours = text_model.config.max_position_embeddings
    theirs = base.text_encoder.config.max_position_embeddings
    if ours != theirs:
        raise CheckpointError(
            f"CLIP reads {ours} positions, the base's text encoder {theirs}; they must be equal"
        )


def _load_folder(folder: Path, components: Collection[str], dtype: torch.dtype) -> dict[str, Any]:
    loaders = {
        "vae": lambda path: AutoencoderKL.from_pretrained(path, torch_dtype=dtype, use_safetensors=True),
        "unet": lambda path: UNet2DConditionModel.from_pretrained(
            path, torch_dtype=dtype, use_safetensors=True
        ),
        "scheduler": PNDMScheduler.from_pretrained,
        "tokenizer": CLIPTokenizer.from_pretrained,
        "text_encoder": lambda path: CLIPTextModel.from_pretrained(path, dtype=dtype, use_safetensors=True),
    }
    parts = {}
    for name in components:
        path = folder / name
        if not path.is_dir():
            there = (
                ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) or "no folder"
            )
            raise CheckpointError(f"{folder} is not a base: it has no {name}/ (found: {there})")
        refuse_pickles(path)
        try:
            parts[name] = loaders[name](path)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} does not load: {str(error).strip().splitlines()[0]}") from error
    return parts


def _load_single_file(path: Path, components: Collection[str], dtype: torch.dtype) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file; pickles (.ckpt, .bin) can run code: convert it first"
        )
    parts: dict[str, Any] = {}
    configs = {"vae": sd15.VAE_CONFIG, "unet": sd15.UNET_CONFIG}
    classes = {"vae": AutoencoderKL, "unet": UNet2DConditionModel}
    for name in components:
        if name in classes:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "config.json").write_text(json.dumps(configs[name]), encoding="utf-8")
                parts[name] = classes[name].from_single_file(
                    str(path), config=folder, torch_dtype=dtype, local_files_only=True
                )
        elif name == "scheduler":
            parts[name] = PNDMScheduler.from_config(sd15.SCHEDULER_CONFIG)
        elif name == "text_encoder":
            parts[name] = _load_ldm_text_encoder(path, dtype)
    return parts


def _load_ldm_text_encoder(path: Path, dtype: torch.dtype) -> CLIPTextModel:
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)).to(dtype)
    with safe_open(path, framework="pt") as file:
        weights = {
            key.removeprefix(LDM_TEXT_PREFIX): file.get_tensor(key).to(dtype)
            for key in file.keys()  # noqa: SIM118  (the file is no dict)
            if key.startswith(LDM_TEXT_PREFIX) and not key.endswith("position_ids")
        }
    lacking = sorted(model.state_dict().keys() - weights.keys())
    if lacking:
        raise CheckpointError(f"{path} lacks text encoder weights such as {LDM_TEXT_PREFIX}{lacking[0]}")
    model.load_state_dict(weights, assign=True)
    # Not a weight: positions 0..76, which a model made without memory does not have yet.
    model.embeddings.register_buffer(
        "position_ids", torch.arange(model.config.max_position_embeddings)[None], persistent=False
    )
    return model


def _weight_sum(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
