"""Architecture of flatland, the embedded base: a small SD v1.5.

VAE factor 8, 4 latent channels, cross-attention on three levels, epsilon prediction with SD v1.5's betas. As
with CLIP B/32 and SD v1.5, the base's text encoder (192) is wider than CLIP's text tower (128) and as wide as
its vision tower, so that the wrong tower would fit here too.
"""

from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from clipgraft.flatland.writer import IMAGE_SIZE
from clipgraft.models.defaults import SamplingDefaults
from clipgraft.section import PIXELS_PER_LATENT

CLIP_IMAGE_SIZE = 96
"""Pixels for flatland's CLIP, 6 x 6 patches of 16; 8 x 8 patches would cost 1.8 times as much."""
SAMPLING_DEFAULTS = SamplingDefaults(guidance_scale=3.0, num_inference_steps=25)
"""Stable Diffusion's 7.5 oversaturates the colours of a base this small."""
VOCAB_SIZE = 2048
"""The tokenizer's maximum; flatland8k's captions need fewer tokens."""
TEXT_WIDTH = 128
TEACHER_WIDTH = 192


def build_vae() -> AutoencoderKL:
    """Return an untrained VAE (pixels (B, 3, 128, 128) in [-1, 1], latents (B, 4, 16, 16))."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    """Return an untrained U-Net (latents (B, 4, 16, 16), prompt embeds (B, 77, 192))."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // PIXELS_PER_LATENT,
        block_out_channels=(64, 128, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, as in SD v1.5
        cross_attention_dim=TEACHER_WIDTH,
        norm_num_groups=16,
    )


def build_teacher(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder for the U-Net (width 192)."""
    return CLIPTextModel(_text_config(tokenizer, TEACHER_WIDTH))


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP (widths: text and joint 128, vision 192)."""
    vision = CLIPVisionConfig(
        hidden_size=TEACHER_WIDTH,
        intermediate_size=4 * TEACHER_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=CLIP_IMAGE_SIZE,
        patch_size=16,
        projection_dim=TEXT_WIDTH,
    )
    text = _text_config(tokenizer, TEXT_WIDTH)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH)
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """Return CLIP's image processor at flatland's size."""
    size = {"height": CLIP_IMAGE_SIZE, "width": CLIP_IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": CLIP_IMAGE_SIZE}, crop_size=size)


def build_scheduler() -> PNDMScheduler:
    """Return SD v1.5's scheduler (values from scheduler_config.json)."""
    scheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    # Not a setting of PNDM, but, as in SD v1.5's file, for other schedulers made from this one.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def _text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
