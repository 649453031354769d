"""LDM's names: diffusers' own converters find each weight under the name it came from."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from transformers import CLIPTextConfig, CLIPTextModel

from clipgraft.models import single_file as sd15
from clipgraft.models.ldm_names import to_ldm

PUBLISHED = {
    "model.diffusion_model.time_embed.2.bias": (1280,),
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
    "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.11.0.emb_layers.1.weight": (320, 1280),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.encoder.mid.attn_1.norm.weight": (512,),
    "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "first_stage_model.decoder.norm_out.weight": (128,),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight": (768, 3072),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
}
"""Some names and shapes of the published v1-5-pruned-emaonly.safetensors."""


@pytest.fixture(scope="module")
def models():
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel.from_config(sd15.UNET_CONFIG),
            "vae": AutoencoderKL.from_config(sd15.VAE_CONFIG),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**sd15.TEXT_CONFIG)),
        }


def ldm_weights(models, name):
    return to_ldm(name, models[name].state_dict(), dict(getattr(models[name].config, "items", dict)()))


@pytest.mark.parametrize(
    ("name", "convert"), [("unet", convert_ldm_unet_checkpoint), ("vae", convert_ldm_vae_checkpoint)]
)
def test_diffusers_gives_each_weight_its_own_name_back(models, name, convert):
    own, config = models[name].state_dict(), dict(models[name].config)
    names = {key: torch.full(weight.shape[:1], index) for index, (key, weight) in enumerate(own.items())}
    back = convert(to_ldm(name, names, config), config)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[key], names[key]) for key in own)


def test_a_text_encoder_keeps_the_names_of_transformers(models):
    own = models["text_encoder"].state_dict()
    back = convert_ldm_clip_checkpoint(to_ldm("text_encoder", own, {}))
    assert back.keys() == {f"text_model.{key}" for key in own}


def test_names_and_shapes_are_those_of_the_published_file(models):
    found = {key: tuple(weight.shape) for name in models for key, weight in ldm_weights(models, name).items()}
    assert len(found) == 686 + 248 + 196
    assert {key: found.get(key) for key in PUBLISHED} == PUBLISHED
