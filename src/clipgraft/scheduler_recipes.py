"""Schedulers as data: names and every argument; imports no torch."""

import difflib
from dataclasses import dataclass, replace
from typing import Any

from clipgraft.errors import UserError

OFFSET = {"steps_offset": 1}
LEADING = {"timestep_spacing": "leading", **OFFSET}
"""Stable Diffusion's own: of 50 steps timesteps 981, 961, ... 1."""
LINSPACE = {"timestep_spacing": "linspace", **OFFSET}
"""k-diffusion's and so A1111's: evenly from the last timestep down; the offset has no effect."""
TO_ZERO = {"final_sigmas_type": "zero"}
NO_THRESHOLDING = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
NO_CLIPPING = {"clip_sample": False, "clip_sample_range": 1.0}
"""Clipping and thresholding are for pixels in [-1, 1]; latents reach beyond."""
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
"""Replaced where a name ends in -karras or -exponential."""
NO_FLOW = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
DPM_SOLVER = {
    **NO_THRESHOLDING,
    **SIGMAS,
    **NO_FLOW,
    **TO_ZERO,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "lambda_min_clipped": -float("inf"),
    "variance_type": None,
}
MULTISTEP = {**LINSPACE, **DPM_SOLVER, "use_lu_lambdas": False, "euler_at_final": False}
MULTISTEP_SDE = {**MULTISTEP, "algorithm_type": "sde-dpmsolver++"}
DEIS = {
    **LINSPACE,
    **NO_THRESHOLDING,
    **SIGMAS,
    **NO_FLOW,
    "algorithm_type": "deis",
    "solver_order": 2,
    "solver_type": "logrho",
    "lower_order_final": True,
}
UNIPC = {
    **LINSPACE,
    **TO_ZERO,
    **NO_THRESHOLDING,
    **SIGMAS,
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
}
EULER = {
    **LINSPACE,
    **TO_ZERO,
    **SIGMAS,
    "interpolation_type": "linear",
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
}
FEW_STEPS = {
    **LEADING,
    **NO_THRESHOLDING,
    **NO_CLIPPING,
    "set_alpha_to_one": False,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}


@dataclass(frozen=True)
class SchedulerRecipe:
    """A scheduler's class and every argument beside the base's noise schedule."""

    sampler: str
    """Its name in A1111."""
    class_name: str
    """Of diffusers, or of `generation.stochastic_schedulers`."""
    settings: dict[str, Any]
    schedule: str = ""
    """Of the sigmas, in A1111: "Karras", "Exponential" or none."""
    automatic: str = ""
    """The schedule that A1111 means by "Automatic"."""
    num_unreachable: int = 0
    """Timesteps of the base that it cannot visit: with all of them, ddim begins at 1000, and others visit
    one twice and divide by the step between."""
    eta: float = 0.0
    """Share of fresh noise, where `step` takes it."""
    predictions: tuple[str, ...] = ("epsilon", "v_prediction")
    """What the base's U-Net may predict."""

    @property
    def a1111_name(self) -> str:
        """Sampler and schedule, as in A1111 up to 1.8."""
        return f"{self.sampler} {self.schedule}".strip()


ALL = ("epsilon", "v_prediction", "sample")
SAMPLERS = {
    "dpm++-2m": SchedulerRecipe(
        "DPM++ 2M",
        "DPMSolverMultistepScheduler",
        MULTISTEP,
        automatic="Karras",
        num_unreachable=1,
        predictions=ALL,
    ),
    "dpm++-2m-sde": SchedulerRecipe(
        "DPM++ 2M SDE",
        "DPMSolverMultistepScheduler",
        MULTISTEP_SDE,
        automatic="Exponential",
        num_unreachable=1,
        predictions=ALL,
    ),
    "dpm++-2m-sde-heun": SchedulerRecipe(
        "DPM++ 2M SDE Heun",
        "DPMSolverMultistepScheduler",
        {**MULTISTEP_SDE, "solver_type": "heun"},
        automatic="Exponential",
        num_unreachable=1,
        predictions=ALL,
    ),
    "dpm++-3m-sde": SchedulerRecipe(
        "DPM++ 3M SDE",
        "DPMSolver3MSDEScheduler",
        {**MULTISTEP_SDE, "solver_order": 3},
        automatic="Exponential",
        num_unreachable=1,
        predictions=ALL,
    ),
    "dpm++-sde": SchedulerRecipe(
        "DPM++ SDE", "DPMSolverPlusPlusSDEScheduler", {**LINSPACE, **SIGMAS}, automatic="Karras"
    ),
    "dpm++-2s-a": SchedulerRecipe(
        "DPM++ 2S a", "DPMSolver2SAncestralScheduler", {**LINSPACE, **SIGMAS}, automatic="Karras"
    ),
    "dpm++-2s": SchedulerRecipe("DPM++ 2S", "DPMSolverSinglestepScheduler", DPM_SOLVER, predictions=ALL),
    "dpm2": SchedulerRecipe("DPM2", "KDPM2DiscreteScheduler", {**LINSPACE, **SIGMAS}, automatic="Karras"),
    "dpm2-a": SchedulerRecipe(
        "DPM2 a", "KDPM2AncestralDiscreteScheduler", {**LINSPACE, **SIGMAS}, automatic="Karras"
    ),
    "euler": SchedulerRecipe("Euler", "EulerDiscreteScheduler", EULER, predictions=ALL),
    "euler-a": SchedulerRecipe("Euler a", "EulerAncestralDiscreteScheduler", LINSPACE),
    "heun": SchedulerRecipe("Heun", "HeunDiscreteScheduler", {**LINSPACE, **SIGMAS, **NO_CLIPPING}),
    "lms": SchedulerRecipe("LMS", "LMSDiscreteScheduler", {**LINSPACE, **SIGMAS}),
    "ddim": SchedulerRecipe(
        "DDIM",
        "DDIMScheduler",
        {**LEADING, **NO_THRESHOLDING, **NO_CLIPPING, "set_alpha_to_one": False},
        num_unreachable=1,
        predictions=ALL,
    ),
    "ddpm": SchedulerRecipe(
        "DDPM",
        "DDPMScheduler",
        {**LEADING, **NO_THRESHOLDING, **NO_CLIPPING, "variance_type": "fixed_small"},
        num_unreachable=1,
        predictions=ALL,
    ),
    "pndm": SchedulerRecipe(
        "PLMS",
        "PNDMScheduler",
        {**LEADING, "set_alpha_to_one": False, "skip_prk_steps": True},
        num_unreachable=1,
    ),
    "deis": SchedulerRecipe("DEIS", "DEISMultistepScheduler", DEIS, num_unreachable=1, predictions=ALL),
    "unipc": SchedulerRecipe(
        "UniPC",
        "UniPCMultistepScheduler",
        UNIPC,
        num_unreachable=1,
        predictions=ALL,
    ),
    "lcm": SchedulerRecipe("LCM", "LCMScheduler", FEW_STEPS, predictions=ALL),
    "tcd": SchedulerRecipe("TCD", "TCDScheduler", FEW_STEPS, eta=0.3, predictions=ALL),
}
"""dpm++ reaches in 25 steps what pndm, Stable Diffusion's own, needs 50 for; lcm and tcd are for LoRAs that
were distilled for few steps."""

SCHEDULES = ("", "Karras", "Exponential")


def _with_schedules() -> dict[str, SchedulerRecipe]:
    recipes = {"dpm++": _scheduled(SAMPLERS["dpm++-2m"], "Karras")}
    for name, recipe in SAMPLERS.items():
        recipes[name] = recipe
        if "use_karras_sigmas" in recipe.settings:
            recipes |= {f"{name}-{each.lower()}": _scheduled(recipe, each) for each in SCHEDULES[1:]}
    del recipes["dpm++-2m-karras"]  # dpm++ by another name
    return recipes


def _scheduled(recipe: SchedulerRecipe, schedule: str) -> SchedulerRecipe:
    settings = recipe.settings | {f"use_{schedule.lower()}_sigmas": True}
    return replace(recipe, schedule=schedule, settings=settings, num_unreachable=0)


SCHEDULERS = _with_schedules()
"""By name; the default first."""


def _key(text: str) -> str:
    return "".join(text.lower().replace("-", " ").replace("_", " ").split())


def _keys() -> dict[str, str]:
    """Map every name, without case and spaces, to its scheduler."""
    keys = {}
    for name, recipe in SCHEDULERS.items():
        keys[_key(name)] = keys[_key(recipe.a1111_name)] = name
    for name, recipe in SAMPLERS.items():
        keys[_key(f"{recipe.sampler} Uniform")] = name
        keys[_key(f"{recipe.sampler} Automatic")] = keys[_key(f"{recipe.sampler} {recipe.automatic}")]
    return keys


_KEYS = _keys()


def scheduler_name(text: str) -> str:
    """Return the scheduler that a text names.

    Args:
        text: Such as "dpm++", "DPM++ 2M Karras" or "dpm++ 2m automatic"; case and hyphens do not count.

    Raises:
        UserError: If the name is unknown; gives the nearest one and all.
    """
    key = _key(text)
    if key in _KEYS:
        return _KEYS[key]
    nearest = difflib.get_close_matches(key, _KEYS, n=1)
    hint = f"did you mean {_KEYS[nearest[0]]!r}? " if nearest else ""
    raise UserError(
        f"no such scheduler; {hint}schedulers are dpm++, {', '.join(SAMPLERS)}, most also with -karras or "
        "-exponential"
    )


def max_steps(name: str, num_train_timesteps: int = 1000) -> int:
    """Return the most denoising steps that a scheduler can take."""
    recipe = SCHEDULERS[name]
    most = num_train_timesteps - recipe.num_unreachable
    return min(most, recipe.settings.get("original_inference_steps", most))
