"""Random numbers of a step: seeded by what the step is, so that no state of them needs to be kept."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def seed_step(seed: int, step: int, process_index: int) -> None:
    """Seed torch's generators for one step, so that a resumed run draws what the unbroken one does.

    Args:
        seed: The run's, not negative.
        step: Steps made before it.
        process_index: Processes draw different numbers: each has images of its own.
    """
    sequence = np.random.SeedSequence((seed, step, process_index))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the state of each of torch's generators that work on a device draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Bring back what `random_states` gave for the device."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])
