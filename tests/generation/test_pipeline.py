"""Sampling: equal to stock diffusers, independent of neighbours, never a silent failure."""

import copy

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

import clipgraft
import tiny
from clipgraft.files import file_sha256
from clipgraft.generation import pipeline as generation
from clipgraft.generation.pipeline import build_pipeline, decode
from clipgraft.generation.requests import image_file_name
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.graft import GraftedTextEncoder
from helpers import image_request


@pytest.fixture(scope="module")
def parts():
    stock = tiny.build_pipeline()
    base = FrozenBase(stock.vae, stock.unet, stock.scheduler, stock.tokenizer, stock.text_encoder)
    torch.manual_seed(3)
    clip = tiny.build_clip()
    bridge = Bridge(tiny.TEXT_WIDTH, tiny.TEACHER_WIDTH)
    encoder = GraftedTextEncoder.graft(
        clip.model.text_model, bridge, base.empty_prompt_embeds(), clip.tokenizer.eos_token_id
    )
    return base, encoder, stock


def sampled(parts, prompts, *, seed=0, batch_size=4, on_step=None, **settings):
    base, encoder, _ = parts
    requests = [image_request(prompt, seed, **({"num_inference_steps": 3} | settings)) for prompt in prompts]
    pipeline = build_pipeline(base, encoder)
    return list(generation.sample(pipeline, requests, batch_size=batch_size, on_step=on_step))


def test_image_equals_stock_diffusers(parts):
    base, encoder, stock = parts
    generated = sampled(parts, ["A dog runs"], seed=7, guidance_scale=5.0)[0]
    pipeline = type(stock)(**(stock.components | {"text_encoder": encoder}), requires_safety_checker=False)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        base.scheduler.config, use_karras_sigmas=True
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "A dog runs", num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(7)
    ).images[0]
    assert np.array_equal(np.asarray(generated.image), np.asarray(expected))


def test_image_does_not_depend_on_its_neighbours(parts):
    prompts = ["A dog runs", "A red ball", "A black cat"]
    alone = [sampled(parts, [prompt], seed=5)[0].image for prompt in prompts]
    together = [generated.image for generated in sampled(parts, prompts, seed=5, batch_size=3)]
    for one, other in zip(alone, together, strict=True):
        # One step of 8-bit rounding: a batch's matrix products add in another order.
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_seeds_give_different_images(parts):
    images = [*sampled(parts, ["A dog"], seed=10), *sampled(parts, ["A dog"], seed=11)]
    assert [generated.seed for generated in images] == [10, 11]
    assert not np.array_equal(np.asarray(images[0].image), np.asarray(images[1].image))


def test_size_is_the_bases_own_unless_asked_for(parts):
    own = parts[0].unet.config.sample_size * 8
    assert sampled(parts, ["A dog"])[0].image.size == (own, own)
    assert sampled(parts, ["A dog"], height=32, width=48)[0].image.size == (48, 32)


def test_size_that_is_no_multiple_of_eight_is_refused(parts):
    with pytest.raises(ValueError, match="'width': input should be a multiple of 8; got 60"):
        sampled(parts, ["A dog"], width=60)


def test_no_prompt_is_refused(parts):
    with pytest.raises(ValueError, match="no prompt"):
        sampled(parts, [])


def test_progress_counts_each_images_steps(parts):
    seen = []
    sampled(parts, ["A", "B", "C"], batch_size=2, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 9), (4, 9), (6, 9), (7, 9), (8, 9), (9, 9)]


def test_progress_does_not_count_the_step_that_pndm_runs_twice(parts):
    base, encoder, _ = parts
    seen = []
    requests = [image_request("A dog", num_inference_steps=3, scheduler="pndm")]
    pipeline = build_pipeline(base, encoder)
    list(
        generation.sample(
            pipeline,
            requests,
            base_scheduler=base.scheduler,
            on_step=lambda done, total: seen.append((done, total)),
        )
    )
    assert seen == [(1, 3), (2, 3), (3, 3), (3, 3)]


def test_graft_of_another_width_is_refused(parts):
    base, encoder, _ = parts
    narrow = GraftedTextEncoder.graft(
        encoder.text_model, Bridge(tiny.TEXT_WIDTH, 20), torch.zeros(77, 20), encoder.config.eos_token_id
    )
    with pytest.raises(ValueError, match="gives states of width 20, but this base's U-Net takes 24"):
        build_pipeline(base, narrow)


def test_nan_image_is_a_failure(parts):
    base, encoder, _ = parts
    pipeline = build_pipeline(base, encoder)
    with torch.no_grad():
        saved = base.vae.decoder.conv_out.bias.clone()
        base.vae.decoder.conv_out.bias.fill_(float("nan"))
        status = next(generation.sample(pipeline, [image_request("A dog", num_inference_steps=1)])).status
        base.vae.decoder.conv_out.weight.zero_()
        base.vae.decoder.conv_out.bias.fill_(-5.0)
        black = next(generation.sample(pipeline, [image_request("A dog", num_inference_steps=1)])).status
        base.vae.load_state_dict(tiny.build_pipeline().vae.state_dict())
        assert torch.equal(base.vae.decoder.conv_out.bias, saved)
    assert (status, black) == ("failed_nan", "failed_black")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A dog running on the beach at sunset", "a-dog-running-on-the-beach-at-sunset_seed3"),
        ("", "empty-prompt_seed3"),
        ("../../etc/passwd", "etc-passwd_seed3"),
    ],
)
def test_file_is_named_after_the_prompt(prompt, name):
    assert image_file_name(prompt, 3) == name


def test_file_name_of_a_long_prompt_fits_every_file_system():
    assert len(image_file_name("🐕狗" * 200, 3).encode()) <= 250
    assert len(image_file_name("狗" * 200, 2**62).encode()) <= 250


def test_changed_init_image_has_another_sum(tmp_path):
    path = tmp_path / "first.png"
    sums = []
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(path)
        sums.append(image_request("A dog", init_image=path).as_record()["init_image_sha256"])
    assert sums[1] == file_sha256(path) != sums[0]


def test_half_precision_overflow_is_decoded_in_float32():
    pipeline = tiny.build_pipeline()
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipeline.vae.post_quant_conv.weight.mul_(1e4)  # times latents / 0.18: over float16's 65504
    expected, _ = decode(pipeline, latents)
    half = copy.deepcopy(pipeline.vae).half()
    with torch.no_grad():
        assert not torch.isfinite(half.decode(latents.half() / half.config.scaling_factor).sample).all()
    pipeline.vae = half
    found, statuses = decode(pipeline, latents.half())
    assert statuses == ["ok", "ok"]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 3


def test_nan_latents_fail_and_leave_neighbours_alone():
    pipeline = tiny.build_pipeline()
    latents = torch.randn(2, 4, 8, 8)
    latents[1, 0, 0, 0] = float("nan")
    images, statuses = decode(pipeline, latents)
    assert statuses == ["ok", "failed_nan"]
    assert np.array_equal(images[0], decode(pipeline, latents[:1])[0][0])


def test_nan_latents_let_neighbours_be_decoded_again():
    pipeline = tiny.build_pipeline()
    latents = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipeline.vae.post_quant_conv.weight.mul_(1e5)  # times latents / 0.18: over float16's 65504
    pipeline.vae.half()
    with torch.no_grad():
        found = pipeline.vae.decode(latents.half() / pipeline.vae.config.scaling_factor).sample
    assert not any(torch.isfinite(generated).all() for generated in found)
    latents[1, 0, 0, 0] = float("nan")
    assert decode(pipeline, latents.half())[1] == ["ok", "failed_nan"]


@pytest.mark.integration
@pytest.mark.parametrize(("threshold", "status"), [(-1.0, "blocked"), (1.1, "ok")])
def test_bases_safety_checker_has_its_say(tmp_path, threshold, status):
    base = tiny.write_checked_base(tmp_path / "base", threshold)
    plain = tiny.write_base(tmp_path / "plain")
    found = clipgraft.load(base, device="cpu").generate("A dog", num_inference_steps=1)[0]
    unchecked = clipgraft.load(plain, device="cpu").generate("A dog", num_inference_steps=1)[0]
    assert found.status == status
    assert unchecked.status == "ok"
    expected = np.asarray(unchecked.image) * (status == "ok")
    assert np.array_equal(np.asarray(found.image), expected)


@pytest.mark.integration
def test_safety_checker_that_is_named_but_not_there_is_said(tmp_path, caplog):
    base = tiny.write_checked_base(tmp_path / "base", 1.1)
    (base / "safety_checker" / "model.safetensors").unlink()
    assert clipgraft.load(base, device="cpu").generate("A dog", num_inference_steps=1)[0].status == "ok"
    assert "images are generated unchecked" in caplog.text


@pytest.mark.parametrize(
    ("level", "status"), [(-3.0, "failed_black"), (0.4, "failed_black"), (0.6, "ok"), (255.0, "ok")]
)
def test_black_is_what_eight_bits_round_to_nothing_else(level, status):
    pipeline = tiny.build_pipeline()
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.zero_()
        pipeline.vae.decoder.conv_out.bias.fill_(level / 127.5 - 1)
    generated, statuses = decode(pipeline, torch.zeros(1, 4, 2, 2))
    assert statuses == [status]
    assert generated.any() == (status == "ok")
