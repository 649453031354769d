"""Sampling with every scheduler: steps counted once, noise of the image's own generator."""

import numpy as np
import pytest
from PIL import Image

import tiny
from clipgraft.generation.pipeline import build_pipeline, sample
from helpers import image_request


@pytest.fixture(scope="module")
def base():
    return tiny.build_base()


@pytest.fixture
def start(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    return {"init_image": tmp_path / "red.png", "strength": 0.5}


@pytest.mark.parametrize("name", ["heun", "dpm++-sde-karras", "pndm", "euler-a"])
@pytest.mark.parametrize("has_image", [False, True])
def test_steps_are_counted_once_each(base, start, name, has_image):
    settings = start if has_image else {}
    request = image_request("A dog", num_inference_steps=6, scheduler=name, **settings)
    reported = []
    pipeline = build_pipeline(base, base.text_encoder)
    options = {"base_scheduler": base.scheduler, "on_step": lambda *count: reported.append(count)}
    list(sample(pipeline, [request] * 2, **options))
    num_steps = 3 if has_image else 6
    assert sorted(set(reported)) == [(2 * step, 2 * num_steps) for step in range(1, num_steps + 1)]
    assert len(reported) == num_steps + (name == "pndm")  # which runs one step twice


@pytest.mark.parametrize("name", ["dpm++-sde", "dpm++-3m-sde", "dpm2-a", "euler-a", "ddpm", "tcd", "heun"])
def test_an_image_is_drawn_again_to_the_bit(base, start, name):
    for settings in ({}, start):
        pipeline = build_pipeline(base, base.text_encoder)
        common = {"num_inference_steps": 4, "guidance_scale": 1.0, "scheduler": name, **settings}
        requests = [image_request("A dog", seed, **common) for seed in (1, 2)]
        first, again = (
            [np.asarray(each.image) for each in sample(pipeline, requests, base_scheduler=base.scheduler)]
            for _ in range(2)
        )
        [alone] = sample(pipeline, requests[1:], base_scheduler=base.scheduler)
        assert np.array_equal(first, again)
        assert not np.array_equal(*first)
        assert np.abs(first[1].astype(int) - np.asarray(alone.image)).max() <= 1
