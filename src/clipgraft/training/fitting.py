"""Hand a stage's training settings to `fit`, with a progress bar."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from clipgraft.console import is_first_process, say, track
from clipgraft.device import choose_mixed_precision
from clipgraft.runs.folder import let_go
from clipgraft.settings import TrainSettings
from clipgraft.training.checkpoints import saved_precision
from clipgraft.training.fingerprints import deciding_settings
from clipgraft.training.optim import Optimization
from clipgraft.training.state import Fingerprint, Resume
from clipgraft.training.trainer import Batches, FitResult, StepReport, fit
from clipgraft.training.validation import EvaluationPlan


def fit_stage(
    description: str,
    objective: nn.Module,
    batches: Batches,
    settings: TrainSettings,
    *,
    folder: Path,
    device: torch.device,
    data: Mapping[str, str],
    seed: int,
    resume: bool | Resume,
    learning_rate_scales: Mapping[str, float] = MappingProxyType({}),
    evaluation: EvaluationPlan | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> FitResult:
    """Train an objective as the settings say.

    Args:
        description: What stands before the bar.
        objective: See `fit`.
        batches: See `fit`.
        settings: Of the stage.
        folder: Gets `log.jsonl` and `checkpoints/`.
        device: Where to train.
        data: Sums of what is trained on and started from, by name; a checkpoint of others is refused, as is
            one of another seed or other settings.
        seed: The run's.
        resume: Go on from the newest checkpoint, or as a `Resume` says.
        learning_rate_scales: See `Optimization`; what else that has is read from the settings.
        evaluation: See `fit`.
        on_step: Called after every step.
    """
    num_steps = settings.num_epochs * -(-len(batches) // settings.gradient_accumulation_steps)

    def tell(report: StepReport) -> None:
        if is_first_process():
            let_go(folder)  # there is something now that goes on by itself
        update(report.step, f"loss {report.loss:.4f}  {report.samples_per_second:.0f} samples/s")
        if on_step:
            on_step(report)

    named = {field.name for field in fields(Optimization)} - {"mixed_precision"}
    how = Optimization(
        **settings.model_dump(include=named),
        mixed_precision=settle_precision(settings.mixed_precision, device, folder if resume else None),
        learning_rate_scales=learning_rate_scales,
    )
    if how.warmup_steps > num_steps // 2 and is_first_process():
        say(
            f"warmup_steps={how.warmup_steps} is more than half of the run's {num_steps} steps; the learning "
            f"rate rises for {num_steps // 2} of them"
        )
    with track(description, num_steps) as update:
        return fit(
            objective,
            batches,
            how,
            run_dir=folder,
            num_epochs=settings.num_epochs,
            checkpoint_every=settings.checkpoint_every,
            keep_checkpoints=settings.keep_checkpoints,
            device=device.type,
            seed=seed,
            fingerprint=Fingerprint(data, deciding_settings(settings, seed)),
            track=settings.track,
            resume=resume,
            evaluation=evaluation,
            on_step=tell,
        )


def settle_precision(name: str, device: torch.device, resumed: Path | None) -> str:
    """Resolve "auto", to what a run began in where it is gone on with: this machine may choose otherwise now.

    Args:
        name: Of the settings.
        device: Where to train.
        resumed: The run's folder, to go on in; None = a new run.

    Raises:
        ValueError: If the precision cannot work on the device.
    """
    begun_in = saved_precision(resumed / "checkpoints") if resumed and name == "auto" else ""
    return choose_mixed_precision(begun_in or name, device)
