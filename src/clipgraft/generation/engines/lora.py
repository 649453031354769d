"""LoRAs for the U-Net, e.g. for few steps, through diffusers' own loader."""

from importlib.util import find_spec
from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from clipgraft.errors import CheckpointError, MissingFileError, UserError
from clipgraft.models.configs import loading
from clipgraft.models.loading import read_weights, refuse_links_out

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
"""Of a LoRA in a folder, as diffusers writes it."""


def fuse_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Fuse a LoRA into a U-Net; its text encoder part is ignored.

    Args:
        unet: In torch.
        path: A `.safetensors` file, or a folder with `WEIGHTS_NAME`.

    Raises:
        FileNotFoundError: If it does not exist.
        UserError: If peft, which loads it, is not installed.
        CheckpointError: If it is not a LoRA of this U-Net.
    """
    tensors = read_lora(path)
    with loading(path, "a LoRA of this U-Net"):
        weights, alphas = StableDiffusionPipeline.lora_state_dict(tensors, unet_config=unet.config)
        if not any(key.startswith("unet.") for key in weights):
            raise KeyError("it has no part for a U-Net")  # else diffusers would load nothing in silence
        StableDiffusionPipeline.load_lora_into_unet(weights, network_alphas=alphas, unet=unet)
        unet.fuse_lora()
        unet.unload_lora()


def read_lora(path: Path) -> dict[str, Tensor]:
    """Read a LoRA's weights; see `fuse_lora` for arguments and errors."""
    if find_spec("peft") is None:
        raise UserError("a LoRA needs peft; pip install 'clipgraft[lora]'")
    if not path.exists():
        raise MissingFileError(f"no LoRA at {path}; name a .safetensors file or a folder with one")
    file = path / WEIGHTS_NAME if path.is_dir() else path
    if path.is_dir():
        refuse_links_out(path, [file])
    if file.suffix != ".safetensors" or not file.is_file():
        raise CheckpointError(f"{file} is not a .safetensors file; name one, or a folder with {WEIGHTS_NAME}")
    # A rank's scale may be a whole number.
    return read_weights([file], may_be_whole=lambda name: name.endswith("alpha"))
