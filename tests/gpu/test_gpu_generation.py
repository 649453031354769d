"""Images of a GPU against float32 images of the CPU: flatland's, with the same seeds, 10 steps."""

import numpy as np
import pytest
import torch

import clipgraft
from clipgraft.evaluation.metrics.image_similarity import psnr
from clipgraft.generation.generator import ImageGenerator, load_generators
from clipgraft.models.base import FrozenBase
from clipgraft.models.weights import module_sha256
from clipgraft.sampling_params import InferenceConfig

pytestmark = pytest.mark.cuda

PROMPTS = ("A dog running on the beach at sunset", "A red boat on a lake at night")
FLOAT32_DB, HALF_DB = 40.0, 30.0
"""Least PSNR: in float32, where a CPU's engines reach 83, and in half precision (bfloat16 on a CPU: 33)."""
TORCH = InferenceConfig(engine="torch")


def images_of(generator: ImageGenerator, *, batch_size: int = 2) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1]."""
    found = generator.generate(PROMPTS, batch_size=batch_size, num_inference_steps=10)
    assert [image.status for image in found] == ["ok"] * len(PROMPTS)
    return torch.from_numpy(np.stack([np.asarray(each.image) for each in found]) / 255).permute(0, 3, 1, 2)


def in_float32(device: str) -> ImageGenerator:
    """Flatland without an engine."""
    return next(load_generators({"": None}, base=FrozenBase.load("flatland"), device=device))[1]


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    return images_of(in_float32("cpu"))


def worst_decibels(images: torch.Tensor, reference: torch.Tensor, record_property) -> float:
    worst = float(psnr(images, reference).clamp(max=99).min())
    record_property("psnr_min", worst)
    return worst


def test_float32_images_are_the_cpus(device, reference, record_property):
    assert worst_decibels(images_of(in_float32(device)), reference, record_property) >= FLOAT32_DB


def test_half_precision_images_are_the_cpus(device, reference, record_property):
    images = images_of(clipgraft.load("flatland", device=device, inference=TORCH))
    assert worst_decibels(images, reference, record_property) >= HALF_DB


def test_image_does_not_depend_on_its_batch(device, reference, record_property):
    generator = clipgraft.load("flatland", device=device, inference=TORCH)
    single, pair = (images_of(generator, batch_size=size) for size in (1, 2))
    assert worst_decibels(single, pair, record_property) >= HALF_DB


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_images_are_the_cpus(cuda, offload, reference, record_property):
    images = images_of(clipgraft.load("flatland", device=cuda, offload=offload))
    assert worst_decibels(images, reference, record_property) >= HALF_DB


def test_compiled_images_are_the_cpus(cuda, reference, record_property):
    inference = InferenceConfig(engine="torch", compile=True)
    images = images_of(clipgraft.load("flatland", device=cuda, inference=inference))
    assert worst_decibels(images, reference, record_property) >= HALF_DB


def test_generating_leaves_the_weights_as_they_are(device):
    base = FrozenBase.load("flatland")
    before = {name: module_sha256(module) for name, module in base.modules.items()}
    images_of(next(load_generators({"": None}, base=base, device=device))[1])
    assert {name: module_sha256(module.cpu()) for name, module in base.modules.items()} == before


def test_graft_generates_the_cpus_images(device, world, record_property):
    expected, found = (
        images_of(clipgraft.load(world.graft(), device=name, inference=TORCH)) for name in ("cpu", device)
    )
    assert worst_decibels(found, expected, record_property) >= HALF_DB
