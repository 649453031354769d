"""Objectives: what they train, what they leave alone, and the formulas they compute."""

import math

import pytest
import torch
from diffusers import DDPMScheduler

import tiny
from clipgraft.data.transforms import clip_pixel_values, tokenize
from clipgraft.models.bridge import Bridge, position_weights, token_classes
from clipgraft.models.clip import text_hidden_states
from clipgraft.training.objectives import (
    AutoencoderObjective,
    BridgeObjective,
    ContrastiveObjective,
    DenoisingObjective,
)
from tiny import fit


class Repeated:
    """One batch, again and again."""

    def __init__(self, batch, num_batches=4):
        self.batch, self.num_batches = batch, num_batches

    def __len__(self):
        return self.num_batches

    def epoch(self, epoch, start):
        return [self.batch] * (self.num_batches - start)


@pytest.fixture
def clip():
    return tiny.build_clip()


def pairs(clip):
    from PIL import Image

    images = [Image.new("RGB", (32, 32), (50 * k, 255 - 50 * k, 20)) for k in range(5)]
    return {
        "clip_pixel_values": clip_pixel_values(images, clip.image_processor),
        "input_ids": tokenize(tiny.CAPTIONS, clip.tokenizer),
        "image_index": torch.arange(5),
        "caption_image": torch.arange(5),
    }


def test_contrastive_loss_equals_transformers_own(clip):
    batch = pairs(clip)
    loss, metrics = ContrastiveObjective(clip.model)(batch)
    expected = clip.model(
        input_ids=batch["input_ids"], pixel_values=batch["clip_pixel_values"], return_loss=True
    ).loss
    torch.testing.assert_close(loss, expected)
    assert metrics["logit_scale"].item() == pytest.approx(math.exp(2.6592), rel=1e-4)


def test_contrastive_loss_does_not_depend_on_the_padding(clip):
    batch = pairs(clip)
    longest, _ = ContrastiveObjective(clip.model)(batch)
    ids = tokenize(tiny.CAPTIONS, clip.tokenizer, pad_to_context_length=True)
    full, _ = ContrastiveObjective(clip.model)({**batch, "input_ids": ids})
    torch.testing.assert_close(longest, full)


@pytest.mark.parametrize(("start", "end"), [(9.0, math.log(100)), (-3.0, 0.0), (2.0, 2.0)])
def test_logit_scale_is_clamped_on_the_parameter(clip, start, end):
    objective = ContrastiveObjective(clip.model)
    clip.model.logit_scale.data.fill_(start)
    objective.after_step()
    assert clip.model.logit_scale.item() == pytest.approx(end)


def test_few_pairs_are_learned_by_heart(clip, tmp_path):
    result = fit(
        ContrastiveObjective(clip.model),
        Repeated(pairs(clip), 10),
        run_dir=tmp_path,
        num_epochs=6,
        learning_rate=3e-3,
    )
    assert result.epoch_mean_loss[-1] < 0.5 * result.epoch_mean_loss[0]


def test_a_bridge_learns_the_teachers_states(clip, tmp_path):
    ids = tokenize(tiny.CAPTIONS, clip.tokenizer, pad_to_context_length=True)
    classes = token_classes(ids, clip.tokenizer.eos_token_id)
    with torch.no_grad():
        batch = {
            "student": text_hidden_states(clip.model.text_model, ids),
            "teacher": text_hidden_states(tiny.build_pipeline().text_encoder, ids),
            "classes": classes,
            "positions": torch.arange(77).expand_as(classes),
            "weights": position_weights(classes),
        }
    bridge = Bridge(tiny.TEXT_WIDTH, tiny.TEACHER_WIDTH, hidden_size=16)
    objective = BridgeObjective(bridge)
    result = fit(objective, Repeated(batch), run_dir=tmp_path, num_epochs=10, learning_rate=1e-2)
    assert result.epoch_mean_loss[-1] < 0.8 * result.epoch_mean_loss[0]


def test_drawing_leaves_the_frozen_base_as_it_was_to_the_bit():
    base = tiny.build_base()
    before = base.weight_checksums()
    latents = base.encode_latents(torch.zeros(1, 3, 64, 64))
    base.decode_latents(latents)
    assert base.weight_checksums() == before
    assert not any(
        parameter.requires_grad for module in base.modules.values() for parameter in module.parameters()
    )


def test_noisy_latents_are_those_of_diffusers_scheduler():
    seen = {}

    class Recorder(torch.nn.Module):
        """Stands where the U-Net does, to see what it is given."""

        def forward(self, noisy_latents, timesteps, hidden_states):
            seen.update(noisy=noisy_latents, timesteps=timesteps, states=hidden_states)
            return type("Output", (), {"sample": torch.zeros_like(noisy_latents)})

    pipeline = tiny.build_pipeline()
    tokenizer = pipeline.tokenizer
    ids = tokenize(tiny.CAPTIONS, tokenizer, pad_to_context_length=True)
    empty = tokenize([""], tokenizer, pad_to_context_length=True)[0]
    objective = DenoisingObjective(
        Recorder(),
        pipeline.text_encoder,
        alphas_cumprod=pipeline.scheduler.alphas_cumprod,
        empty_input_ids=empty,
        caption_drop=0.0,
        snr_gamma=5.0,
    )
    latents = torch.randn(5, 4, 8, 8)
    torch.manual_seed(7)
    objective({"latents": latents, "input_ids": ids})
    torch.manual_seed(7)
    torch.rand(5, 1)
    timesteps = torch.randint(1000, (5,))
    noise = torch.randn_like(latents)
    library = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    assert torch.equal(seen["timesteps"], timesteps)
    torch.testing.assert_close(seen["noisy"], library.add_noise(latents, noise, timesteps))
    torch.testing.assert_close(seen["states"], pipeline.text_encoder(ids).last_hidden_state)


def test_dropped_captions_become_the_empty_prompt():
    pipeline = tiny.build_pipeline()
    ids = tokenize(tiny.CAPTIONS, pipeline.tokenizer, pad_to_context_length=True)
    empty = tokenize([""], pipeline.tokenizer, pad_to_context_length=True)[0]
    losses = []
    for captions in (ids, ids.flip(0)):
        objective = DenoisingObjective(
            pipeline.unet,
            pipeline.text_encoder,
            alphas_cumprod=pipeline.scheduler.alphas_cumprod,
            empty_input_ids=empty,
            caption_drop=1.0,
            snr_gamma=5.0,
        )
        torch.manual_seed(0)
        losses.append(objective({"latents": torch.ones(5, 4, 8, 8), "input_ids": captions})[0])
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)


@pytest.mark.integration
def test_autoencoder_learns_and_tells_its_psnr(tmp_path):
    vae = tiny.build_pipeline().vae
    pixels = torch.linspace(-1, 1, 16)[None, None, None].expand(2, 3, 16, 16).contiguous()
    batches = Repeated({"vae_pixel_values": pixels}, 30)
    result = fit(AutoencoderObjective(vae, 1e-6), batches, run_dir=tmp_path, num_epochs=2, learning_rate=3e-3)
    assert result.epoch_mean_loss[1] < result.epoch_mean_loss[0]
    torch.manual_seed(0)
    _, metrics = AutoencoderObjective(vae, 0.0)({"vae_pixel_values": pixels})
    torch.manual_seed(0)
    decoded = vae.decode(vae.encode(pixels).latent_dist.sample()).sample
    expected = 10 * math.log10(4 / (decoded - pixels).square().mean().item())
    assert metrics["psnr"].item() == pytest.approx(expected, rel=1e-4)
