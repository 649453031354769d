"""Schedulers by name, on the noise schedule of a base."""

import inspect
from functools import wraps
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from clipgraft.errors import CheckpointError, UserError
from clipgraft.generation import linear_multistep, stochastic_schedulers
from clipgraft.scheduler_recipes import SCHEDULERS, SchedulerRecipe

NOISE_SCHEDULE = {
    "num_train_timesteps": None,
    "beta_start": None,
    "beta_end": None,
    "beta_schedule": None,
    "trained_betas": None,
    "prediction_type": None,
    "rescale_betas_zero_snr": False,
}
"""Settings that a base was trained with, and their values if its scheduler has none."""


def scheduler_class(recipe: SchedulerRecipe) -> type[SchedulerMixin]:
    """Return the class that a recipe names."""
    modules = (stochastic_schedulers, linear_multistep, diffusers)
    found: type[SchedulerMixin] = getattr(
        next(module for module in modules if hasattr(module, recipe.class_name)), recipe.class_name
    )
    return found


def build_scheduler(name: str, base_scheduler: SchedulerMixin) -> SchedulerMixin:
    """Build a scheduler on the noise schedule of the base's own.

    Args:
        name: Of `SCHEDULERS`.
        base_scheduler: The base's own.

    Raises:
        UserError: If it cannot follow the base's noise schedule or prediction type.
        CheckpointError: If the base's scheduler has no noise schedule of this kind.
    """
    config = base_scheduler.config
    if "beta_schedule" not in config:
        raise CheckpointError(
            f"the base's scheduler, {type(base_scheduler).__name__}, has no beta_schedule; only bases that "
            "were trained with betas, as Stable Diffusion 1, can be used"
        )
    recipe = SCHEDULERS[name]
    schedule = {key: config.get(key, default) for key, default in NOISE_SCHEDULE.items()}
    obstacle = _obstacle(recipe, schedule)
    if obstacle:
        others = ", ".join(other for other, own in SCHEDULERS.items() if not _obstacle(own, schedule))
        raise UserError(f"scheduler {name!r} cannot follow this base's {obstacle}; name one of {others}")
    kind = scheduler_class(recipe)
    taken = {key: value for key, value in schedule.items() if key in inspect.signature(kind).parameters}
    try:
        return _beginning_first(kind(**taken, **recipe.settings))
    except NotImplementedError:
        betas = f"beta_schedule {schedule['beta_schedule']!r}"
        raise UserError(
            f"scheduler {name!r} cannot follow this base's {betas}; name another, e.g. ddpm"
        ) from None


def _beginning_first(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Let a scheduler begin at its first step, also where timesteps repeat.

    diffusers would begin at the second of equal timesteps and run out of sigmas at the end: the first Karras
    sigmas of a base with zero terminal SNR are all of timestep 999.
    """
    if hasattr(scheduler, "set_begin_index"):
        set_timesteps = scheduler.set_timesteps

        @wraps(set_timesteps)
        def set_timesteps_and_begin(*args: Any, **options: Any) -> None:
            set_timesteps(*args, **options)
            scheduler.set_begin_index(0)

        scheduler.set_timesteps = set_timesteps_and_begin
    return scheduler


def _obstacle(recipe: SchedulerRecipe, schedule: dict[str, Any]) -> str:
    """Return what a scheduler cannot follow; empty if nothing."""
    known = inspect.signature(scheduler_class(recipe)).parameters
    if schedule["rescale_betas_zero_snr"] and "rescale_betas_zero_snr" not in known:
        return "betas (rescale_betas_zero_snr)"
    if schedule["prediction_type"] not in recipe.predictions:
        return f"prediction_type {schedule['prediction_type']!r}"
    return ""
