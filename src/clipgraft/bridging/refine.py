"""Refine a graft on pictures, through the frozen U-Net."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from torch import Tensor

from clipgraft.bridging.latents import load_latents
from clipgraft.bridging.refine_objective import RefineObjective
from clipgraft.config import Recipe, RefineSettings, load_recipe
from clipgraft.console import print_line
from clipgraft.data.batches import LatentBatches, WithProgress
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import encode_captions, tokenize
from clipgraft.device import PRECISION_DTYPES, choose_device, seed_everything
from clipgraft.errors import CheckpointError, UserError
from clipgraft.evaluation.metrics.noise_error import noise_pred_errors
from clipgraft.files import file_sha256, fingerprint, read_json, write_json
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
from clipgraft.models.lineage import Lineage, Stage, numbers
from clipgraft.models.weights import MANIFEST_NAME, module_sha256, tensors_sha256
from clipgraft.runs.folder import RECIPE_NAME
from clipgraft.training.fingerprints import sum_of_tokenizer
from clipgraft.training.freezing import merge_lora, train_bridge_and_last_layers
from clipgraft.training.trainer import fit, settle_precision

NUM_MEASURED_IMAGES = 8
"""Each costs fifteen passes of the U-Net, before and after."""
START_NAME = "started_from.json"
"""Which graft was refined: its folder, and the sum of its manifest."""


class Pictures(NamedTuple):
    """What a graft is refined on and measured on."""

    train: tuple[CaptionedImage, ...]
    train_latents: Tensor
    """(N, 4, h, w) float16."""
    test: tuple[CaptionedImage, ...]
    test_latents: Tensor


def refine(recipe: Recipe, graft: Path, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train a graft's bridge, and by choice its last text layers, on the train split of `recipe.data`.

    Args:
        recipe: Its seed, device, data, base and refine settings are read.
        graft: Folder of the graft, which stays as it is.
        folder: Gets `graft/`, `metrics.json`, `started_from.json`, `log.jsonl` and `checkpoints/`.
        resume: Go on from the newest checkpoint there.

    Returns:
        The metrics that were written: by timestep the error of the predicted noise against the teacher's on
        test pictures, before and after.

    Raises:
        ValueError: If no loss has a weight, or a setting does not fit.
        CheckpointError: If the graft was made for another base, the base does not predict the noise, or the
            run was begun with another graft.
    """
    settings, device = recipe.refine, choose_device(recipe.device)
    check_settings(settings)
    loaded = Graft.from_pretrained(graft)
    check_start(graft, folder)
    precision = settle_precision(settings.mixed_precision, device, folder if resume else None)
    base = FrozenBase.load(
        recipe.base.name,
        revision=recipe.base.revision or None,
        dtype=PRECISION_DTYPES[precision],  # frozen weights need no float32 master
        tokenizer=loaded.tokenizer,
    )
    base.check_record(loaded.base)
    check_prediction(base)
    for module in base.modules.values():
        module.to(device)
    pictures = load_pictures(recipe, base)
    base.vae = None  # frees its memory for the training
    start = {"graft": str(graft.absolute()), "sha256": _manifest_sum(graft)}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / START_NAME, start)
    sums = _sums(pictures, loaded, base)
    seed_everything(recipe.seed)
    objective = build_objective(loaded, base, settings).to(device)
    metrics: dict[str, Any] = {"before": measure_noise(loaded, base, pictures)}
    result = fit(
        objective,
        _batches(pictures, loaded, settings, recipe.seed),
        settings,
        output_dir=folder,
        device=device,
        data=sums,
        seed=recipe.seed,
        resume=resume,
        learning_rate_scales={"encoder.text_model.": settings.text_learning_rate / settings.learning_rate},
        description="refining the graft",
    )
    if settings.text_lora_rank:
        merge_lora(loaded.text_encoder)
    metrics |= {"after": measure_noise(loaded, base, pictures), "num_steps": result.num_steps}
    metrics |= {"seconds": result.seconds, "epoch_mean_loss": result.epoch_mean_loss}
    metrics |= {"num_train_images": len(pictures.train), "mixed_precision": precision}
    loaded.text_encoder.cpu()
    stage = Stage(
        stage="refine",
        recipe=recipe,
        started_from=str(graft.absolute()),
        figures={when: numbers(metrics[when]) for when in ("before", "after")},
        counts={"num_train_images": len(pictures.train)},
    )
    loaded.lineage = Lineage(stages=(*loaded.lineage.stages, stage))
    loaded.save_pretrained(folder / "graft")
    write_json(folder / "metrics.json", metrics)
    return metrics


def check_settings(settings: RefineSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ValueError: Names the setting and what to do.
    """
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
    """Refuse a base that predicts something else than the noise, which the losses are of.

    Raises:
        CheckpointError: Names what it predicts.
    """
    assert base.scheduler is not None
    assert base.origin is not None
    predicted = base.scheduler.config.get("prediction_type", "epsilon")
    if predicted != "epsilon":
        raise CheckpointError(
            f"base {base.origin.name} predicts {predicted!r}; only through one that predicts the noise "
            "('epsilon') can a graft be refined: draw with the graft as `bridge` wrote it"
        )


def check_start(graft: Path, folder: Path) -> None:
    """Refuse to go on in a folder with another graft than was begun with.

    Raises:
        CheckpointError: Names both.
    """
    if not (folder / START_NAME).is_file():
        return
    begun = _read_start_file(folder / START_NAME)
    if begun["sha256"] != _manifest_sum(graft):
        raise CheckpointError(
            f"{folder} was begun with the graft {begun['graft']}, not with {graft} as it is now; go on with "
            "that one, or add --overwrite"
        )


def read_start(folder: Path) -> Path | None:
    """Folder of the graft that was refined in a folder; None where it is not there as it was then."""
    start = _read_start_file(folder / START_NAME)
    graft = Path(start["graft"])
    # Where a whole run was moved, its stages still lie beside each other.
    places = (graft, folder.parent.joinpath(*graft.parts[-2:]))
    return next((place for place in places if _manifest_sum(place) == start["sha256"]), None)


def _read_start_file(path: Path) -> dict[str, str]:
    start = read_json(path, error=CheckpointError)
    if not all(isinstance(start.get(key), str) for key in ("graft", "sha256")):
        raise CheckpointError(
            f"{path} is damaged: it lacks the graft or its sum; start again with --overwrite"
        )
    return start


def _manifest_sum(graft: Path) -> str:
    """Sum of a graft's manifest, which lists those of its files; empty where there is none."""
    manifest = graft / MANIFEST_NAME
    return file_sha256(manifest) if manifest.is_file() else ""


def with_makings(recipe: Recipe, graft: Path) -> Recipe:
    """Return a recipe with the CLIP and the bridge of the one beside a graft, where there is one."""
    path = graft.parent / RECIPE_NAME
    if not (graft.is_dir() and path.is_file()):
        return recipe
    made = load_recipe(path)
    return recipe.model_copy(update={"clip": made.clip, "bridge": made.bridge})


def load_pictures(recipe: Recipe, base: FrozenBase, num_measured: int = NUM_MEASURED_IMAGES) -> Pictures:
    """Encode the train split, and of the test split (else of train) what is measured on.

    Raises:
        ValueError: If there is no training picture.
    """
    assert base.unet is not None
    dataset = load_dataset(recipe.data.source, include_unsplit=recipe.data.include_unsplit)
    train = dataset.train[: recipe.data.max_train_images or None]
    if not train:
        raise UserError("no training picture to refine on; name a source with a train split")
    test = (dataset.test[: recipe.data.max_test_images or None] or train)[:num_measured]
    size = int(base.unet.config.sample_size) * 8
    latents = [load_latents(base, images, size) for images in (train, test)]
    return Pictures(train, latents[0], test, latents[1])


def _sums(pictures: Pictures, graft: Graft, base: FrozenBase) -> dict[str, str]:
    """Sums of what a graft is refined on and started from; latents hold photographs and VAE."""
    assert base.unet is not None
    assert base.text_encoder is not None
    assert base.scheduler is not None
    schedule = {"alphas_cumprod": base.scheduler.alphas_cumprod}
    base_sums = module_sha256(base.unet), module_sha256(base.text_encoder), tensors_sha256(schedule)
    return {
        "photographs": tensors_sha256({"latents": pictures.train_latents}),
        "captions": fingerprint([image.captions for image in pictures.train]),
        "weights of the graft": fingerprint(
            module_sha256(graft.text_encoder), sum_of_tokenizer(graft.tokenizer)
        ),
        "weights of the base": fingerprint(*base_sums),
    }


def build_objective(graft: Graft, base: FrozenBase, settings: RefineSettings) -> RefineObjective:
    """Prepare a graft and a base as the settings say."""
    assert base.unet is not None
    assert base.text_encoder is not None
    assert base.scheduler is not None
    train_bridge_and_last_layers(graft.text_encoder, settings.text_layers, settings.text_lora_rank)
    if settings.gradient_checkpointing:
        base.unet.enable_gradient_checkpointing()
    return RefineObjective(
        graft.text_encoder,
        base.unet,
        base.text_encoder,
        alphas_cumprod=base.scheduler.alphas_cumprod,
        empty_input_ids=tokenize([""], graft.tokenizer, pad_to_context_length=True).input_ids[0],
        noise_weight=settings.noise_weight,
        teacher_weight=settings.teacher_weight,
        feature_weight=settings.feature_weight,
        teacher_end=settings.teacher_end,
        caption_drop=settings.caption_drop,
        timestep_sampling=settings.timestep_sampling,
        snr_gamma=settings.snr_gamma,
    )


def print_result(metrics: dict[str, Any]) -> None:
    """Print in one line what refining brought."""
    before, after = (mean(metrics[when].values()) for when in ("before", "after"))
    print_line(
        f"error of the predicted noise against the teacher's: {before:.3f} -> {after:.3f} "
        "(0 is the teacher's own, 1 is no text at all)"
    )


def measure_noise(graft: Graft, base: FrozenBase, pictures: Pictures) -> dict[str, float]:
    """Error of the noise predicted with the graft against the teacher's on test pictures, by timestep."""
    assert base.unet is not None
    assert base.text_encoder is not None
    assert base.scheduler is not None
    captions: Sequence[str] = [image.captions[0] for image in pictures.test]
    input_ids = tokenize(captions, graft.tokenizer, pad_to_context_length=True).input_ids
    encoder = graft.text_encoder.eval().to(base.unet.device)
    alphas = base.scheduler.alphas_cumprod
    return noise_pred_errors(base.unet, encoder, base.text_encoder, alphas, pictures.test_latents, input_ids)


def _batches(pictures: Pictures, graft: Graft, settings: RefineSettings, seed: int) -> WithProgress:
    tokenizer = graft.tokenizer
    batches = LatentBatches(
        pictures.train_latents,
        [encode_captions(image.captions, tokenizer)[0] for image in pictures.train],
        eos_token_id=tokenizer.eos_token_id,
        context_length=tokenizer.model_max_length,
        batch_size=min(settings.batch_size, len(pictures.train)),
        seed=seed,
    )
    return WithProgress(batches, settings.num_epochs)
