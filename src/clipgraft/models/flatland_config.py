"""The architecture of flatland, the embedded base: SD v1.5 in small, the same in every convention.

8x down to 4 latent channels, cross-attention on three levels, epsilon prediction with SD v1.5's betas, a text
encoder (192) wider than the CLIP that is grafted (128), as 768 is wider than 512; and, as in CLIP B/32, a
vision tower as wide as the text encoder, so that taking the wrong tower would fit in silence here too.
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

from clipgraft.models.defaults import SamplingDefaults

IMAGE_SIZE = 128
CLIP_IMAGE_SIZE = 96
"""Pixels that flatland's CLIP sees, as 6 x 6 patches of 16; 8 x 8 patches would cost 1.8 times as much."""
SAMPLING_DEFAULTS = SamplingDefaults(guidance_scale=3.0, num_inference_steps=25)
"""At Stable Diffusion's 7.5 a base as small as this burns its colours."""
VOCAB_SIZE = 2048
"""Most tokens of the tokenizer; flatland8k's captions need fewer."""
TEXT_WIDTH = 128
TEACHER_WIDTH = 192


def build_vae() -> AutoencoderKL:
    """Return an untrained VAE: (B, 3, 128, 128) in [-1, 1] to latents (B, 4, 16, 16) and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    """Return an untrained U-Net over latents (B, 4, 16, 16) and token states (B, 77, 192)."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        block_out_channels=(64, 128, 192),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, as in SD v1.5
        cross_attention_dim=TEACHER_WIDTH,
        norm_num_groups=16,
    )


def build_teacher(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained text encoder for the U-Net, 192 wide."""
    return CLIPTextModel(_text_config(tokenizer, TEACHER_WIDTH, num_layers=3))


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return an untrained CLIP: text tower 128 wide, vision tower 192 wide, joint space of 128."""
    vision = CLIPVisionConfig(
        hidden_size=TEACHER_WIDTH,
        intermediate_size=4 * TEACHER_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=CLIP_IMAGE_SIZE,
        patch_size=16,
        projection_dim=TEXT_WIDTH,
    )
    text = _text_config(tokenizer, TEXT_WIDTH, num_layers=3)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=TEXT_WIDTH)
    )


def build_image_processor() -> CLIPImageProcessorPil:
    """Return CLIP's processor at flatland's size: bicubic resize, centre crop, CLIP's mean and deviation."""
    size = {"height": CLIP_IMAGE_SIZE, "width": CLIP_IMAGE_SIZE}
    return CLIPImageProcessorPil(size={"shortest_edge": CLIP_IMAGE_SIZE}, crop_size=size)


def build_scheduler() -> PNDMScheduler:
    """Return SD v1.5's scheduler (values of its scheduler_config.json)."""
    scheduler = PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    # Not of PNDM's own: for whoever makes another scheduler from this one, as SD v1.5's file has it.
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def _text_config(tokenizer: CLIPTokenizer, width: int, *, num_layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
