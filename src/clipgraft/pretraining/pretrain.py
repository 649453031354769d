"""Train flatland's models from scratch: tokenizer, VAE, U-Net, CLIP, probe.

All but CLIP and tokenizer train on images drawn meanwhile. Finished parts are kept on resume; the part in
training resumes from its checkpoint.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from clipgraft.config import Recipe
from clipgraft.console import say
from clipgraft.data.batches import load_pixels
from clipgraft.data.crop_reader import KeptCrops
from clipgraft.data.dataset import CaptionDataset, CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.data.loader import CaptionedBatches
from clipgraft.data.transforms import load_crops
from clipgraft.device import choose_device, choose_mixed_precision, seed_everything
from clipgraft.evaluation.metrics.probe import Probe, load_probe, probe_accuracy, read_attributes, save_probe
from clipgraft.finetuning.validate import measure_retrieval
from clipgraft.flatland import draw_scenes, plain_captions, sample_scene
from clipgraft.flatland.writer import IMAGE_SIZE
from clipgraft.models.attention import ATTENTION
from clipgraft.models.clip import ClipParts, load_clip, save_clip
from clipgraft.models.flatland_config import (
    VOCAB_SIZE,
    build_clip,
    build_image_processor,
    build_scheduler,
    build_teacher,
    build_unet,
    build_vae,
)
from clipgraft.models.half_norms import keep_norms_in_half
from clipgraft.models.tokenizer import train_tokenizer
from clipgraft.models.weights import module_sha256, write_folder_atomically
from clipgraft.pretrain_settings import DenoiserSettings, DrawnSettings
from clipgraft.pretraining.autoencoder import decode_again, encode, reconstruction_psnr
from clipgraft.pretraining.drawing import Drawing, DrawnImages
from clipgraft.pretraining.drawn_batches import DrawnCrops, DrawnLabels, DrawnLatents
from clipgraft.pretraining.release import write_asset
from clipgraft.runs.run import StageResult
from clipgraft.settings import TrainSettings
from clipgraft.training.checkpoints import checksums_of_images
from clipgraft.training.objectives import (
    AttributeObjective,
    AutoencoderObjective,
    ContrastiveObjective,
    DenoisingObjective,
)
from clipgraft.training.trainer import Batches, fit

DRAWN_SEED = 360_360
"""Of the images drawn for VAE and U-Net; no other set has it."""
PROBE_SEED = 120_120
"""Of the images drawn for the probe; no other set has it."""
NUM_PROBE_TEST_IMAGES = 1000
RECONSTRUCTED_EVERY = 4
"""Every so many of the probe's images have been through the VAE, as all generated images have."""
NUM_SCALED = 1000
"""Images whose latents set the VAE's scaling factor."""


class PretrainResult(StageResult):
    """Figures of an embedded base."""

    stage: Literal["pretrain"] = "pretrain"
    num_images: int
    """Images drawn for the U-Net."""
    num_samples: int
    """Of the U-Net: images times passes over them."""
    vae_psnr_db: float
    """Mean over test images, encoded and decoded."""
    clip: dict[str, float] | None
    """Recall on the test split, as shares."""
    probe_accuracy: dict[str, float]
    """Shares by attribute, on images drawn like the test split."""


def pretrain(recipe: Recipe, folder: Path, *, resume: bool = False) -> PretrainResult:
    """Train flatland on drawn images, its CLIP on `recipe.data`'s train split.

    Args:
        recipe: Its seed, device, data and pretrain settings are read.
        folder: Gets `flatland/` (what the package ships), `metrics.json` and a folder for each part.
        resume: Continue where an earlier call stopped.
    """
    dataset = load_dataset(recipe.data)
    train = dataset.hold_train(recipe.data.max_train_images)
    tokenizer = train_tokenizer(
        (caption for image in train for caption in image.captions), vocab_size=VOCAB_SIZE
    )
    training = _Training(recipe, folder, choose_device(recipe.device), resume)
    vae = _train_vae(training).to(training.device)
    clip = _train_clip(training, train, plain_captions(Path(dataset.root)), tokenizer)
    probe = _train_probe(training, vae)
    unet, teacher = _train_unet(training, vae, tokenizer)
    result = _measure(recipe, dataset, vae, clip, probe)
    result.save(folder)
    write_asset(folder, recipe, result, vae=vae, unet=unet, teacher=teacher, clip=clip, probe=probe)
    return result


def _measure(
    recipe: Recipe, dataset: CaptionDataset, vae: AutoencoderKL, clip: ClipParts, probe: Probe
) -> PretrainResult:
    test = dataset.test[: recipe.data.max_test_images or None]
    drawn = recipe.pretrain.unet
    num_images = drawn.images_per_epoch * drawn.num_epochs
    scenes = [sample_scene(PROBE_SEED + 1, index, "test") for index in range(NUM_PROBE_TEST_IMAGES)]
    read = read_attributes(probe, torch.from_numpy(draw_scenes(scenes)))
    return PretrainResult(
        num_images=num_images,
        num_samples=num_images * drawn.passes,
        vae_psnr_db=reconstruction_psnr(vae, load_pixels(test, IMAGE_SIZE)),
        clip=measure_retrieval(clip, test, "recall"),
        probe_accuracy=probe_accuracy(read, torch.tensor([scene.labels for scene in scenes])),
    )


@dataclass(frozen=True)
class _Training:
    """Arguments of `fit` shared by all parts."""

    recipe: Recipe
    folder: Path
    device: torch.device
    resume: bool

    def begin(self) -> None:
        """Seed a part's initial weights, whatever was trained before it."""
        seed_everything(self.recipe.seed)

    def fit(
        self,
        name: str,
        objective: torch.nn.Module,
        batches: Batches,
        settings: TrainSettings,
        data: dict[str, str],
    ) -> None:
        """Train one part in a folder of its own."""
        if self.device.type == "cuda":
            keep_norms_in_half(objective)
        found = fit(
            objective.to(self.device),
            batches,
            settings,
            output_dir=self.folder / name,
            device=self.device,
            data=data,
            seed=self.recipe.seed,
            resume=self.resume,
            description=f"training {name}",
        )
        say(f"{name}: {found.num_steps} steps, {found.seconds:.0f} s in this process")

    @contextmanager
    def drawn(self, drawing: Drawing, settings: DrawnSettings) -> Iterator[DrawnImages]:
        """Draw images for as long as the context lasts."""
        images = DrawnImages(
            drawing,
            settings.images_per_epoch,
            num_epochs=settings.num_epochs,
            folder=self.folder / "drawn",
            num_workers=settings.num_workers,
        )
        try:
            yield images
        finally:
            images.close()

    def common(self, settings: DrawnSettings) -> dict[str, Any]:
        """Return arguments of `DrawnBatches`."""
        return {
            "passes": settings.passes,
            "batch_size": settings.batch_size,
            "seed": self.recipe.seed,
            "device": self.device,
        }


def _train_vae(training: _Training) -> AutoencoderKL:
    done = training.folder / "vae" / "model"
    if not done.is_dir():
        training.begin()
        settings, vae = training.recipe.pretrain.vae, build_vae()
        drawing = Drawing(DRAWN_SEED, "train", marks_subject=True)
        objective = AutoencoderObjective(vae, settings.kl_weight, subject_weight=settings.subject_weight)
        with training.drawn(drawing, settings) as images:
            batches = DrawnCrops(images, crop_size=settings.crop_size, **training.common(settings))
            training.fit("vae", objective, batches, settings, {"drawing": drawing.fingerprint})
        scenes = [sample_scene(DRAWN_SEED, index, "train") for index in range(NUM_SCALED)]
        # As in Rombach et al. 2022, section D.1: the factor that gives latents unit variance.
        latents = encode(vae.eval(), torch.from_numpy(draw_scenes(scenes)))
        vae.register_to_config(scaling_factor=1 / float(latents.std()))
        with write_folder_atomically(done) as temporary:
            vae.save_pretrained(temporary)
    return AutoencoderKL.from_pretrained(done)


def _train_unet(
    training: _Training, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    done = training.folder / "unet" / "model"
    if not done.is_dir():
        training.begin()
        settings = training.recipe.pretrain.unet
        objective = denoising_objective(settings, tokenizer, training.device)
        drawing = Drawing(DRAWN_SEED, "train", tokenizer=tokenizer.backend_tokenizer.to_str())
        checksums = {"drawing": drawing.fingerprint, "VAE": module_sha256(vae)}

        def scaled_latents(pixels: Tensor) -> Tensor:
            return encode(vae, pixels) * vae.config.scaling_factor

        with training.drawn(drawing, settings) as images:
            batches = DrawnLatents(images, encode=scaled_latents, **training.common(settings))
            training.fit("unet", objective, batches, settings, checksums)
        with write_folder_atomically(done) as temporary:
            objective.unet.save_pretrained(temporary / "unet")
            objective.text_encoder.save_pretrained(temporary / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(done / "unet")
    return unet, CLIPTextModel.from_pretrained(done / "text_encoder")


def denoising_objective(
    settings: DenoiserSettings, tokenizer: CLIPTokenizer, device: torch.device
) -> DenoisingObjective:
    """Return a new U-Net with its text encoder, to be trained."""
    unet, teacher = build_unet(), build_teacher(tokenizer)
    if device.type == "cpu" and choose_mixed_precision(settings.mixed_precision, device) == "bf16":
        # Torch's fused attention makes a step 1.35 times as long in bfloat16, and 0.89 times in float32
        # (benchmarks/bench_pretraining.py).
        unet.set_attn_processor(AttnProcessor())
        teacher.set_attn_implementation(ATTENTION)
    return DenoisingObjective(
        unet,
        teacher,
        alphas_cumprod=build_scheduler().alphas_cumprod,
        empty_input_ids=tokenizer("", padding="max_length", return_tensors="pt").input_ids[0],
        caption_drop=settings.caption_drop,
        snr_gamma=settings.snr_gamma,
    )


def _train_clip(
    training: _Training, images: CaptionedImages, plain: dict[str, str], tokenizer: CLIPTokenizer
) -> ClipParts:
    done = training.folder / "clip" / "model"
    if not done.is_dir():
        training.begin()
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
        checksums = checksums_of_images({"train": images})
        training.fit("clip", ContrastiveObjective(clip.model), batches, settings, checksums)
        save_clip(clip, done)
    return load_clip(done)


def _train_probe(training: _Training, vae: AutoencoderKL) -> Probe:
    done = training.folder / "probe" / "probe.safetensors"
    if not done.is_file():
        training.begin()
        settings, probe = training.recipe.pretrain.probe, Probe()
        # "test" scenes, because the probe has to know held-out combinations when it sees them.
        drawing = Drawing(PROBE_SEED, "test")
        checksums = {"drawing": drawing.fingerprint, "VAE": module_sha256(vae)}

        def with_reconstructed(pixels: Tensor) -> Tensor:
            pixels = pixels.clone()
            pixels[::RECONSTRUCTED_EVERY] = decode_again(vae, pixels[::RECONSTRUCTED_EVERY])
            return pixels

        with training.drawn(drawing, settings) as images:
            batches = DrawnLabels(images, change=with_reconstructed, **training.common(settings))
            training.fit("probe", AttributeObjective(probe), batches, settings, checksums)
        save_probe(probe, done)
    return load_probe(done)
