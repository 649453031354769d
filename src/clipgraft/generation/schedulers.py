"""Schedulers by name, on the noise schedule of a base."""

from typing import Any, NamedTuple

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from clipgraft.errors import CheckpointError, UserError

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
LEADING = {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False}
"""Stable Diffusion's own: of 50 steps timesteps 981, 961, ... 1."""
LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 1, "final_sigmas_type": "zero"}
"""k-diffusion's and so A1111's: evenly from the last timestep down; the offset has no effect."""
NO_THRESHOLDING = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
NO_CLIPPING = {**NO_THRESHOLDING, "clip_sample": False, "clip_sample_range": 1.0}
"""Clipping and thresholding are for pixels in [-1, 1]; latents reach beyond."""
PLAIN_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
NO_FLOW = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}


class Recipe(NamedTuple):
    """A scheduler's class and every argument beside the base's noise schedule."""

    scheduler_class: type[SchedulerMixin]
    settings: dict[str, Any]
    num_unreachable: int = 0
    """Timesteps of the base that it cannot visit."""


SCHEDULERS = {
    "dpm++": Recipe(
        DPMSolverMultistepScheduler,
        {
            **LINSPACE,
            **NO_THRESHOLDING,
            **PLAIN_SIGMAS,
            **NO_FLOW,
            "use_karras_sigmas": True,
            "use_lu_lambdas": False,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
            "lambda_min_clipped": -float("inf"),
            "variance_type": None,
        },
    ),
    "pndm": Recipe(PNDMScheduler, {**LEADING, "skip_prk_steps": True}, num_unreachable=1),
    "ddim": Recipe(DDIMScheduler, {**LEADING, **NO_CLIPPING}, num_unreachable=1),
    "euler": Recipe(
        EulerDiscreteScheduler,
        {
            **LINSPACE,
            **PLAIN_SIGMAS,
            "interpolation_type": "linear",
            "sigma_min": None,
            "sigma_max": None,
            "timestep_type": "discrete",
        },
    ),
    "unipc": Recipe(
        UniPCMultistepScheduler,
        {
            **LINSPACE,
            **NO_THRESHOLDING,
            **PLAIN_SIGMAS,
            **NO_FLOW,
            "solver_order": 2,
            "solver_type": "bh2",
            "predict_x0": True,
            "lower_order_final": True,
            "disable_corrector": [],
            "solver_p": None,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
        num_unreachable=1,  # 1,000 steps visit a timestep twice, and divide by the step between
    ),
    "lcm": Recipe(
        LCMScheduler,
        {**LEADING, **NO_CLIPPING, "original_inference_steps": 50, "timestep_scaling": 10.0},
    ),
}
"""dpm++ reaches in 25 steps what pndm, Stable Diffusion's own, needs 50 for; lcm is for few-step LoRAs."""


def max_steps(name: str, num_train_timesteps: int = 1000) -> int:
    """Return the most denoising steps that a scheduler can take."""
    _, settings, num_unreachable = SCHEDULERS[name]
    most: int = num_train_timesteps - num_unreachable
    return min(most, settings.get("original_inference_steps", most))


def build_scheduler(name: str, base_scheduler: SchedulerMixin) -> SchedulerMixin:
    """Build a scheduler on the noise schedule of the base's own.

    Raises:
        UserError: If it cannot follow the base's noise schedule.
        CheckpointError: If the base's scheduler has no noise schedule of this kind.
    """
    if name not in SCHEDULERS:
        raise UserError(f"scheduler must be one of {', '.join(SCHEDULERS)}; got {name!r}")
    scheduler_class, settings, _ = SCHEDULERS[name]
    return scheduler_class(**_noise_schedule(name, base_scheduler), **settings)


def _noise_schedule(name: str, base_scheduler: SchedulerMixin) -> dict[str, Any]:
    config = base_scheduler.config
    if "beta_schedule" not in config:
        raise CheckpointError(
            f"the base's scheduler, {type(base_scheduler).__name__}, has no beta_schedule; only bases that "
            "were trained with betas, as Stable Diffusion 1, can be used"
        )
    schedule = {key: config.get(key, default) for key, default in NOISE_SCHEDULE.items()}
    if name == "pndm" and schedule.pop("rescale_betas_zero_snr"):
        others = ", ".join(other for other in SCHEDULERS if other != name)
        raise UserError(
            f"scheduler 'pndm' cannot follow this base's betas (rescale_betas_zero_snr); name one of {others}"
        )
    return schedule
