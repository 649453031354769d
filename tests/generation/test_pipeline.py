"""Pictures: equal to stock diffusers, independent of neighbours, never a silent failure."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

import tiny
from clipgraft.files import file_sha256
from clipgraft.generation import pipeline as generation
from clipgraft.generation.pipeline import build_pipeline
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


def draw(parts, prompts, *, seed=0, batch_size=4, on_step=None, **settings):
    base, encoder, _ = parts
    jobs = [image_request(prompt, seed, **({"num_inference_steps": 3} | settings)) for prompt in prompts]
    pipeline = build_pipeline(base, encoder)
    return list(generation.sample(pipeline, jobs, batch_size=batch_size, on_step=on_step))


def test_image_equals_stock_diffusers(parts):
    base, encoder, stock = parts
    picture = draw(parts, ["A dog runs"], seed=7, guidance_scale=5.0)[0]
    pipeline = type(stock)(**(stock.components | {"text_encoder": encoder}), requires_safety_checker=False)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        base.scheduler.config, use_karras_sigmas=True
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        "A dog runs", num_inference_steps=3, guidance_scale=5.0, generator=torch.Generator().manual_seed(7)
    ).images[0]
    assert np.array_equal(np.asarray(picture.image), np.asarray(expected))


def test_image_does_not_depend_on_its_neighbours(parts):
    prompts = ["A dog runs", "A red ball", "A black cat"]
    alone = [draw(parts, [prompt], seed=5)[0].image for prompt in prompts]
    together = [picture.image for picture in draw(parts, prompts, seed=5, batch_size=3)]
    for one, other in zip(alone, together, strict=True):
        # One step of 8-bit rounding: a batch's matrix products add in another order.
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


def test_seeds_give_different_images(parts):
    pictures = [*draw(parts, ["A dog"], seed=10), *draw(parts, ["A dog"], seed=11)]
    assert [picture.seed for picture in pictures] == [10, 11]
    assert not np.array_equal(np.asarray(pictures[0].image), np.asarray(pictures[1].image))


def test_size_is_the_bases_own_unless_asked_for(parts):
    assert draw(parts, ["A dog"])[0].image.size == (64, 64) if parts[0].vae.config.sample_size == 64 else True
    assert draw(parts, ["A dog"], height=32, width=48)[0].image.size == (48, 32)


def test_size_that_is_no_multiple_of_eight_is_refused(parts):
    with pytest.raises(ValueError, match="'width': input should be a multiple of 8; got 60"):
        draw(parts, ["A dog"], width=60)


def test_no_prompt_is_refused(parts):
    with pytest.raises(ValueError, match="no prompt"):
        draw(parts, [])


def test_progress_counts_each_images_steps(parts):
    seen = []
    draw(parts, ["A", "B", "C"], batch_size=2, on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 9), (4, 9), (6, 9), (7, 9), (8, 9), (9, 9)]


def test_progress_does_not_count_the_step_that_pndm_runs_twice(parts):
    base, encoder, _ = parts
    seen = []
    jobs = [image_request("A dog", num_inference_steps=3, scheduler="pndm")]
    pipeline = build_pipeline(base, encoder)
    list(
        generation.sample(
            pipeline,
            jobs,
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
        ("A dog running on the beach at sunset", "a-dog-running-on-the-beach-at-sunset_seed3.png"),
        ("", "empty-prompt_seed3.png"),
        ("../../etc/passwd", "etc-passwd_seed3.png"),
    ],
)
def test_file_is_named_after_the_prompt(prompt, name):
    assert image_file_name(prompt, 3) == name


def test_file_name_of_a_long_prompt_fits_every_file_system():
    assert len(image_file_name("🐕狗" * 200, 3).encode()) <= 255
    assert len(image_file_name("狗" * 200, 2**62).encode()) <= 255


def test_changed_init_image_has_another_sum(tmp_path):
    path = tmp_path / "first.png"
    sums = []
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(path)
        sums.append(image_request("A dog", init_image=path).as_record()["init_image_sha256"])
    assert sums[1] == file_sha256(path) != sums[0]
