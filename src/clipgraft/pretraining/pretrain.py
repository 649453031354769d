"""Train flatland's models from scratch: tokenizer, VAE, U-Net, CLIP, probe.

Finished parts are kept on resume; the part in training resumes from its checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from clipgraft.config import Recipe
from clipgraft.console import track
from clipgraft.data.batches import (
    CropBatches,
    LabelledBatches,
    LatentBatches,
    from_uint8,
    load_pixels,
    to_uint8,
)
from clipgraft.data.crop_reader import KeptCrops
from clipgraft.data.dataset import CaptionedImage, CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.data.loader import CaptionedBatches
from clipgraft.data.transforms import encode_captions, load_crops
from clipgraft.device import choose_device, seed_everything
from clipgraft.evaluation.metrics.probe import Probe, load_probe, probe_accuracy, read_attributes, save_probe
from clipgraft.finetuning.validate import measure_retrieval
from clipgraft.flatland import draw_scenes, is_known_to_teacher, plain_captions, sample_scene
from clipgraft.models.clip import ClipParts, load_clip, save_clip
from clipgraft.models.flatland_config import (
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
from clipgraft.models.weights import write_folder_atomically, write_tensors
from clipgraft.pretraining.release import write_asset
from clipgraft.runs.run import StageResult
from clipgraft.settings import TrainSettings
from clipgraft.training.checkpoints import sums_of_images
from clipgraft.training.objectives import (
    AttributeObjective,
    AutoencoderObjective,
    ContrastiveObjective,
    DenoisingObjective,
)
from clipgraft.training.trainer import Batches, FitResult, fit

ENCODE_BATCH_SIZE = 32
PROBE_SEED = 120_120
"""Of the images drawn for the probe; no other set has it."""
NUM_PROBE_TEST_IMAGES = 1000
RECONSTRUCTED_EVERY = 4
"""Every so many of the probe's images have been through the VAE, as all generated images have."""


class PretrainResult(StageResult):
    """Figures of an embedded base."""

    stage: Literal["pretrain"] = "pretrain"
    num_images: int
    vae_psnr_db: float
    """Mean over test images, encoded and decoded."""
    clip: dict[str, float] | None
    """Recall on the test split, as shares."""
    probe_accuracy: dict[str, float]
    """Shares by attribute, on images drawn like the test split."""


def pretrain(recipe: Recipe, folder: Path, *, resume: bool = False) -> PretrainResult:
    """Train flatland on the train split of `recipe.data`.

    Args:
        recipe: Its seed, device, data and pretrain settings are read.
        folder: Gets `flatland/` (what the package ships), `metrics.json` and a folder for each part.
        resume: Continue where an earlier call stopped.
    """
    dataset = load_dataset(recipe.data)
    train = dataset.hold_train(recipe.data.max_train_images)
    test = dataset.test[: recipe.data.max_test_images or None]
    plain = plain_captions(Path(dataset.root))
    seed_everything(recipe.seed)
    tokenizer = train_tokenizer(
        (caption for image in train for caption in image.captions), vocab_size=VOCAB_SIZE
    )
    pixels = load_pixels(train, IMAGE_SIZE)
    sums = sums_of_images({"train": train})
    training = _Training(recipe, folder, sums, choose_device(recipe.device), resume)
    vae = _train_vae(training, pixels).to(training.device)
    psnr = reconstruction_psnr(vae, load_pixels(test, IMAGE_SIZE))
    latents = _cached_latents(vae, pixels, folder / "latents.safetensors")
    unet, teacher = _train_unet(training, latents, _captions_of_teacher(train, plain), tokenizer)
    clip = _train_clip(training, train, plain, tokenizer)
    probe = _train_probe(training, vae)
    result = PretrainResult(
        num_images=len(train),
        vae_psnr_db=psnr,
        clip=measure_retrieval(clip, test, "recall"),
        probe_accuracy=_test_probe(probe),
    )
    result.save(folder)
    write_asset(folder, recipe, result, vae=vae, unet=unet, teacher=teacher, clip=clip, probe=probe)
    return result


@dataclass(frozen=True)
class _Training:
    """Arguments of `fit` shared by all parts."""

    recipe: Recipe
    folder: Path
    sums: dict[str, str]
    """Fingerprints of the training images and captions."""
    device: torch.device
    resume: bool

    def fit(
        self,
        name: str,
        objective: torch.nn.Module,
        batches: Batches,
        settings: TrainSettings,
    ) -> FitResult:
        """Train one part in a folder of its own."""
        return fit(
            objective.to(self.device),
            batches,
            settings,
            output_dir=self.folder / name,
            device=self.device,
            data=self.sums,
            seed=self.recipe.seed,
            resume=self.resume,
            description=f"training {name}",
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
        with write_folder_atomically(done) as temporary:
            vae.save_pretrained(temporary)
    return AutoencoderKL.from_pretrained(done)


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode uint8 pixels (N, 3, H, W) to unscaled latents (N, 4, H/8, W/8)."""
    vae.eval()
    batches = pixels.split(ENCODE_BATCH_SIZE)
    means = []
    with track("encoding latents", len(pixels)) as update:
        for index, batch in enumerate(batches):
            means.append(vae.encode(from_uint8(batch).to(vae.device)).latent_dist.mean.cpu())
            update(index * ENCODE_BATCH_SIZE + len(batch), "images")
    return torch.cat(means).contiguous()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode and decode uint8 pixels (N, 3, H, W), on the CPU."""
    decoded = []
    with track("reconstructing images", len(pixels)) as update:
        for batch in pixels.split(ENCODE_BATCH_SIZE):
            latents = vae.encode(from_uint8(batch).to(vae.device)).latent_dist.mean
            decoded.append(to_uint8(vae.decode(latents).sample.cpu()))
            update(min(len(decoded) * ENCODE_BATCH_SIZE, len(pixels)), "images")
    return torch.cat(decoded)


def reconstruction_psnr(vae: AutoencoderKL, pixels: Tensor) -> float:
    """Mean PSNR in dB of uint8 pixels (N, 3, H, W), encoded and decoded."""
    error = (reconstruct(vae, pixels).float() - pixels.float()).square().mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / error)).mean())


def _cached_latents(vae: AutoencoderKL, pixels: Tensor, path: Path) -> Tensor:
    if not path.is_file():
        write_tensors(path, {"latents": encode(vae, pixels) * vae.config.scaling_factor})
    return load_file(path)["latents"]


def _captions_of_teacher(images: Sequence[CaptionedImage], plain: dict[str, str]) -> list[tuple[str, ...]]:
    """Captions without the words held out from the teacher."""
    return [
        tuple(text for text in image.captions if is_known_to_teacher(text)) or (plain[image.image_id],)
        for image in images
    ]


def _train_unet(
    training: _Training, latents: Tensor, captions: Sequence[tuple[str, ...]], tokenizer: CLIPTokenizer
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
            [encode_captions(texts, tokenizer)[0] for texts in captions],
            eos_token_id=tokenizer.eos_token_id,
            context_length=tokenizer.model_max_length,
            batch_size=settings.batch_size,
            seed=training.recipe.seed,
        )
        training.fit("unet", objective, batches, settings)
        with write_folder_atomically(done) as temporary:
            objective.unet.save_pretrained(temporary / "unet")
            objective.text_encoder.save_pretrained(temporary / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(done / "unet")
    return unet, CLIPTextModel.from_pretrained(done / "text_encoder")


def _train_clip(
    training: _Training, images: Sequence[CaptionedImage], plain: dict[str, str], tokenizer: CLIPTokenizer
) -> ClipParts:
    done = training.folder / "clip" / "model"
    if not done.is_dir():
        settings = training.recipe.pretrain.clip
        clip = ClipParts(build_clip(tokenizer), tokenizer, build_image_processor())
        batches = CaptionedBatches(
            CaptionedImages(replace(image, captions=(plain[image.image_id],)) for image in images),
            KeptCrops(images, load_crops(images, clip.image_processor)),
            tokenizer=tokenizer,
            processor=clip.image_processor,
            batch_size=settings.batch_size,
            seed=training.recipe.seed,
        )
        training.fit("clip", ContrastiveObjective(clip.model), batches, settings)
        save_clip(clip, done)
    return load_clip(done)


def _train_probe(training: _Training, vae: AutoencoderKL) -> Probe:
    done = training.folder / "probe" / "probe.safetensors"
    if not done.is_file():
        settings, probe = training.recipe.pretrain.probe, Probe()
        # "test" scenes, because the probe has to know held-out combinations when it sees them.
        scenes = [sample_scene(PROBE_SEED, index, "test") for index in range(settings.num_images)]
        pixels = torch.from_numpy(draw_scenes(scenes))
        pixels[::RECONSTRUCTED_EVERY] = reconstruct(vae, pixels[::RECONSTRUCTED_EVERY])
        labels = torch.tensor([scene.labels for scene in scenes])
        batches = LabelledBatches(pixels, labels, batch_size=settings.batch_size, seed=training.recipe.seed)
        training.fit("probe", AttributeObjective(probe), batches, settings)
        save_probe(probe, done)
    return load_probe(done)


def _test_probe(probe: Probe) -> dict[str, float]:
    """Accuracy on new images drawn like flatland8k's test split."""
    scenes = [sample_scene(PROBE_SEED + 1, index, "test") for index in range(NUM_PROBE_TEST_IMAGES)]
    read = read_attributes(probe, torch.from_numpy(draw_scenes(scenes)))
    return probe_accuracy(read, torch.tensor([scene.labels for scene in scenes]))
