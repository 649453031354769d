"""LoRA files: read in kohya's and diffusers' names, fused into models.

Each layer has its own rank and alpha; peft's pattern of alphas, which diffusers makes from kohya's files,
loses them in text encoders.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from diffusers.utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from diffusers.utils.state_dict_utils import StateDictType
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from clipgraft.errors import CheckpointError, MissingFileError, explain, number_of, some_of
from clipgraft.files import parse_json
from clipgraft.models.loading import read_weights, refuse_links_out, refuse_pickled_file
from clipgraft.section import Like

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""Of a LoRA in a folder, as diffusers writes it."""
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder"}
DIFFUSERS = ("unet", "text_encoder")
KOHYA_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
PEFT_PARTS = {"lora_A.weight": "down", "lora_B.weight": "up", "alpha": "alpha"}
OTHER_KINDS = {
    "hada_": "a LoHa (LyCORIS)",
    "lokr_": "a LoKr (LyCORIS)",
    "lora_mid": "a LoCon with Tucker decomposition (LyCORIS)",
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "oft_": "an OFT",
    "lora_te2_": "a LoRA for SDXL",
    "text_encoder_2.": "a LoRA for SDXL",
    "emb_params": "an embedding; name it with --embedding",
}
METADATA_KEY = "lora_adapter_metadata"
"""Of peft's settings in a file that diffusers wrote."""


class Update(NamedTuple):
    """A layer's update, `scale * up @ down`."""

    down: Tensor
    """(R, in) or of a convolution (R, in, k, k)."""
    up: Tensor
    """(out, R) or of a convolution (out, R, 1, 1)."""
    scale: float
    """alpha / R."""


class PeftSettings(BaseModel):
    """What decides an update's scale in files that diffusers wrote."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    lora_alpha: float | None = None
    """None = the rank."""
    alpha_pattern: dict[Annotated[str, Like(r"^\^?[\w.]+$", "the end of a layer's name")], float] = {}
    """By the end of layers' names; other patterns, which peft takes as well, are refused."""
    use_rslora: bool = False
    """Divide by the root of the rank."""
    use_dora: Literal[False] = False

    def scale(self, layer: str, rank: int) -> float:
        """Return alpha / R of a layer."""
        alpha: float = rank if self.lora_alpha is None else self.lora_alpha
        for ending, own in self.alpha_pattern.items():
            if f".{layer}".endswith(f".{ending.removeprefix('^')}"):
                alpha = own
                break
        return alpha / (rank**0.5 if self.use_rslora else rank)


class LoraFile(NamedTuple):
    """Updates of a U-Net's and a text encoder's layers, by underscored name."""

    path: Path
    unet: dict[str, Update]
    text_encoder: dict[str, Update]


def lora_path(path: Path) -> Path:
    """Return the file of a LoRA, which may be in a folder.

    Raises:
        MissingFileError: If it does not exist.
        CheckpointError: If it is pickled, or no `.safetensors` file.
    """
    if not path.exists():
        raise MissingFileError(f"no LoRA at {path}; name a .safetensors file or a folder with one")
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise MissingFileError(f"folder {path} has no {WEIGHTS_NAME}; name a LoRA's .safetensors file")
    refuse_pickled_file(file, "LoRA")
    if path.is_dir():
        refuse_links_out(path, [file])
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        raise CheckpointError(f"{file} is not a .safetensors file; name one, or a folder with {WEIGHTS_NAME}")
    return file


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA.

    Raises:
        MissingFileError: If it does not exist.
        CheckpointError: If it is damaged, no LoRA, or of a kind that is not supported; names its keys.
    """
    path = lora_path(path)
    # A rank's scale may be a whole number.
    tensors = read_weights([path], may_be_whole=lambda name: name.endswith("alpha"))
    for mark, kind in OTHER_KINDS.items():
        if found := next((key for key in tensors if mark in key), None):
            raise CheckpointError(
                f"{path} is {kind}, with keys such as {found!r}; LoRAs with lora_down and lora_up (or lora_A "
                "and lora_B) for Stable Diffusion 1 and 2 are read"
            )
    settings = _read_settings(path)
    parts: dict[str, dict[str, dict[str, Tensor]]] = {"unet": {}, "text_encoder": {}}
    unknown = []
    for key, tensor in tensors.items():
        component, layer, part = _place(key)
        if part:
            parts[component].setdefault(layer, {})[part] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"{path} has {_listed(unknown, 'key')} in neither kohya's nor diffusers' names of Stable "
            "Diffusion 1; convert it to one of them, or take another file"
        )
    if not any(parts.values()):
        raise CheckpointError(f"{path} is no LoRA: it holds no weights; take another file")
    updates = {
        component: {
            layer.replace(".", "_"): _update(path, f"{component}.{layer}", found, settings[component])
            for layer, found in layers.items()
        }
        for component, layers in parts.items()
    }
    return LoraFile(path, updates["unet"], updates["text_encoder"])


def fuse_lora(model: nn.Module, lora: LoraFile, strength: float, component: str) -> None:
    """Add a LoRA's updates to a model's weights.

    Args:
        model: Its layers' weights are changed, and computed with in float32.
        lora: From `read_lora`.
        strength: Of the update; 1 = as it was trained.
        component: Which part of the LoRA: `unet` or `text_encoder`.

    Raises:
        CheckpointError: As `check_lora`.
    """
    updates: dict[str, Update] = getattr(lora, component)
    layers = check_lora(model, lora, component)
    with torch.no_grad():
        for name, update in updates.items():
            weight: nn.Parameter = layers[name].weight  # type: ignore[assignment]
            change = update.up.flatten(1).float() @ update.down.flatten(1).float()
            change = (strength * update.scale * change).reshape(weight.shape).to(weight.device)
            weight.copy_(weight.float() + change)


def check_lora(model: nn.Module, lora: LoraFile, component: str) -> dict[str, nn.Module]:
    """Compare a LoRA's layers with a model's; return these by underscored name.

    Raises:
        CheckpointError: If it changes layers that the model lacks, or of another shape; names them.
    """
    updates: dict[str, Update] = getattr(lora, component)
    layers = _layers(model)
    unknown = [layer for layer in updates if layer not in layers]
    if unknown:
        raise CheckpointError(
            f"{lora.path} is a LoRA for another base: it changes {_listed(unknown, f'{component} layer')} "
            "that this base does not have; take a LoRA for this base"
        )
    for name, update in updates.items():
        _check_shape(lora.path, f"{component} layer {name}", layers[name].weight, update)
    return layers


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear and convolutional layers by underscored name."""
    return {
        name.removeprefix("text_model.").replace(".", "_"): module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }


def _place(key: str) -> tuple[str, str, str]:
    """Return a key's component, layer and part, without a part if unknown."""
    for prefix, component in KOHYA.items():
        if key.startswith(prefix):
            layer, _, part = key.removeprefix(prefix).partition(".")
            return component, layer.removeprefix("text_model_"), KOHYA_PARTS.get(part, "")
    component, _, name = key.partition(".")
    if component not in DIFFUSERS:
        return "", "", ""
    if component == "unet":
        [name] = convert_unet_state_dict_to_peft({name: None})
    else:
        for kind in (StateDictType.DIFFUSERS_OLD, StateDictType.DIFFUSERS):
            [name] = convert_state_dict_to_peft({name: None}, original_type=kind)
    for ending, part in PEFT_PARTS.items():
        if name.endswith(f".{ending}"):
            return component, name.removesuffix(f".{ending}").removeprefix("text_model."), part
    return "", "", ""


def _read_settings(path: Path) -> dict[str, PeftSettings]:
    """Read peft's settings by component; without them the defaults."""
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(METADATA_KEY) or "{}"
    values = parse_json(text, f"{path}: its metadata", error=CheckpointError)
    found = {}
    for component in DIFFUSERS:
        own = {key.removeprefix(f"{component}."): value for key, value in values.items()}
        try:
            found[component] = PeftSettings.model_validate(own)
        except ValidationError as error:
            reason = explain(error, PeftSettings, "setting")
            raise CheckpointError(f"{path}: its metadata cannot be used: {reason}") from None
    return found


def _update(path: Path, name: str, found: Mapping[str, Tensor], settings: PeftSettings) -> Update:
    if missing := {"down", "up"} - found.keys():
        raise CheckpointError(
            f"{path} is damaged: {name} has no {min(missing)} weights; take another copy of the LoRA"
        )
    down, up = found["down"], found["up"]
    rank = len(down)
    if down.ndim < 2 or up.ndim < 2 or up.shape[1] != rank or not rank:
        raise CheckpointError(
            f"{path} is damaged: {name} has weights of the shapes {tuple(down.shape)} and {tuple(up.shape)}, "
            "which have no rank in common; take another copy of the LoRA"
        )
    if "alpha" not in found:
        return Update(down, up, settings.scale(name, rank))
    if found["alpha"].numel() != 1:
        raise CheckpointError(
            f"{path} is damaged: {name}'s alpha is no number; take another copy of the LoRA"
        )
    return Update(down, up, float(found["alpha"]) / rank)


def _check_shape(path: Path, name: str, weight: Any, update: Update) -> None:
    found = (update.up.flatten(1).shape[0], update.down.flatten(1).shape[1])
    own = tuple(weight.flatten(1).shape)
    if found != own:
        raise CheckpointError(
            f"{path} is a LoRA for another base: its {name} is {found[0]}x{found[1]}, this base's "
            f"{own[0]}x{own[1]}; take a LoRA for this base"
        )


def _listed(names: list[str], what: str) -> str:
    return f"{number_of(len(names), what)} ({some_of(names)})"
