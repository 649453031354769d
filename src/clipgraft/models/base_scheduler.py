"""A base's scheduler, of the class that its configuration names."""

from pathlib import Path
from typing import Any

import diffusers
from diffusers import SchedulerMixin

# diffusers' own name for it asks for scipy at once; it is needed for sampling alone.
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from clipgraft.errors import CheckpointError
from clipgraft.models.configs import SchedulerConfig, loading, read_config


def load_scheduler(folder: Path) -> SchedulerMixin:
    """Load the scheduler of the class named in its config.

    It gives the noise schedule; sampling has settings of its own. So beta sigmas, which need scipy, are only
    written down.

    Raises:
        CheckpointError: If diffusers has no such scheduler, or it cannot be made of the config.
    """
    path = folder / "scheduler_config.json"
    config = read_config(path, SchedulerConfig)
    name = config.get("_class_name")
    with loading(path, str(name)):
        named = {"LMSDiscreteScheduler": LMSDiscreteScheduler}
        kind: Any = named.get(str(name)) or getattr(diffusers, str(name), None)
        if not hasattr(kind, "add_noise"):
            raise CheckpointError(
                f"{path} names no scheduler of diffusers: {name!r}; give `_class_name` one of them"
            )
        sigmas = {key: value for key, value in config.items() if key == "use_beta_sigmas"}
        scheduler: SchedulerMixin = kind.from_config(config | dict.fromkeys(sigmas, False))
        scheduler.register_to_config(**sigmas)
        return scheduler
