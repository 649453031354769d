"""Refine a graft on images, through the frozen U-Net."""

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import mean
from types import MappingProxyType

import numpy as np
from pydantic import Field

from clipgraft.bridging.fit import origins, stage_output
from clipgraft.bridging.latents import LatentImages, encode_images
from clipgraft.bridging.refine_objective import RefineObjective
from clipgraft.config import Recipe, build_recipe
from clipgraft.console import print_line
from clipgraft.data.batches import LatentBatches
from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import encode_captions, tokenize
from clipgraft.device import PRECISION_DTYPES, choose_device, put_back, quiet_libraries, seed_everything
from clipgraft.errors import CheckpointError, UserError
from clipgraft.evaluation.metrics.noise_error import noise_pred_errors
from clipgraft.files import fingerprint
from clipgraft.models.base import FrozenBase
from clipgraft.models.configs import LATENT_CHANNELS
from clipgraft.models.graft import Graft, GraftResult
from clipgraft.models.lineage import Lineage, Stage
from clipgraft.models.weights import module_sha256, tensors_sha256
from clipgraft.settings import RefineSettings
from clipgraft.training.checkpoints import checksum_of_tokenizer
from clipgraft.training.optim import merge_lora, train_bridge_and_last_layers
from clipgraft.training.trainer import fit, settle_precision


class RefineResult(GraftResult):
    """Errors of predicted noise against the teacher's on test images, by timestep."""

    stage: str = "refine"
    before: dict[str, float | None]
    """0 = the teacher's own prediction, 1 = no text at all."""
    after: dict[str, float | None]
    num_steps: int
    seconds: float
    epoch_mean_loss: list[float | None]
    num_train_images: int
    mixed_precision: str
    damaged: dict[str, str] = Field(default_factory=dict)
    """Image id -> reason, of photographs that were skipped."""

    def print(self) -> None:
        """Print the predicted noise's error before and after in one line."""
        before, after = (
            mean(float("nan") if error is None else error for error in errors.values())
            for errors in (self.before, self.after)
        )
        print_line(
            f"error of the predicted noise against the teacher's: {before:.3f} -> {after:.3f} "
            "(0 is the teacher's own, 1 is no text at all)"
        )


def refine(
    graft: Graft,
    base: FrozenBase,
    data: CaptionDataset,
    *,
    output_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    seed: int = 0,
    device: str = "auto",
    settings: RefineSettings | None = None,
    recipe: Recipe | None = None,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
    started_from: str = "",
    **overrides: object,
) -> RefineResult:
    """Train a graft's bridge and optionally its last text layers on images.

    Arguments not listed are those of `fit_bridge`.

    Args:
        graft: The graft; a copy is trained.
        base: With all components, used in their own dtypes; bfloat16 is enough, as they are frozen.
        data: Dataset with a train split; errors are measured on some test (else train) images.
        output_dir: Gets `graft/`, `metrics.json`, `recipe.toml`, `log.jsonl` and `checkpoints/`; None =
            nothing is written but the cache of latents.
        started_from: Folder of the graft, for the lineage.
        **overrides: Fields of `RefineSettings`, over `settings`.

    Returns:
        Errors before and after, and `.graft`.

    Raises:
        UserError: If there is no training image or no loss with a weight, or a setting is unknown.
        CheckpointError: If the base is another one or predicts no noise, or a resumed run's graft is another.
    """
    quiet_libraries()
    if recipe is None:
        recipe = build_recipe({"seed": seed, "device": device, "data": data.origin, **origins(base=base)})
        settings = settings or RefineSettings(num_epochs=1)
    settings = (settings or recipe.refine).updated(overrides)
    check_settings(settings)
    recipe = with_lineage(recipe.model_copy(update={"refine": settings}), graft.lineage)
    graft = replace(graft, text_encoder=deepcopy(graft.text_encoder))
    lent = base.modules.values()
    with stage_output(output_dir, recipe, "refine", inputs, resume, overwrite) as folder, put_back(*lent):
        result = _refine(graft, base, data, recipe, folder, resume)
        stage = Stage(
            stage="refine",
            recipe=recipe,
            started_from=started_from,
            figures={"before": result.before, "after": result.after},
            counts={"num_train_images": result.num_train_images},
        )
        graft.lineage = Lineage(stages=(*graft.lineage.stages, stage))
        result._graft = graft
        if output_dir is not None:
            graft.save_pretrained(folder / "graft")
            result.save(folder)
    return result


def refine_recipe(
    recipe: Recipe,
    graft_dir: Path,
    output_dir: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
) -> RefineResult:
    """Refine a graft with a recipe's base and dataset; see `refine`."""
    quiet_libraries()
    check_settings(recipe.refine)
    graft = Graft.from_pretrained(graft_dir)
    device, name = choose_device(recipe.device), recipe.refine.mixed_precision
    base = FrozenBase.load(
        recipe.base.name,
        revision=recipe.base.revision,
        dtype=PRECISION_DTYPES[settle_precision(name, device, output_dir if resume else None)],
        tokenizer=graft.tokenizer,
    )
    return refine(
        graft,
        base,
        load_dataset(recipe.data),
        output_dir=output_dir,
        resume=resume,
        overwrite=overwrite,
        recipe=recipe,
        inputs={**inputs, "--graft": graft_dir},
        started_from=str(graft_dir.absolute()),
    )


def _refine(
    graft: Graft, base: FrozenBase, data: CaptionDataset, recipe: Recipe, folder: Path, resume: bool
) -> RefineResult:
    settings, device = recipe.refine, choose_device(recipe.device)
    base.check_record(graft.base)
    check_prediction(base)
    for module in base.modules.values():
        module.to(device)
    images = encode_images(data, base, recipe.data, crop=settings.crop)
    if base.vae is not None:
        base.vae.cpu()  # frees a GPU's memory for the training
    checksums = _checksums(images, graft, base)
    seed_everything(recipe.seed)
    objective = build_objective(graft, base, settings).to(device)
    before = measure_noise(graft, base, images)
    fitted = fit(
        objective,
        _batches(images, graft, settings, recipe.seed),
        settings,
        output_dir=folder,
        device=device,
        data=checksums,
        seed=recipe.seed,
        resume=resume,
        learning_rate_scales={"encoder.text_model.": settings.text_learning_rate / settings.learning_rate},
        description="refining the graft",
    )
    if settings.text_lora_rank:
        merge_lora(graft.text_encoder)
    after = measure_noise(graft, base, images)
    graft.text_encoder.cpu()
    return RefineResult(
        before=before,
        after=after,
        num_steps=fitted.num_steps,
        seconds=fitted.seconds,
        epoch_mean_loss=[*fitted.epoch_mean_loss],
        num_train_images=len(images.train),
        mixed_precision=fitted.mixed_precision,
        damaged=dict(data.damaged),
    )


def with_lineage(recipe: Recipe, lineage: Lineage) -> Recipe:
    """Return a recipe with the CLIP and bridge settings of a lineage."""
    made = lineage.find("bridge")
    if made is None or made.recipe is None:
        return recipe
    return recipe.model_copy(update={"clip": made.recipe.clip, "bridge": made.recipe.bridge})


def check_settings(settings: RefineSettings) -> None:
    """Refuse contradictory settings with a UserError."""
    if not settings.num_epochs:
        raise UserError("refine.num_epochs is 0: nothing would be trained; set it to 1 or more")
    if not (settings.noise_weight or settings.teacher_weight or settings.feature_weight):
        raise UserError(
            "nothing to refine by: refine.noise_weight, teacher_weight and feature_weight are all 0; set one"
        )
    if 0 < settings.snr_gamma < 1:
        raise UserError(f"refine.snr_gamma must be 0 or at least 1; got {settings.snr_gamma}")
    if settings.text_lora_rank and not settings.text_layers:
        raise UserError("refine.text_lora_rank needs text_layers: how many of the last layers to update")


def check_prediction(base: FrozenBase) -> None:
    """Refuse a base that does not predict the noise of latents.

    Raises:
        CheckpointError: If it predicts something else than epsilon, or is for inpainting.
    """
    if base.in_channels != LATENT_CHANNELS:
        raise CheckpointError(
            f"base {base.origin.name} takes {base.in_channels} channels (inpainting); only through one that "
            f"takes {LATENT_CHANNELS} can a graft be refined, or new words be found: generate with the graft "
            "as `bridge` wrote it, or name the words"
        )
    predicted = base.scheduler.config.get("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise CheckpointError(
            f"base {base.origin.name} predicts {predicted!r}; only through one that predicts the noise "
            "('epsilon') can a graft be refined, or new words be found: generate with the graft as `bridge` "
            "wrote it, or name the words"
        )


def _checksums(images: LatentImages, graft: Graft, base: FrozenBase) -> dict[str, str]:
    schedule = {"alphas_cumprod": base.scheduler.alphas_cumprod}
    base_checksums = module_sha256(base.unet), module_sha256(base.text_encoder), tensors_sha256(schedule)
    return {
        # Latents depend on both photographs and VAE.
        "photographs": _checksum_of_latents(images.train_latents),
        "captions": fingerprint([image.captions for image in images.train]),
        "weights of the graft": fingerprint(
            module_sha256(graft.text_encoder), checksum_of_tokenizer(graft.tokenizer)
        ),
        "weights of the base": fingerprint(*base_checksums),
    }


def _checksum_of_latents(latents: Sequence[np.ndarray]) -> str:
    """Return `tensors_sha256` of latents of one size as one tensor, without having it."""
    first = latents[0].shape
    digest = hashlib.sha256(f"latents torch.{latents[0].dtype} {(len(latents), *first)}".encode())
    for array in latents:
        if array.shape != first:
            digest.update(str(array.shape).encode())
        digest.update(array.data)
    return digest.hexdigest()


def build_objective(graft: Graft, base: FrozenBase, settings: RefineSettings) -> RefineObjective:
    """Prepare a graft and a base according to settings; return the objective."""
    train_bridge_and_last_layers(graft.grafted, settings.text_layers, settings.text_lora_rank)
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    return RefineObjective(
        graft.grafted,
        base.unet,
        base.text_encoder,
        settings,
        alphas_cumprod=base.scheduler.alphas_cumprod,
        empty_input_ids=tokenize([""], graft.tokenizer, pad_to_context_length=True)[0],
    )


def measure_noise(graft: Graft, base: FrozenBase, images: LatentImages) -> dict[str, float | None]:
    """Return the predicted noise's error against the teacher's, by timestep."""
    captions = [image.captions[0] for image in images.test]
    input_ids = tokenize(captions, graft.tokenizer, pad_to_context_length=True)
    encoder = graft.text_encoder.eval().to(base.unet.device)
    alphas, latents = base.scheduler.alphas_cumprod, images.test_latents
    return {**noise_pred_errors(base.unet, encoder, base.text_encoder, alphas, latents, input_ids)}


def _batches(images: LatentImages, graft: Graft, settings: RefineSettings, seed: int) -> LatentBatches:
    tokenizer = graft.tokenizer
    sizes = (array.shape[1:] for array in images.train_latents)
    return LatentBatches(
        images.train_latents,
        [encode_captions(image.captions, tokenizer)[0] for image in images.train],
        eos_token_id=tokenizer.eos_token_id,
        context_length=tokenizer.model_max_length,
        batch_size=min(settings.batch_size, len(images.train)),
        seed=seed,
        num_epochs=settings.num_epochs,
        bucket_of=np.fromiter((height << 16 | width for height, width in sizes), np.int32),
    )
