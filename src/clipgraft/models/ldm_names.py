"""Names and shapes of a base's weights in LDM's one-file layout.

diffusers reads that layout (`clipgraft.models.single_file`) and has no writer. Blocks are counted through,
with a downsampler as one of its own; the VAE's decoder is counted from its last block, and its attention's
matrices are convolutions of one pixel.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from clipgraft.models.single_file import TEXT_PREFIX, UNET_PREFIX, VAE_PREFIX

RESNET_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_PARTS = {
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}


def to_ldm(component: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Rename a component's weights, without copying them.

    Args:
        component: "unet", "vae" or "text_encoder".
        weights: By diffusers' or transformers' present names.
        config: The component's own configuration.
    """
    names: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
        "unet": _unet_name,
        "vae": _vae_name,
        "text_encoder": lambda name, _: TEXT_PREFIX + name,
    }
    renamed = {names[component](name, config): weight for name, weight in weights.items()}
    return {
        name: weight[:, :, None, None] if ".attn_1." in name and weight.ndim == 2 else weight
        for name, weight in renamed.items()
    }


def _unet_name(name: str, config: Mapping[str, Any]) -> str:
    per_block = config["layers_per_block"] + 1
    attended = [kind.startswith("CrossAttn") for kind in config["up_block_types"]]

    def down(match: re.Match[str]) -> str:
        block, kind, layer = int(match[1]), match[2], int(match[3])
        if kind == "downsamplers":
            return f"input_blocks.{per_block * (block + 1)}.0.op."
        return f"input_blocks.{per_block * block + layer + 1}.{0 if kind == 'resnets' else 1}."

    def up(match: re.Match[str]) -> str:
        block, kind, layer = int(match[1]), match[2], int(match[3])
        if kind == "upsamplers":
            return f"output_blocks.{per_block * (block + 1) - 1}.{2 if attended[block] else 1}.conv."
        return f"output_blocks.{per_block * block + layer}.{0 if kind == 'resnets' else 1}."

    if "resnets" in name:
        name = _replace_parts(name, RESNET_LAYERS)
    name = re.sub(r"^down_blocks\.(\d+)\.(\w+)\.(\d+)\.(?:conv\.)?", down, name)
    name = re.sub(r"^up_blocks\.(\d+)\.(\w+)\.(\d+)\.(?:conv\.)?", up, name)
    name = re.sub(r"^mid_block\.attentions\.0\.", "middle_block.1.", name)
    name = re.sub(r"^mid_block\.resnets\.(\d)\.", lambda match: f"middle_block.{2 * int(match[1])}.", name)
    stem, _, kind = name.rpartition(".")
    return f"{UNET_PREFIX}{UNET_ENDS.get(stem, stem)}.{kind}"


def _vae_name(name: str, config: Mapping[str, Any]) -> str:
    last = len(config["block_out_channels"]) - 1
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda match: f"up.{last - int(match[1])}.block.", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda match: f"up.{last - int(match[1])}.upsample.", name
    )
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda match: f"mid.block_{int(match[1]) + 1}.", name)
    return VAE_PREFIX + _replace_parts(name, VAE_PARTS)


def _replace_parts(name: str, parts: Mapping[str, str]) -> str:
    for ours, ldm in parts.items():
        name = name.replace(f"{ours}.", f"{ldm}.")
    return name
