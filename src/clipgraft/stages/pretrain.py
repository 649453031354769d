"""Train an embedded base from nothing: tokenizer, VAE, U-Net with its text encoder, and a CLIP to start from.

Each part is saved when it is done and taken as it is on resume; the part at work resumes from its checkpoint.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from clipgraft.config import Recipe, TrainSettings
from clipgraft.data.cache import CropBatches, LatentBatches, from_uint8, load_pixels
from clipgraft.data.flatland import plain_captions
from clipgraft.data.loader import make_loader
from clipgraft.data.records import CaptionedImage, Source
from clipgraft.data.transforms import encode_captions
from clipgraft.models.clip import ClipParts, save_clip
from clipgraft.models.flatland import (
    IMAGE_SIZE,
    VOCAB_SIZE,
    build_clip,
    build_image_processor,
    build_scheduler,
    build_teacher,
    build_unet,
    build_vae,
)
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.progress import track
from clipgraft.runtime import choose_device, seed_everything, write_json
from clipgraft.stages.data import load_source, select
from clipgraft.stages.finetune import EpochBatches, measure_retrieval
from clipgraft.stages.fitting import fit_stage
from clipgraft.training.loop import Batches, FitResult
from clipgraft.training.objectives import AutoencoderObjective, ContrastiveObjective, DenoisingObjective

ENCODE_BATCH_SIZE = 32


def pretrain(recipe: Recipe, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train flatland on the train split of `recipe.data`.

    Args:
        recipe: Its seed, device, data and pretrain settings are read.
        folder: Gets `base/` (diffusers layout), `clip/`, `metrics.json` and a folder for each part at work.
        resume: Go on where an earlier call stopped.

    Returns:
        The metrics that were written.
    """
    device = choose_device(recipe.device)
    source = load_source(recipe.data)
    train = select(source, "train", recipe.data.max_train_images)
    test = select(source, "test", recipe.data.max_test_images)
    seed_everything(recipe.seed)
    tokenizer = train_tokenizer(
        (caption for image in train for caption in image.captions), vocab_size=VOCAB_SIZE
    )
    pixels = load_pixels(train, IMAGE_SIZE)
    training = _Training(recipe, folder, source, device, resume)
    vae = _train_vae(training, pixels).to(device)
    psnr = reconstruction_psnr(vae, load_pixels(test, IMAGE_SIZE))
    latents = _cached_latents(vae, pixels, folder / "latents.safetensors")
    unet, text_encoder = _train_unet(training, latents, train, tokenizer)
    _save_base(folder / "base", vae, unet, text_encoder, tokenizer)
    clip = _train_clip(training, source, train, tokenizer)
    metrics = {"vae_psnr_db": psnr, "clip": measure_retrieval(clip, test, "recall"), "num_images": len(train)}
    write_json(folder / "metrics.json", metrics)
    return metrics


class _Training:
    """What `fit` is told the same way for every part."""

    def __init__(self, recipe: Recipe, folder: Path, source: Source, device: torch.device, resume: bool):
        self.recipe, self.folder, self.source = recipe, folder, source
        self.device, self.resume = device, resume

    def fit(
        self,
        name: str,
        objective: torch.nn.Module,
        batches: Batches,
        settings: TrainSettings,
        ema_decay: float = 0.0,
    ) -> FitResult:
        """Train one part in a folder of its own."""
        return fit_stage(
            f"training {name}",
            objective.to(self.device),
            batches,
            settings,
            folder=self.folder / name,
            device=self.device,
            source_fingerprint=self.source.fingerprint,
            seed=self.recipe.seed,
            resume=self.resume,
            ema_decay=ema_decay,
        )


def _train_vae(training: _Training, pixels: Tensor) -> AutoencoderKL:
    done = training.folder / "vae" / "model"
    if not done.is_dir():
        settings = training.recipe.pretrain.vae
        vae = build_vae()
        batches = CropBatches(
            pixels, crop_size=settings.crop_size, batch_size=settings.batch_size, seed=training.recipe.seed
        )
        training.fit("vae", AutoencoderObjective(vae, settings.kl_weight), batches, settings)
        # As in Rombach et al. 2022, section D.1: the factor that gives latents unit variance.
        vae.register_to_config(scaling_factor=1 / float(encode(vae, pixels[:1000]).std()))
        vae.save_pretrained(done)
    return AutoencoderKL.from_pretrained(done)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode uint8 pixels (N, 3, H, W) to the posterior's mean, (N, 4, H / 8, W / 8) unscaled, on the CPU."""
    vae.eval()
    batches = pixels.split(ENCODE_BATCH_SIZE)
    means = []
    with track("encoding latents", len(pixels)) as update:
        for index, batch in enumerate(batches):
            means.append(vae.encode(from_uint8(batch).to(vae.device)).latent_dist.mean.cpu())
            update(index * ENCODE_BATCH_SIZE + len(batch), "images")
    return torch.cat(means).contiguous()


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio of encoding and decoding them, in dB.

    Args:
        vae: The autoencoder.
        pixels: (N, 3, H, W) uint8.

    Returns:
        Mean of 10 log10(255^2 / squared error), on 8-bit pixels.
    """
    ratios = []
    for batch in pixels.split(ENCODE_BATCH_SIZE):
        decoded = vae.decode(vae.encode(from_uint8(batch).to(vae.device)).latent_dist.mean).sample.cpu()
        error = ((decoded + 1) * 127.5).round().clamp(0, 255) - batch.float()
        ratios.append(10 * torch.log10(255**2 / error.square().mean((1, 2, 3))))
    return float(torch.cat(ratios).mean())


def _cached_latents(vae: AutoencoderKL, pixels: Tensor, path: Path) -> Tensor:
    if not path.is_file():
        save_file({"latents": encode(vae, pixels) * vae.config.scaling_factor}, path)
    return load_file(path)["latents"]


def _train_unet(
    training: _Training, latents: Tensor, images: Sequence[CaptionedImage], tokenizer: CLIPTokenizer
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    done = training.folder / "unet" / "model"
    if not done.is_dir():
        settings = training.recipe.pretrain.unet
        empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
        objective = DenoisingObjective(
            build_unet(),
            build_teacher(tokenizer),
            alphas_cumprod=build_scheduler().alphas_cumprod,
            empty_input_ids=empty,
            caption_drop=settings.caption_drop,
            snr_gamma=settings.snr_gamma,
        )
        batches = LatentBatches(
            latents,
            [encode_captions(image.captions, tokenizer)[0] for image in images],
            eos_token_id=tokenizer.eos_token_id,
            context_length=tokenizer.model_max_length,
            batch_size=settings.batch_size,
            seed=training.recipe.seed,
        )
        training.fit("unet", objective, batches, settings, ema_decay=settings.ema_decay)
        objective.unet.save_pretrained(done / "unet")
        objective.text_encoder.save_pretrained(done / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(done / "unet")
    return unet, CLIPTextModel.from_pretrained(done / "text_encoder")


def _save_base(
    folder: Path,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> None:
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def _train_clip(
    training: _Training, source: Source, images: Sequence[CaptionedImage], tokenizer: CLIPTokenizer
) -> ClipParts:
    settings, recipe = training.recipe.pretrain.clip, training.recipe
    clip = ClipParts(build_clip(tokenizer), tokenizer, build_image_processor())
    plain = plain_captions(source.root)
    loader = make_loader(
        [replace(image, captions=(plain[image.image_id],)) for image in images],
        tokenizer=tokenizer,
        processor=clip.image_processor,
        batch_size=settings.batch_size,
        seed=recipe.seed,
    )
    batches = EpochBatches(loader, len(images), settings.batch_size)
    training.fit("clip", ContrastiveObjective(clip.model), batches, settings)
    save_clip(clip, training.folder / "clip" / "model")
    return clip
