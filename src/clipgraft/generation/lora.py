"""LoRAs for the U-Net, e.g. for few steps, through diffusers' own loader. Class C: another picture."""

from importlib.util import find_spec
from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError

from clipgraft.errors import CheckpointError, MissingFileError, UserError


def fuse_lora(unet: UNet2DConditionModel, path: Path) -> None:
    """Add a LoRA to a U-Net's weights, after which no engine sees that there was one.

    A part for the text encoder is left out: the grafted encoder is another one.

    Args:
        unet: In torch.
        path: A `.safetensors` file, or a folder with `pytorch_lora_weights.safetensors`.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If peft, which loads it, is not installed.
        CheckpointError: If it is no LoRA, or of another U-Net.
    """
    if find_spec("peft") is None:
        raise UserError("a LoRA needs peft; pip install 'clipgraft[lora]'")
    if not path.exists():
        raise MissingFileError(f"no LoRA at {path}; name a .safetensors file or a folder with one")
    try:
        weights, alphas = StableDiffusionPipeline.lora_state_dict(
            path, unet_config=unet.config, use_safetensors=True, local_files_only=True
        )
        if not any(key.startswith("unet.") for key in weights):
            raise KeyError("it has no part for a U-Net")  # else diffusers would load nothing in silence
        StableDiffusionPipeline.load_lora_into_unet(weights, network_alphas=alphas, unet=unet)
        unet.fuse_lora()
        unet.unload_lora()
    except (RuntimeError, ValueError, LookupError, OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} cannot be loaded as a LoRA of this U-Net: {reason}") from error
