"""A distilled text encoder in its base's one-file checkpoint."""

import torch
from safetensors import safe_open
from torch import Tensor

from clipgraft.errors import UserError
from clipgraft.exporting.file_metadata import LDM_NAMES, STABLE_DIFFUSION, ModelFile, describe_file
from clipgraft.exporting.plain_pipeline import load_distilled_base
from clipgraft.models.base import COMPONENTS, FrozenBase
from clipgraft.models.graft import Graft
from clipgraft.models.ldm_names import to_ldm
from clipgraft.models.modelspec import PREFIX
from clipgraft.models.single_file import POSITION_IDS, refuse_other_architectures
from clipgraft.section import PIXELS_PER_LATENT


def build_checkpoint(distilled: Graft, base: str, title: str, dtype: torch.dtype | None) -> ModelFile:
    """Return the base in LDM's layout with another text encoder.

    Of a base in one file all other tensors are kept as they are, and its metadata too.

    Args:
        distilled: With a plain `CLIPTextModel`.
        base: Present location of the base; empty = the recorded one.
        title: For its metadata.
        dtype: Of floating-point tensors; None = that of each in the base.

    Raises:
        UserError: If the base is no Stable Diffusion v1, or a weight is beyond float16's range.
    """
    frozen = load_distilled_base(distilled, base, COMPONENTS, None)
    refuse_other_architectures(frozen.unet, frozen.vae, frozen.text_encoder)
    tensors, metadata = _base_tensors(frozen)
    weights = distilled.text_encoder.state_dict()
    for name, weight in to_ldm("text_encoder", weights, {}).items():
        tensors[name] = weight.to(tensors[name].dtype)
    if dtype:
        tensors = {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}
    metadata |= describe_file(
        distilled, title, architecture=STABLE_DIFFUSION, implementation=LDM_NAMES
    ) | _sampling(frozen)
    return ModelFile(tensors, metadata)


def _sampling(frozen: FrozenBase) -> dict[str, str]:
    side = frozen.unet.config.sample_size * PIXELS_PER_LATENT
    prediction = frozen.scheduler.config.get("prediction_type", "epsilon")
    return {
        f"{PREFIX}resolution": f"{side}x{side}",
        f"{PREFIX}prediction_type": "v" if prediction == "v_prediction" else prediction,
    }


def _base_tensors(frozen: FrozenBase) -> tuple[dict[str, Tensor], dict[str, str]]:
    path = frozen.origin.path
    if path.is_file():
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    tensors: dict[str, Tensor] = {}
    for name in ("unet", "vae", "text_encoder"):
        model = getattr(frozen, name)
        config = model.config.to_dict() if name == "text_encoder" else dict(model.config)
        tensors |= to_ldm(name, model.state_dict(), config)
    length = frozen.text_encoder.config.max_position_embeddings
    return {**tensors, POSITION_IDS: torch.arange(length)[None]}, {}


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if dtype == torch.float16 and not torch.stack(cast.aminmax()).isfinite().all():
        raise UserError(f"{name} has values beyond float16's range of 65,504; export with --dtype float32")
    return cast
