"""Default guidance and steps of a base, else Stable Diffusion 1's."""

from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from clipgraft.models.configs import Checked, UnetConfig, read_config
from clipgraft.models.hub import HUB_ID, PINS, embedded_models
from clipgraft.section import FLATLAND, Guidance, Steps

FILE_NAME = "generation_config.json"
"""Beside `model_index.json`; the name is transformers'. Keys outside SamplingDefaults are ignored."""

UNET_CONFIG = "unet/config.json"


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling parameters suited to a base."""

    guidance_scale: float
    num_inference_steps: int


STABLE_DIFFUSION = SamplingDefaults(guidance_scale=7.5, num_inference_steps=25)
"""CompVis's and diffusers' guidance; steps of dpm++, instead of 50 with its own pndm."""


class _File(Checked):
    guidance_scale: Guidance = 7.5
    num_inference_steps: Steps = 25


def read_defaults(base: Path) -> SamplingDefaults:
    """Read the defaults beside a local base's weights.

    Raises:
        CheckpointError: If the file is damaged or a value is not allowed; names it.
    """
    path = base / FILE_NAME
    if not path.is_file():
        return STABLE_DIFFUSION
    said = {key: value for key, value in read_config(path, _File).items() if key in _File.model_fields}
    return replace(STABLE_DIFFUSION, **said)


def find_defaults(name: str, revision: str = "") -> SamplingDefaults:
    """Read a base's defaults by name and commit, without loading it."""
    return read_defaults(_local_file(name, revision, FILE_NAME).parent)


def find_text_width(name: str, revision: str = "") -> int | None:
    """Read the width of the text states that a base's U-Net takes.

    Returns:
        768 for Stable Diffusion 1; None if the base is one file, or not here yet.

    Raises:
        CheckpointError: If its configuration is damaged.
    """
    path = _local_file(name, revision, UNET_CONFIG)
    return read_config(path, UnetConfig)["cross_attention_dim"] if path.is_file() else None


def _local_file(name: str, revision: str, file: str) -> Path:
    """Return where a base's file is, or would be, without a download."""
    if name == FLATLAND:
        return embedded_models() / "base" / file
    path = Path(name).expanduser()
    if path.exists() or not HUB_ID.fullmatch(name):
        return path / file
    commit = revision or (PINS[name].revision if name in PINS else None)
    cached = try_to_load_from_cache(name, file, revision=commit)
    return Path(cached) if isinstance(cached, str) else path / file
