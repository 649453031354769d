"""Fine-tune CLIP on captioned images, and measure recall before and after."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from types import MappingProxyType

from accelerate import PartialState
from pydantic import ConfigDict, Field, PrivateAttr

from clipgraft.config import Recipe, build_recipe, mark_given_clip
from clipgraft.console import is_first_process, print_line
from clipgraft.data.dataset import CaptionDataset
from clipgraft.data.formats import load_dataset
from clipgraft.data.loader import clear_worker_errors
from clipgraft.data.transforms import with_resize_mode
from clipgraft.device import choose_device, quiet_libraries, seed_everything
from clipgraft.errors import UserError
from clipgraft.finetuning.training_data import (
    gather_damaged,
    say_notes,
    set_start,
    split_images,
    training_batches,
)
from clipgraft.finetuning.validate import (
    Recall,
    ValidationImages,
    Validator,
    measure_retrieval,
)
from clipgraft.models.clip import ClipParts, load_clip, save_clip
from clipgraft.models.lineage import Stage, numbers
from clipgraft.reporting.plots import plot_loss
from clipgraft.runs.run import Run, StageResult
from clipgraft.settings import FinetuneSettings, ModelSettings
from clipgraft.training.checkpoints import checksum_of_clip, checksums_of_images
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.optim import add_lora, freeze_layers, merge_lora
from clipgraft.training.run_log import LOG_NAME
from clipgraft.training.step import seed_step
from clipgraft.training.trainer import Resume, fit
from clipgraft.training.validation import ValidationPlan


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
    num_damaged_images: int = 0
    """Training images met that others took the place of; `data.json` names them."""
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

    Of several processes the main one measures and writes. Arguments not listed are those of `fit_bridge`.

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
    recipe = mark_given_clip(recipe or recipe_of(clip, data, seed=seed, device=device), clip.origin)
    recipe = recipe.model_copy(update={"finetune": (settings or recipe.finetune).updated(overrides)})
    clip = clip._replace(image_processor=with_resize_mode(clip.image_processor, recipe.finetune.resize_mode))
    if output_dir is None:
        if resume or recipe.finetune.preview_steps or recipe.finetune.report_to:
            raise UserError("resume, preview_steps and report_to need an output_dir; name one")
        return _finetune(clip, data, recipe, objective, None, False)
    with Run.begin(
        Path(output_dir).expanduser(),
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
    data = load_dataset(recipe.data)  # first, as a wrong caption file is said before weights are read
    return load_clip(recipe.clip.name, revision=recipe.clip.revision), data


def recipe_of(clip: ClipParts, data: CaptionDataset, *, seed: int = 0, device: str = "auto") -> Recipe:
    """Return a recipe naming a CLIP and a dataset by known origins."""
    origin = {"clip": clip.origin} if clip.origin else {}
    return build_recipe({"seed": seed, "device": device, "data": data.origin, **origin})


@clear_worker_errors()
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
    train, val, test = split_images(data, recipe)
    images = {"train": train, "val": val}
    checksums = checksums_of_images(images) | _checksums_of_start(clip, objective_class, settings)
    seed_everything(recipe.seed)
    objective = build_objective(clip, settings, objective_class)
    batches = training_batches(train, clip, recipe, processes)
    previews = validation = None
    if processes.is_main_process:
        say_notes(data, train, clip, recipe.seed, folder, resume)
    before = measure_retrieval(clip, test, "recall before", processes)
    seed_step(recipe.seed, 0, processes.process_index)  # SigLIP's bias is set on the first step's crops
    set_start(objective.to(device), clip, train, batches, settings, processes)
    if val:
        validator = Validator(clip, objective, val, settings, processes)
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
        data=checksums,
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
        num_damaged_images=len(gather_damaged(batches, folder)),
        before=before,
        after=before and measure_retrieval(clip, test, "recall after", processes),
        num_steps=fitted.num_steps,
        skipped_steps=fitted.skipped_steps,
        mixed_precision=fitted.mixed_precision,
        num_epochs=settings.num_epochs,
        num_train_images=len(train),
        epoch_mean_loss=fitted.epoch_mean_loss,
        seconds=fitted.seconds,
    )
    result._clip = clip._replace(origin=None, lineage=(*clip.lineage, _stage(recipe, result)))
    return result


def _stage(recipe: Recipe, result: FinetuneResult) -> Stage:
    figures = {"before": numbers(result.recall_before), "after": numbers(result.recall_after)}
    return Stage(stage="finetune", recipe=recipe, figures=figures)


def _checksums_of_start(
    clip: ClipParts, objective_class: type[ContrastiveObjective], settings: FinetuneSettings
) -> dict[str, str]:
    checksums = {"weights of CLIP": checksum_of_clip(clip)}
    if settings.crop_scale < 1:  # earlier checkpoints had crops of the middle square
        checksums["random crops"] = "of whole photographs"
    if objective_class is not ContrastiveObjective:
        checksums["objective"] = objective_class.__qualname__
    return checksums


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
    )
