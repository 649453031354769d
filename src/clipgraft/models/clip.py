"""CLIP through transformers: load, save, encode.

B batch, L tokens, D hidden width, P joint width. Text needs no mask: attention is causal, so padding stays
invisible up to EOS, and Stable Diffusion was trained on unmasked padding.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTextModel, CLIPTokenizer

from clipgraft.errors import CheckpointError
from clipgraft.models.attention import ATTENTION
from clipgraft.models.configs import (
    Checked,
    ClipConfig,
    JointProcessorConfig,
    ProcessorConfig,
    loading,
    read_config,
)
from clipgraft.models.hub import resolve_model
from clipgraft.models.lineage import Stage, clip_lineage
from clipgraft.models.loading import load_strictly, refuse_links_out
from clipgraft.models.tokenizer import load_tokenizer
from clipgraft.models.weights import MANIFEST_NAME, Needed, Weights, verify_model, write_folder_atomically
from clipgraft.runs.folder_kinds import kind_of, wrong_kind
from clipgraft.settings import ModelSettings

NEEDED = Needed(("*.json", "*.txt"), (Weights("model"),))
"""Files of a CLIP."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
"""Configurations of an image processor; transformers 5 may write the first, a joint one."""
LEGACY_EOS_TOKEN_ID = 2
"""Wrong id in the released configs (transformers pull request 24773); no CLIP vocabulary has EOS there."""


class ClipParts(NamedTuple):
    """A CLIP model with tokenizer, image processor and origin."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    image_processor: CLIPImageProcessorPil
    origin: ModelSettings | None = None
    """Name and commit; None if made in memory."""
    lineage: tuple[Stage, ...] = ()
    """Its fine-tuning stages, in order."""


def load_clip(name_or_path: str | Path, *, revision: str | None = None) -> ClipParts:
    """Load a CLIP with both towers, in float32 and eval mode.

    The model's config gets the tokenizer's BOS, EOS and pad ids.

    Args:
        name_or_path: Folder in transformers layout, hub id, or `flatland`.
        revision: Commit of a hub id; as in `load_base`.

    Raises:
        MissingFileError: If there is no such folder.
        CheckpointError: If the folder does not hold a complete CLIPModel in safetensors.
    """
    folder = resolve_model(name_or_path, part="clip", revision=revision, needed=NEEDED)
    if not (folder / "config.json").is_file():
        places = ("clip/config.json", "finetune/clip/config.json")  # of a fine-tuning, of a whole run
        advice = "a folder with its config.json and weights"
        raise CheckpointError(wrong_kind(folder, "a CLIP", *places, advice=advice))
    refuse_links_out(folder, [folder])
    if (folder / MANIFEST_NAME).is_file():
        verify_model(folder)
    _refuse_other_models(folder)
    # Master weights are always float32: AdamW on half-precision weights ends in NaN (openai/CLIP issue 40).
    model = load_strictly(CLIPModel, folder, ClipConfig, dtype=torch.float32, attn_implementation=ATTENTION)
    tokenizer = load_tokenizer(folder)
    check_vocabulary(model.text_model, tokenizer, folder)
    _take_special_token_ids(model, tokenizer)
    processor = load_image_processor(folder)
    _check_image_size(folder, model.config.vision_config.image_size, processor)
    origin = ModelSettings(name=str(name_or_path), revision=revision or "")
    return ClipParts(model, tokenizer, processor, origin, clip_lineage(origin))


def load_image_processor(folder: Path) -> CLIPImageProcessorPil:
    """Load the image processor of a CLIP.

    Raises:
        CheckpointError: If its configuration is missing or damaged; names the file.
    """
    joint, path = (folder / name for name in PROCESSOR_FILES)
    config = read_config(joint, JointProcessorConfig).get("image_processor") if joint.is_file() else None
    if config is None:
        config = read_config(path, ProcessorConfig)
    with loading(path, "CLIPImageProcessor"):
        return CLIPImageProcessorPil.from_dict(config)


def save_clip(clip: ClipParts, folder: Path) -> None:
    """Write a CLIP in transformers layout, atomically."""
    with write_folder_atomically(folder) as temporary:
        clip.model.save_pretrained(temporary)
        clip.tokenizer.save_pretrained(temporary)
        clip.image_processor.save_pretrained(temporary)


def encode_images(model: CLIPModel, clip_pixel_values: Tensor) -> Tensor:
    """Encode images (B, 3, S, S), normalised for CLIP, as unit-norm float32 (B, P)."""
    return F.normalize(model.get_image_features(pixel_values=clip_pixel_values).pooler_output.float(), dim=-1)


def encode_text(model: CLIPModel, input_ids: Tensor) -> Tensor:
    """Encode captions, ids (B, L), at the first EOS as unit-norm float32 (B, P)."""
    return pooled_and_token_states(model, input_ids)[0]


def pooled_and_token_states(model: CLIPModel, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Encode captions in the joint space and token by token.

    input_ids (B, L) int64 are BOS, words, EOS, padding with EOS; the results are unit-norm float32 (B, P) at
    the first EOS, and final-norm hidden states (B, L, D).
    """
    features = model.get_text_features(input_ids=input_ids)
    return F.normalize(features.pooler_output.float(), dim=-1), features.last_hidden_state


def text_hidden_states(text_model: nn.Module, input_ids: Tensor) -> Tensor:
    """Return final-norm hidden states (B, L, D) of ids (B, L)."""
    return text_model(input_ids=input_ids).last_hidden_state


def empty_prompt_ids(tokenizer: CLIPTokenizer) -> Tensor:
    """Return the padded token ids of the empty prompt: (1, L) int64."""
    return tokenizer("", padding="max_length", return_tensors="pt").input_ids


def _refuse_other_models(folder: Path) -> None:
    model_type = read_config(folder / "config.json", Checked).get("model_type")
    if model_type != "clip":
        raise CheckpointError(
            f"{folder} is {kind_of(folder)}, not a CLIP: its config.json is of type {model_type!r}; a 'clip' "
            "with both towers is needed"
        )


def _check_image_size(folder: Path, side: int, processor: CLIPImageProcessorPil) -> None:
    crop = (processor.crop_size["height"], processor.crop_size["width"])
    if crop != (side, side):
        raise CheckpointError(
            f"{folder}: images are cut to {crop[0]} x {crop[1]} pixels ({PROCESSOR_FILES[-1]}), the vision "
            f"tower sees {side} x {side} (config.json); take both from one model's folder"
        )


def check_vocabulary(text_model: CLIPTextModel, tokenizer: CLIPTokenizer, path: Path) -> None:
    """Check that a text tower fits a tokenizer; `path` is for messages.

    Raises:
        CheckpointError: If the number of tokens, the EOS or the number of positions differs.
    """
    config = text_model.config
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer knows {len(tokenizer)} tokens, the text tower {config.vocab_size}; "
            "take both from one model's folder"
        )
    if config.eos_token_id not in (tokenizer.eos_token_id, LEGACY_EOS_TOKEN_ID):
        raise CheckpointError(
            f"{path}: eos_token_id is {tokenizer.eos_token_id} in the tokenizer and {config.eos_token_id} in "
            "the text tower; take both from one model's folder"
        )
    if tokenizer.model_max_length != config.max_position_embeddings:
        raise CheckpointError(
            f"{path}: the tokenizer cuts at {tokenizer.model_max_length} tokens, the text tower has "
            f"{config.max_position_embeddings} positions; take both from one model's folder"
        )


def _take_special_token_ids(model: CLIPModel, tokenizer: CLIPTokenizer) -> None:
    """Replace the special token ids 0, 2 and 1 of released configs."""
    # With an EOS of 2 transformers pools at the highest id instead.
    config = model.config.text_config
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = model.text_model.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
