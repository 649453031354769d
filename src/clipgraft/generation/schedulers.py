"""Schedulers by name, each made from the base's own noise schedule."""

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from clipgraft.errors import UserError

SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "dpm++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "pndm": (PNDMScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
}
"""dpm++ reaches in 25 steps what pndm, Stable Diffusion's own, needs 50 for; lcm is for few-step LoRAs."""


def build_scheduler(name: str, base_scheduler: SchedulerMixin) -> SchedulerMixin:
    """Make a scheduler.

    Args:
        name: A key of SCHEDULERS.
        base_scheduler: Its betas and conventions are kept.

    Raises:
        ValueError: If there is no scheduler of that name.
    """
    if name not in SCHEDULERS:
        raise UserError(f"scheduler must be one of {', '.join(SCHEDULERS)}; got {name!r}")
    scheduler_class, settings = SCHEDULERS[name]
    return scheduler_class.from_config(base_scheduler.config, **settings)
