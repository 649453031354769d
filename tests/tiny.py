"""Builders of tiny real components: the real classes, so small that a test takes a second."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from clipgraft.models.base import FrozenBase
from clipgraft.models.clip import ClipParts, save_clip
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.settings import TrainSettings
from clipgraft.training import trainer

CAPTIONS = (
    "A dog runs on the beach .",
    "A red ball lies in the green park .",
    "Two children play with a kite at sunset .",
    "A black cat sits beside a white horse .",
    "A man rides a bicycle along the street .",
)
TEXT_WIDTH, TEACHER_WIDTH, IMAGE_SIZE = 16, 24, 32


def build_tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS * 2, vocab_size=700)


def build_spelling_tokenizer() -> CLIPTokenizer:
    """A real CLIP tokenizer that spells: one token for each letter."""
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocab[letter], vocab[f"{letter}</w>"] = len(vocab), len(vocab) + 1
    return CLIPTokenizer(vocab=vocab, merges=[])


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=8,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_clip(seed: int = 0) -> ClipParts:
    """A CLIP whose text tower is 16 wide and whose vision tower is as wide as the tiny base's teacher."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=TEACHER_WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=16,
        projection_dim=8,
    )
    config = CLIPConfig(
        text_config=text_config(tokenizer, TEXT_WIDTH).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=8,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return ClipParts(CLIPModel(config), tokenizer, processor)


def build_pipeline(seed: int = 1, width: int = TEACHER_WIDTH) -> StableDiffusionPipeline:
    """A latent diffusion model of Stable Diffusion's classes with a text encoder `width` wide."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=width,
        norm_num_groups=4,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text_config(tokenizer, width)),
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_base() -> FrozenBase:
    stock = build_pipeline()
    return FrozenBase(stock.vae, stock.unet, stock.scheduler, stock.tokenizer, stock.text_encoder)


def build_controlnet(
    unet: UNet2DConditionModel, seed: int = 5, channels: tuple[int, ...] = (4, 4, 4, 4)
) -> ControlNetModel:
    """A ControlNet of a U-Net; what is zero before training is random."""
    torch.manual_seed(seed)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=channels)
    last = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for layer in [*last, controlnet.controlnet_cond_embedding.conv_out]:
        torch.nn.init.normal_(layer.weight, std=0.3)
    return controlnet


def _published(projection: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of an IP-Adapter's projection under their published names."""
    weights, names = (
        dict(projection.state_dict()),
        {
            **{"attn.to_q": "0.to_q", "attn.to_out.0": "0.to_out", "ln0": "0.norm1", "ln1": "0.norm2"},
            **{"ff.0": "1.0", "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3"},
        },
    )
    for key in [name for name in weights if "attn.to_k" in name]:
        pair = weights.pop(key), weights.pop(key.replace("to_k", "to_v"))
        weights[key.replace("attn.to_k", "0.to_kv")] = torch.cat(pair)
    for old, new in names.items():
        weights = {name.replace(f".{old}.", f".{new}."): weight for name, weight in weights.items()}
    return {f"image_proj.{name}": weight.contiguous() for name, weight in weights.items()}


def write_ip_adapter(folder: Path, unet: UNet2DConditionModel, *, is_plus: bool = False) -> Path:
    """An IP-Adapter in its published layout, with an image encoder beside it."""
    torch.manual_seed(6)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=16,
        projection_dim=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")
    width = unet.config.cross_attention_dim
    if is_plus:
        projection: nn.Module = IPAdapterPlusImageProjection(16, width, 64, heads=1, num_queries=3)
    else:
        projection = nn.ModuleDict({"proj": nn.Linear(8, 4 * width), "norm": nn.LayerNorm(width)})
    weights = _published(projection)
    crossed = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    for number, module in enumerate(crossed):
        for part in ("k", "v"):
            weight = torch.randn(module.inner_dim, width)
            weights[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = weight
    save_file(weights, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def write_clip(folder: Path, seed: int = 0) -> Path:
    save_clip(build_clip(seed), folder)
    return folder


def write_base(folder: Path, seed: int = 1, width: int = TEACHER_WIDTH) -> Path:
    build_pipeline(seed, width).save_pretrained(folder)
    return folder


def write_inpainting_base(folder: Path) -> Path:
    """A base whose U-Net also takes a mask and the latents of what that leaves; else as `write_base`."""
    pipeline = build_pipeline()
    torch.manual_seed(7)
    unet = UNet2DConditionModel.from_config(pipeline.unet.config, in_channels=9)
    weights = pipeline.unet.state_dict() | {"conv_in.weight": unet.conv_in.weight}
    unet.load_state_dict(weights)
    pipeline.unet = unet
    pipeline.save_pretrained(folder)
    return folder


def build_safety_checker(threshold: float) -> StableDiffusionSafetyChecker:
    """One that blocks what is nearer to any concept than a cosine of `threshold`."""
    torch.manual_seed(4)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32
    )
    config = CLIPConfig(vision_config=vision.to_dict(), projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(threshold)
    checker.special_care_embeds_weights.data.fill_(2.0)
    return checker


def write_checked_base(folder: Path, threshold: float) -> Path:
    pipeline = build_pipeline()
    size = {"height": 32, "width": 32}
    pipeline.register_modules(
        safety_checker=build_safety_checker(threshold),
        feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size),
    )
    pipeline.save_pretrained(folder)
    return folder


def write_flickr8k(folder: Path, num_images: int = 24) -> Path:
    """Coloured squares with five captions each in Flickr8k's official layout; two thirds are for training."""
    (folder / "Images").mkdir(parents=True)
    names = [f"{index:04d}.jpg" for index in range(num_images)]
    lines = []
    for index, name in enumerate(names):
        color = tuple((index * step) % 256 for step in (37, 91, 151))
        Image.new("RGB", (40, 32), color).save(folder / "Images" / name)
        lines += [f"{name}#{k}\t{CAPTIONS[(index + k) % 5]} {index}" for k in range(5)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    sixth = num_images // 6
    splits = {"train": names[: -2 * sixth], "dev": names[-2 * sixth : -sixth], "test": names[-sixth:]}
    for split, members in splits.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("\n".join(members) + "\n")
    return folder


def halve(folder: Path) -> None:
    """Add weights in half precision beside those in full, named as published ones are."""
    for path in list(folder.rglob("*.safetensors")):
        weights = {name: weight.half() for name, weight in load_file(path).items()}
        save_file(weights, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})


def shard(folder: Path, stem: str) -> None:
    """Split a model's weights into two files with an index, as large ones are published."""
    path = folder / f"{stem}.safetensors"
    weights = load_file(path)
    names = sorted(weights)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file_name = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file_name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file_name)
    (folder / f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    path.unlink()


def fit(objective, batches, *, run_dir, **settings):
    """`trainer.fit` with the fields of its settings as arguments, in float32 by default."""
    fields = TrainSettings.model_fields.keys() & settings.keys()
    given = {"mixed_precision": "no"} | {name: settings.pop(name) for name in fields}
    return trainer.fit(objective, batches, TrainSettings(**given), output_dir=run_dir, **settings)
