"""VAEs in place of a base's own, tiny ones (TAESD) too, loaded strictly."""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from torch import Tensor, nn

from clipgraft.errors import CheckpointError, MissingFileError
from clipgraft.models.configs import Checked, TinyVaeConfig, VaeConfig, loading, read_config
from clipgraft.models.hub import resolve_model
from clipgraft.models.loading import (
    DIFFUSERS_STEM,
    load_strictly,
    opened_weights,
    read_weights,
    refuse_links_out,
    refuse_misfits,
    refuse_pickled_file,
    refuse_pickles,
    set_weights,
)
from clipgraft.models.single_file import VAE_PREFIX
from clipgraft.models.weights import Needed, Weights

CONFIG_NAME = "config.json"
NEEDED = Needed((CONFIG_NAME,), (Weights(DIFFUSERS_STEM),))
CLASSES: dict[str, tuple[Any, type[Checked]]] = {
    "AutoencoderKL": (AutoencoderKL, VaeConfig),
    "AutoencoderTiny": (AutoencoderTiny, TinyVaeConfig),
}
FORMATS = (
    "name an AutoencoderKL with LDM's or diffusers' names, an AutoencoderTiny, or taesd_decoder.safetensors"
)
OF_TRAINING = ("loss.", "model_ema.")
"""Prefixes of weights that published VAEs hold beside their own: a discriminator, and averages."""
KL_INPUT, TINY_INPUT, TAESD_INPUT = "decoder.conv_in.weight", "decoder.layers.0.weight", "1.weight"
"""First convolution of a decoder, from latents: in LDM's and in diffusers' names; of a tiny one; in TAESD's
own names, which number the layers of a decoder from 1 and of an encoder from 0."""
LDM_KEY, TAESD_KEY, TAESD_ENCODER_KEY = (
    "encoder.down.0.block.0.conv1.weight",
    "3.conv.0.weight",
    "1.conv.0.weight",
)
SHAPED = ("in_channels", "out_channels", "latent_channels")
LEVELS = ("block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels")
"""Each level but the first halves or doubles height and width."""
LEAST_COSINE = 0.5
"""Between the encoders of two VAEs with the same latents: fine-tuning starts from the same weights, and most
often leaves the encoder alone; of a VAE trained anew it is about 0."""


def load_vae(name: str, base_vae: AutoencoderKL) -> AutoencoderKL | AutoencoderTiny:
    """Load a VAE for the latents of a base.

    Args:
        name: Folder in diffusers' layout, hub id, or one `.safetensors` file: with LDM's names (a whole
            checkpoint too), with diffusers', or TAESD's decoder, whose encoder is found beside it; without
            that, images are encoded by the base's own VAE.
        base_vae: The base's own; gives dtype, and a file with an AutoencoderKL its architecture.

    Raises:
        MissingFileError: If there is no such path and the name is not a hub id.
        CheckpointError: If it is no VAE, damaged, or for another base; says what is allowed.
    """
    path = find_vae(name)
    vae = _load_folder(path, base_vae) if path.is_dir() else _load_file(path, base_vae)
    _refuse_another_base(path, vae.config, base_vae.config)
    if isinstance(vae, AutoencoderKL):
        _refuse_other_latents(path, vae, base_vae)
    return vae


def find_vae(name: str) -> Path:
    """Return a VAE's file or folder, fetched if on the hub.

    Raises:
        MissingFileError: If there is no such path and the name is not a hub id.
        CheckpointError: If it is a pickle, or SDXL's TAESD.
    """
    place = Path(name).expanduser()
    refuse_pickled_file(place, "VAE")
    if place.suffix.lower() == ".safetensors" and not place.exists():
        raise MissingFileError(f"no VAE at {name}; name a .safetensors file, a folder or a hub id")
    # The weights of TAESD and TAESDXL have the same shapes, so that only their names tell them apart.
    if "taesdxl" in place.name.lower():
        raise CheckpointError(f"VAE {name} is for SDXL; name one that was made for this base, such as TAESD")
    return resolve_model(name, part="base/vae", needed=NEEDED)


def _load_folder(folder: Path, base_vae: AutoencoderKL) -> AutoencoderKL | AutoencoderTiny:
    """Load a VAE from its folder, or a base's."""
    if (folder / "model_index.json").is_file():
        folder = folder / "vae"
    config = folder / CONFIG_NAME
    if not config.is_file():
        if folder.is_dir():
            refuse_pickles(folder)
        raise CheckpointError(f"{folder} is no VAE: it has no config.json; {FORMATS}")
    class_name = read_config(config, Checked).get("_class_name")
    if class_name not in CLASSES:
        raise CheckpointError(
            f"{config} names the class {class_name}, which is no VAE that can be used; {FORMATS}"
        )
    refuse_links_out(folder, [folder])
    model_class, kind = CLASSES[class_name]
    return load_strictly(model_class, folder, kind, dtype=base_vae.dtype)


def _load_file(path: Path, base_vae: AutoencoderKL) -> AutoencoderKL | AutoencoderTiny:
    """Load a VAE from one file, by the names of its weights."""
    if path.suffix.lower() != ".safetensors":
        raise CheckpointError(f"{path} is not a .safetensors file; {FORMATS}")
    with opened_weights(path) as file:
        held = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    prefix = VAE_PREFIX if any(name.startswith(VAE_PREFIX) for name in held) else ""
    own = {name.removeprefix(prefix): shape for name, shape in held.items() if name.startswith(prefix)}
    first = next((name for name in (KL_INPUT, TINY_INPUT) if name in own), "")
    if not first and TAESD_KEY in own:
        first = TAESD_INPUT
    if first not in own:
        raise CheckpointError(
            f"{path} holds no {'decoder' if TAESD_ENCODER_KEY in own else 'VAE'}; {FORMATS}"
        )
    if len(own[first]) == 4:
        _refuse_difference(path, "latent_channels", own[first][1], base_vae.config.latent_channels)
    if first == TAESD_INPUT:
        return _load_taesd(path, base_vae)
    weights = read_weights([path], lambda name: name.startswith(prefix) and not name.startswith(OF_TRAINING))
    weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
    with torch.device("meta"):
        vae: Any = AutoencoderTiny() if first == TINY_INPUT else AutoencoderKL.from_config(base_vae.config)
    if LDM_KEY in own:
        with loading(path, "a VAE with LDM's names"):
            weights = convert_ldm_vae_checkpoint(weights, dict(vae.config))
    vae._fix_state_dict_keys_on_load(weights)  # attention as `query`, `key`, `value`
    return _filled(path, vae, weights, base_vae)


def _load_taesd(path: Path, base_vae: AutoencoderKL) -> AutoencoderKL | AutoencoderTiny:
    """Load TAESD's decoder, and its encoder if that is beside it."""
    with torch.device("meta"):
        tiny = AutoencoderTiny()
    tiny.decoder = _filled(path, tiny.decoder, _numbered(path, 1), base_vae)
    encoder = path.with_name(path.name.replace("decoder", "encoder"))
    if encoder == path or not encoder.is_file():
        return _with_decoder(base_vae, tiny.decoder)
    tiny.encoder = _filled(encoder, tiny.encoder, _numbered(encoder, 0), base_vae)
    return tiny.eval()


def _numbered(path: Path, first: int) -> dict[str, Tensor]:
    """Read TAESD's own names as diffusers', where layers count from 0."""
    renamed = {}
    for name, weight in read_weights([path]).items():
        number, _, rest = name.partition(".")
        renamed[f"layers.{int(number) - first}.{rest}" if number.isdecimal() else name] = weight
    return renamed


def _with_decoder(base_vae: AutoencoderKL, decoder: nn.Module) -> AutoencoderKL:
    """Return a base's VAE with a decoder that takes scaled latents."""
    vae = copy.deepcopy(base_vae)
    vae.decoder = decoder
    channels, factor = vae.config.latent_channels, vae.config.scaling_factor
    vae.post_quant_conv = nn.Conv2d(channels, channels, 1, bias=False).to(vae.dtype)
    with torch.no_grad():  # undoes the pipeline's division of the latents by the factor
        vae.post_quant_conv.weight.copy_(factor * torch.eye(channels)[:, :, None, None])
    return vae


def _filled(path: Path, model: Any, weights: dict[str, Tensor], base_vae: AutoencoderKL) -> Any:
    refuse_misfits(path, model, weights)
    return set_weights(model, weights, base_vae.dtype)


def _refuse_another_base(path: Path, config: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    for key in SHAPED:
        _refuse_difference(path, key, config[key], base[key])
    needed = 2 ** (len(base["block_out_channels"]) - 1)
    for key in LEVELS:
        if key in config:
            _refuse_difference(path, "pixels per latent position", 2 ** (len(config[key]) - 1), needed)


def _refuse_difference(path: Path, what: str, own: object, needed: object) -> None:
    if own != needed:
        raise CheckpointError(
            f"VAE {path} is for another base: its {what} is {own}, this base's {needed}; name one that was "
            "made for this base"
        )


def _refuse_other_latents(path: Path, vae: AutoencoderKL, base_vae: AutoencoderKL) -> None:
    """Refuse a VAE of equal shape but other latents, as SDXL's."""
    own, needed = vae.config.scaling_factor, base_vae.config.scaling_factor
    if not math.isclose(own, needed, rel_tol=1e-3):
        _refuse_difference(path, "scaling_factor", own, needed)
    ours, theirs = (_convolutions(each.encoder) for each in (vae, base_vae))
    if ours.shape == theirs.shape:
        cosine = float(torch.cosine_similarity(ours, theirs, 0))
        if cosine < LEAST_COSINE:
            raise CheckpointError(
                f"VAE {path} is for other latents: its encoder's weights have a cosine of {cosine:.2f} to "
                f"this base's, at least {LEAST_COSINE} is allowed; name one that was made for this base"
            )


def _convolutions(encoder: nn.Module) -> Tensor:
    return torch.cat(
        [weight.detach().float().flatten() for weight in encoder.parameters() if weight.ndim == 4]
    )
