"""Checkpoints of Stable Diffusion v1.5's and CLIP B/32's exact architecture, with random weights.

The weights are drawn small and fast: what is tested with them is shapes, names, memory and time.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
)

from clipgraft.models import single_file as sd15
from clipgraft.models.ldm_names import to_ldm
from clipgraft.models.tokenizer import train_tokenizer
from tiny import CAPTIONS

VOCAB_SIZE = 49408
NUM_PARAMETERS = {
    "unet": 859_520_964,
    "vae": 83_653_863,
    "text_encoder": 123_060_480,
    "clip": 151_277_313,
}


def build_tokenizer(captions: Sequence[str] = CAPTIONS * 2, num_words: int = 700) -> CLIPTokenizer:
    """A tokenizer of CLIP's size and ids: BOS 49406, EOS 49407; its words are learned from captions."""
    small = train_tokenizer(captions, vocab_size=num_words)
    model = json.loads(small.backend_tokenizer.to_str())["model"]
    words = [token for token in model["vocab"] if token not in (small.bos_token, small.eos_token)]
    words += [f"<{index}>" for index in range(VOCAB_SIZE - 2 - len(words))]
    vocab = {token: index for index, token in enumerate([*words, small.bos_token, small.eos_token])}
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def write_clip_b32(folder: Path) -> Path:
    """Write a CLIP B/32 in float32, 0.6 GB."""
    model = build_random(lambda: CLIPModel(CLIPConfig()), torch.float32)
    with torch.no_grad():
        model.logit_scale.fill_(model.config.logit_scale_init_value)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil().save_pretrained(folder)
    return folder


def write_sd15_checkpoint(folder: Path, dtype: torch.dtype) -> Path:
    """Write Stable Diffusion v1.5 in the hub's layout: 4.3 GB in float32, half of it in half precision."""
    builders: dict[str, Callable[[], Any]] = {
        "unet": lambda: UNet2DConditionModel.from_config(sd15.UNET_CONFIG),
        "vae": lambda: AutoencoderKL.from_config(sd15.VAE_CONFIG),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)),
    }
    for name, builder in builders.items():
        build_random(builder, dtype).save_pretrained(folder / name)
    PNDMScheduler.from_config(sd15.SCHEDULER_CONFIG).save_pretrained(folder / "scheduler")
    build_tokenizer().save_pretrained(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_sd15_controlnet(folder: Path, dtype: torch.dtype) -> Path:
    """Write a ControlNet of Stable Diffusion v1.5's shape: 1.4 GB in float32."""
    names = ("down_block_types", "block_out_channels", "attention_head_dim", "cross_attention_dim")
    config = {name: sd15.UNET_CONFIG[name] for name in names}
    build_random(lambda: ControlNetModel(**config), dtype).save_pretrained(folder)
    return folder


def write_single_file(folder: Path, path: Path) -> Path:
    """Write a base's U-Net, VAE and text encoder as one file with LDM's names."""
    weights = {}
    for name in ("unet", "vae", "text_encoder"):
        config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        found = load_file(next((folder / name).glob("*.safetensors")))
        weights |= to_ldm(
            name, {key.removeprefix("text_model."): weight for key, weight in found.items()}, config
        )
    length = weights["cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"].shape[0]
    positions = torch.arange(length)[None]
    weights["cond_stage_model.transformer.text_model.embeddings.position_ids"] = positions
    save_file(weights, path)
    return path


def build_random(builder: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    """Build a model without its own slow initialisation, and draw weights at a scale that stays finite."""
    with torch.device("meta"):
        model = builder()
    model = model.to(dtype).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        _draw(name, parameter.data, generator)
    for name, buffer in model.named_buffers():
        assert name.endswith("position_ids"), name
        buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))
    return model.eval()


def _draw(name: str, values: Tensor, generator: torch.Generator) -> None:
    """Ones for the norms, zeros for biases, else uniform values of variance 1 / fan-in."""
    if values.ndim < 2:
        values.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return
    bound = (3.0 / values[0].numel()) ** 0.5
    values.uniform_(-bound, bound, generator=generator)
