"""Fine-tune CLIP on captioned images, and measure recall before and after."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import torch
from accelerate import PartialState
from accelerate.utils import gather, send_to_device
from pydantic import ConfigDict, Field, PrivateAttr

from clipgraft.config import Recipe, build_recipe
from clipgraft.console import is_first_process, print_line, say
from clipgraft.data.check import check_dataset, leakage_note
from clipgraft.data.damage import load_source
from clipgraft.data.dataset import (
    CONTEXT_LENGTH,
    CaptionDataset,
    CaptionedImage,
    CaptionedImages,
    TrainingImages,
)
from clipgraft.data.loader import CaptionedBatches
from clipgraft.data.transforms import encode_captions, load_crops, with_resize_mode
from clipgraft.device import choose_device, quiet_libraries, seed_everything
from clipgraft.errors import UserError
from clipgraft.files import write_bytes
from clipgraft.finetuning.validate import (
    Recall,
    ValidationImages,
    Validator,
    embed_images,
    length_multiple,
    measure_retrieval,
    passes_per_loss,
)
from clipgraft.models.clip import ClipParts, load_clip, save_clip
from clipgraft.models.lineage import Stage, numbers
from clipgraft.reporting.plots import plot_loss
from clipgraft.runs.run import Run, StageResult
from clipgraft.settings import DataSettings, FinetuneSettings, ModelSettings
from clipgraft.training.checkpoints import FOLDER_NAME, sum_of_clip, sums_of_images
from clipgraft.training.grad_cache import concatenated
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.optim import add_lora, freeze_layers, merge_lora
from clipgraft.training.run_log import LOG_NAME
from clipgraft.training.step import seed_step
from clipgraft.training.trainer import Resume, fit, grouped
from clipgraft.training.validation import ValidationPlan

Images = Sequence[CaptionedImage]
NUM_MEASURED_CAPTIONS = 10_000
"""Training captions measured in tokens before the first step, in less than a second."""


class FinetuneResult(StageResult):
    """Recall on the test split before and after fine-tuning, and training figures."""

    model_config = ConfigDict(serialize_by_alias=True)

    stage: str = "finetune"
    recall_before: Recall | None = Field(alias="before")
    """None without a test split, and in all but the main process."""
    recall_after: Recall | None = Field(alias="after")
    num_steps: int
    skipped_steps: int
    """Steps without a finite loss or gradient, and without effect."""
    mixed_precision: str
    num_epochs: int
    num_train_images: int
    epoch_mean_loss: list[float]
    seconds: float
    """Training time of this process, without a resumed run's earlier part."""
    _clip: ClipParts | None = PrivateAttr(None)

    @property
    def clip(self) -> ClipParts:
        """The fine-tuned CLIP (only of a new result, not one read from a file)."""
        assert self._clip is not None
        return self._clip

    def print(self) -> None:
        """Print recall@1 before and after in one line."""
        before, after = self.recall_before, self.recall_after
        if before is None or after is None:
            print_line("recall was not measured: the source has no test split")
            return
        figures = (
            f"{name.replace('_', ' ')} {before[f'{name}_recall@1']:.1%} -> {after[f'{name}_recall@1']:.1%}"
            for name in ("text_to_image", "image_to_text")
        )
        gallery = f"{after['num_images']} test images, {after['num_captions']} captions"
        print_line(f"recall@1 among {gallery}: {', '.join(figures)}")


def finetune(
    clip: ClipParts,
    data: CaptionDataset,
    *,
    output_dir: str | Path | None = None,
    resume: bool | Resume = False,
    overwrite: bool = False,
    seed: int = 0,
    device: str = "auto",
    settings: FinetuneSettings | None = None,
    objective: type[ContrastiveObjective] = ContrastiveObjective,
    recipe: Recipe | None = None,
    inputs: Mapping[str, str | Path | None] = MappingProxyType({}),
    **overrides: object,
) -> FinetuneResult:
    """Fine-tune a CLIP on the train split of a dataset.

    With several processes (`accelerate launch`), the main one measures and writes.

    Args:
        clip: The CLIP; a copy is trained.
        data: Dataset with a train split; one of val is measured every epoch, one of test before and after.
        output_dir: Gets `clip/`, `metrics.json`, `recipe.toml`, `data.json`, `log.jsonl`, `checkpoints/`,
            `evaluations.jsonl` and the loss figure; None = nothing.
        resume: Continue from the newest checkpoint in `output_dir`, or as given by a `Resume`.
        objective: Class of the objective; a subclass with its own `joint_loss` is another loss.
        recipe: Settings of a whole run, replacing seed, device and settings.
        **overrides: Fields of `FinetuneSettings`, over `settings`.

    Returns:
        Recall at 1, 5 and 10 on the test split before and after, and `.clip`.

    Raises:
        UserError: If a setting is unknown, not allowed, or contradicts others or the data.
        Interrupted: On SIGINT or SIGTERM, after saving the state.
    """
    quiet_libraries()
    recipe = recipe or recipe_of(clip, data, seed=seed, device=device)
    recipe = recipe.model_copy(update={"finetune": (settings or recipe.finetune).updated(overrides)})
    clip = clip._replace(image_processor=with_resize_mode(clip.image_processor, recipe.finetune.resize_mode))
    if output_dir is None:
        if resume or recipe.finetune.preview_steps or recipe.finetune.report_to:
            raise UserError("resume, preview_steps and report_to need an output_dir; name one")
        return _finetune(clip, data, recipe, objective, None, False)
    with Run.begin(
        Path(output_dir),
        recipe,
        stage="finetune",
        inputs=inputs,
        resume=bool(resume),
        overwrite=overwrite,
        in_parallel=True,
    ) as run:
        result = _finetune(clip, data, recipe, objective, run.path, resume)
        if is_first_process():
            save_clip(result.clip, run.path / "clip")
            plot_loss(run.path / LOG_NAME, run.path)
            result.save(run.path)
        result._clip = result.clip._replace(origin=ModelSettings(name=str((run.path / "clip").absolute())))
    return result


def load_inputs(recipe: Recipe) -> tuple[ClipParts, CaptionDataset]:
    """Load the CLIP and the dataset of a recipe."""
    clip = load_clip(recipe.clip.name, revision=recipe.clip.revision or None)
    return clip, load_source(recipe.data)


def recipe_of(clip: ClipParts, data: CaptionDataset, *, seed: int = 0, device: str = "auto") -> Recipe:
    """Return a recipe naming a CLIP and a dataset by known origins."""
    origin = {"clip": clip.origin} if clip.origin else {}
    source = DataSettings(source=str(data.root))
    return build_recipe({"seed": seed, "device": device, "data": source, **origin})


def _finetune(
    clip: ClipParts,
    data: CaptionDataset,
    recipe: Recipe,
    objective_class: type[ContrastiveObjective],
    folder: Path | None,
    resume: bool | Resume,
) -> FinetuneResult:
    settings, device = recipe.finetune, choose_device(recipe.device)
    processes = PartialState(cpu=device.type == "cpu")
    device = processes.device if processes.num_processes > 1 else device
    clip = clip._replace(model=deepcopy(clip.model).to(device))
    train, val, test = _splits(data, recipe)
    sums = sums_of_images({"train": train, "val": val}) | _sums_of_start(clip, objective_class)
    seed_everything(recipe.seed)
    objective = build_objective(clip, settings, objective_class)
    batches = training_batches(train, clip, settings, recipe.seed, processes)
    before = previews = validation = None
    if processes.is_main_process:
        _say_notes(data, train, clip, folder, resume)
        before = measure_retrieval(clip, test, "recall before")
    seed_step(recipe.seed, 0, processes.process_index)  # SigLIP's bias is set on the first step's crops
    set_start(objective.to(device), clip, train, batches, settings)
    if val:
        validator = Validator(clip, objective, val, settings)
        validation = ValidationPlan(validator.measure, settings.best_metric, settings.patience)
    if settings.preview_steps and folder and processes.is_main_process:
        graft, out = Path(settings.preview_graft), folder / "previews"
        previews = ValidationImages(clip, graft, recipe.generate, out, settings.preview_steps, device)
    fitted = fit(
        objective,
        batches,
        settings,
        output_dir=folder,
        device=device,
        data=sums,
        seed=recipe.seed,
        resume=resume,
        on_step=previews,
        validation=validation,
        description="fine-tuning CLIP",
    )
    if settings.lora_rank:
        merge_lora(clip.model)
    clip.model.requires_grad_(True).eval()
    result = FinetuneResult(
        before=before,
        after=before and measure_retrieval(clip, test, "recall after"),
        num_steps=fitted.num_steps,
        skipped_steps=fitted.skipped_steps,
        mixed_precision=fitted.mixed_precision,
        num_epochs=settings.num_epochs,
        num_train_images=len(train),
        epoch_mean_loss=fitted.epoch_mean_loss,
        seconds=fitted.seconds,
    )
    figures = {"before": numbers(before), "after": numbers(result.recall_after)}
    stage = Stage(stage="finetune", recipe=recipe, figures=figures)
    result._clip = clip._replace(origin=None, lineage=(*clip.lineage, stage))
    return result


def _sums_of_start(clip: ClipParts, objective_class: type[ContrastiveObjective]) -> dict[str, str]:
    sums = {"weights of CLIP": sum_of_clip(clip)}
    if objective_class is not ContrastiveObjective:
        sums["objective"] = objective_class.__qualname__
    return sums


def _splits(data: CaptionDataset, recipe: Recipe) -> tuple[CaptionedImages, Images, Images]:
    limits = recipe.data
    train = data.train.first(limits.max_train_images or len(data.train))
    val, test = data.val[: limits.max_val_images or None], data.test[: limits.max_test_images or None]
    check_settings(recipe.finetune, num_train=len(train), has_val=bool(val))
    captions = train.iter_captions()
    first = next(captions, "")
    if train and all(caption == first for caption in captions):
        raise UserError(f"every training caption is {first!r}; captions have to tell images apart")
    return train, val, test


def _say_notes(
    data: CaptionDataset,
    train: TrainingImages,
    clip: ClipParts,
    folder: Path | None,
    resume: bool | Resume,
) -> None:
    """Report leaked photographs, truncated captions, a missing checkpoint; write `data.json`."""
    counts = check_dataset(data, tokenizer=clip.tokenizer, read_images=False)
    if folder:
        write_bytes(folder / "data.json", counts.to_json().encode())
    if note := leakage_note(counts):
        say(note)
    is_from_newest = resume is True or (isinstance(resume, Resume) and resume.step is None)
    if folder and is_from_newest and not any((folder / FOLDER_NAME).glob("step-*")):
        say(f"no checkpoint in {folder} to resume from; training starts over")
    captions = list(islice(train.iter_captions(), NUM_MEASURED_CAPTIONS + 1))
    _, num_truncated = encode_captions(captions[:NUM_MEASURED_CAPTIONS], clip.tokenizer)
    if num_truncated:
        of = f" of the first {NUM_MEASURED_CAPTIONS:,}" if len(captions) > NUM_MEASURED_CAPTIONS else ""
        say(
            f"{num_truncated:,}{of} training captions are longer than {CONTEXT_LENGTH} tokens; their ends "
            "are cut"
        )


def set_start(
    objective: ContrastiveObjective,
    clip: ClipParts,
    images: Images,
    batches: CaptionedBatches,
    settings: FinetuneSettings,
) -> None:
    """Encode images for a frozen vision tower; initialize SigLIP's bias."""
    device = clip.model.device
    if settings.frozen_vision_layers == -1:
        clip.model.eval()
        objective.image_table = embed_images(clip, images).to(device)
    if settings.loss == "sigmoid":
        first = next(grouped(batches.epoch(0, 0), passes_per_loss(settings)))
        with torch.no_grad():
            embeds = concatenated([objective.embed(send_to_device(batch, device)) for batch in first])
            objective.start_bias(gather(embeds))  # in all processes the same


def training_batches(
    images: CaptionedImages, clip: ClipParts, settings: FinetuneSettings, seed: int, processes: PartialState
) -> CaptionedBatches:
    """Return this process's share of the training batches."""
    crops = None
    if settings.frozen_vision_layers != -1:
        with processes.main_process_first():  # the others find them cached
            crops = load_crops(images, clip.image_processor)
    return CaptionedBatches(
        images,
        crops,
        tokenizer=clip.tokenizer,
        processor=clip.image_processor,
        batch_size=settings.batch_size,
        seed=seed,
        captions_per_image=settings.captions_per_image,
        length_multiple=length_multiple(settings),
        num_workers=settings.num_workers,
        process_index=processes.process_index,
        num_processes=processes.num_processes,
    )


def check_settings(settings: FinetuneSettings, *, num_train: int, has_val: bool) -> None:
    """Refuse settings in conflict with each other or the data."""
    passes = passes_per_loss(settings)
    if settings.batch_size == passes == 1:
        raise UserError("a batch of one image has no negatives; set batch_size to 2 or more")
    if settings.batch_size == 1 and num_train % passes == 1:
        raise UserError(
            f"batch_size=1 and gradient_accumulation_steps={passes} leave one of {num_train} training images "
            "to an epoch's last step, without negatives; change either"
        )
    if settings.patience and not settings.best_metric:
        raise UserError("patience needs a best_metric: name one, e.g. text_to_image_recall@1")
    if settings.best_metric and not has_val:
        raise UserError(
            f"best_metric {settings.best_metric!r} is measured on a validation split, and the source has "
            "none; leave best_metric empty, or add a val split"
        )
    if bool(settings.preview_steps) != bool(settings.preview_graft):
        raise UserError("preview_steps and preview_graft belong together: set both, or neither")
    if settings.preview_steps and settings.lora_rank:
        raise UserError(
            "preview_steps needs whole weights, which lora_rank has at the end only; set one to 0"
        )
    if settings.frozen_vision_layers == -1 and settings.crop_scale < 1:
        raise UserError(
            "crop_scale below 1 augments images, and with frozen_vision_layers=-1 each is encoded once for "
            "all epochs; set crop_scale=1"
        )


def build_objective(
    clip: ClipParts,
    settings: FinetuneSettings,
    objective_class: type[ContrastiveObjective] = ContrastiveObjective,
) -> ContrastiveObjective:
    """Freeze, add LoRA and compile in place; return the objective.

    Raises:
        UserError: If the model has fewer layers than are to be frozen, or nothing is left to train.
    """
    reference = deepcopy(clip.model.text_model).eval() if settings.distill_weight else None
    if settings.lora_rank:
        add_lora(clip.model, settings.lora_rank)
    freeze_layers(clip.model, vision=settings.frozen_vision_layers, text=settings.frozen_text_layers)
    if settings.compile:
        clip.model.vision_model.compile()
        clip.model.text_model.compile()
    return objective_class(
        clip.model,
        loss=settings.loss,
        duplicate_images=settings.duplicate_images,
        reference_text_model=reference,
        distill_weight=settings.distill_weight,
        crop_scale=settings.crop_scale,
    )
