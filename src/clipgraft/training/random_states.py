"""States of the generators that a step draws from: the CPU's, and the device's own."""

from collections.abc import Mapping

import torch
from torch import Tensor


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the state of each of torch's generators that work on a device draws from, as `random.<its>`."""
    states = {"random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["random.mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Bring back what `random_states` gave for the device; there may be more, of other devices.

    Raises:
        KeyError: If one is missing.
    """
    torch.set_rng_state(states["random.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["random.cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["random.mps"])
