"""Errors of predicted noise, of images of one size and of several."""

import pytest
import torch

import tiny
from clipgraft.data.transforms import tokenize
from clipgraft.evaluation.metrics.noise_error import NOISE_SEED, noise_pred_errors


@pytest.fixture(scope="module")
def towers():
    pipeline, other = tiny.build_pipeline(), tiny.build_pipeline(seed=7)
    ids = tokenize(tiny.CAPTIONS, pipeline.tokenizer, pad_to_context_length=True)
    alphas = pipeline.scheduler.alphas_cumprod
    return pipeline.unet.eval(), other.text_encoder.eval(), pipeline.text_encoder.eval(), alphas, ids


@torch.no_grad()
def naive(unet, encoder, teacher, alphas, latents, ids, timestep):
    """Image by image, as the definition has it."""
    generator, sums = torch.Generator().manual_seed(NOISE_SEED), torch.zeros(2, dtype=torch.float64)
    empty = torch.tensor([[ids[0, 0], *[ids[0, -1]] * 76]])
    for each, row in zip(latents, ids, strict=True):
        noise = torch.randn(each.shape, generator=generator)
        noisy = (alphas[timestep] ** 0.5 * each + (1 - alphas[timestep]) ** 0.5 * noise)[None]
        texts = (encoder(row[None]), teacher(row[None]), teacher(empty))
        student, own, blank = (
            unet(noisy, timestep, text.last_hidden_state).sample.double() for text in texts
        )
        sums += torch.stack([(student - own).square().sum(), (blank - own).square().sum()])
    return (sums[0] / sums[1]).item()


@pytest.mark.parametrize("sizes", [[(8, 8)] * 5, [(8, 8), (4, 16), (8, 8), (16, 4), (4, 16)]])
def test_errors_are_those_of_each_image_by_itself(towers, sizes):
    torch.manual_seed(0)
    *models, ids = towers
    latents = [torch.randn(4, *size) for size in sizes]
    found = noise_pred_errors(*models, latents, ids, timesteps=(50, 950))
    assert found == {
        str(timestep): pytest.approx(naive(*models, latents, ids, timestep), rel=1e-4)
        for timestep in (50, 950)
    }


def test_one_tensor_of_latents_is_the_list_of_its_rows(towers):
    torch.manual_seed(0)
    *models, ids = towers
    latents = torch.randn(5, 4, 8, 8)
    whole = noise_pred_errors(*models, latents, ids, timesteps=(250,))
    assert whole == noise_pred_errors(*models, list(latents), ids, timesteps=(250,))
