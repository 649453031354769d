"""What a written model file says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from torch import Tensor

from clipgraft.models.graft import Graft
from clipgraft.models.modelspec import PREFIX, VERSION
from clipgraft.reporting.model_card import license_of, public_name

STABLE_DIFFUSION = "stable-diffusion-v1"
LDM_NAMES = "https://github.com/Stability-AI/generative-models"
DIFFUSERS_NAMES = "diffusers"
"""Whose names the tensors have, in the words of kohya's trainers."""
SHOWN_WORDS = 100


@dataclass(frozen=True)
class ModelFile:
    """Content of a safetensors file."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def describe_file(distilled: Graft, title: str, *, architecture: str, implementation: str) -> dict[str, str]:
    """Return the metadata of a model file by Stability's model specification.

    Args:
        distilled: Its text encoder.
        title: Shown by tools in lists.
        architecture: One of the specification's, or another name.
        implementation: Whose names the tensors have.
    """
    name, stage = public_name(distilled.base.name), distilled.lineage.find("distill")
    said = {
        "sai_model_spec": VERSION,
        "architecture": architecture,
        "implementation": implementation,
        "title": title,
        "date": datetime.now(UTC).date().isoformat(),
        "description": f"{name} whose text encoder has learned words; U-Net and VAE are unchanged. Derived "
        f"from {' at commit '.join(filter(None, (name, distilled.base.revision)))} with clipgraft.",
        "license": license_of(distilled.base.name) or f"that of {name}",
    }
    if stage and stage.words:
        said["usage_hint"] = f"New words: {', '.join([*stage.words][:SHOWN_WORDS])}"
    return {PREFIX + key: value for key, value in said.items()}
