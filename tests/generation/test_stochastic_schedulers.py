"""The project's own schedulers against the loops that k-diffusion published."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from clipgraft.generation.schedulers import build_scheduler
from clipgraft.generation.stochastic_schedulers import DPMSolverPlusPlusSDEScheduler

BASE = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SHAPE = (2, 4, 8, 8)


def denoise(sample: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that is not linear in the sample."""
    return torch.tanh(sample / (1 + sigma))


def ancestral_step(sigma: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    up = (end**2 * (sigma**2 - end**2) / sigma**2) ** 0.5
    return (end**2 - up**2) ** 0.5, up


def exponential_step(sample: Tensor, denoised: Tensor, sigma: Tensor, end: Tensor) -> Tensor:
    """From sigma to end with this denoised sample, as `-expm1(-h)` in k-diffusion."""
    h = (sigma / end).log()
    return (end / sigma) * sample - torch.expm1(-h) * denoised


def two_s_ancestral(sample, sigmas, noises):
    for sigma, end in itertools.pairwise(sigmas):
        denoised = denoise(sample, sigma)
        if end == 0:
            return denoised
        down, up = ancestral_step(sigma, end)
        middle = (sigma.log() / 2 + down.log() / 2).exp()
        denoised = denoise(exponential_step(sample, denoised, sigma, middle), middle)
        sample = exponential_step(sample, denoised, sigma, down) + next(noises) * up


def sde(sample, sigmas, noises):
    for sigma, end in itertools.pairwise(sigmas):
        denoised = denoise(sample, sigma)
        if end == 0:
            return denoised
        middle = (sigma.log() / 2 + end.log() / 2).exp()
        # One Brownian motion: its way to the middle, and from there to the end.
        first, second = next(noises) * (sigma - middle).sqrt(), next(noises) * (middle - end).sqrt()
        down, up = ancestral_step(sigma, middle)
        halfway = exponential_step(sample, denoised, sigma, down) + first / (sigma - middle).sqrt() * up
        denoised = denoise(halfway, middle)
        down, up = ancestral_step(sigma, end)
        whole = (first + second) / (sigma - end).sqrt()
        sample = exponential_step(sample, denoised, sigma, down) + whole * up


def three_m_sde(sample, sigmas, noises):
    past, steps = [], []
    for sigma, end in itertools.pairwise(sigmas):
        past.append(denoise(sample, sigma))
        if end == 0:
            return past[-1]
        h = (sigma / end).log()
        sample = torch.exp(-2 * h) * sample - torch.expm1(-2 * h) * past[-1]
        phi_2 = torch.expm1(-2 * h) / (2 * h) + 1
        phi_3 = phi_2 / (2 * h) - 0.5
        if len(steps) > 1:
            r0, r1 = steps[-1] / h, steps[-2] / h
            d1_0, d1_1 = (past[-1] - past[-2]) / r0, (past[-2] - past[-3]) / r1
            d1 = d1_0 + (d1_0 - d1_1) * r0 / (r0 + r1)
            sample = sample + phi_2 * d1 - phi_3 * (d1_0 - d1_1) / (r0 + r1)
        elif steps:
            sample = sample + phi_2 * (past[-1] - past[-2]) / (steps[-1] / h)
        sample = sample + next(noises) * end * (-torch.expm1(-2 * h)).sqrt()
        steps.append(h)


LOOPS = {"dpm++-2s-a": two_s_ancestral, "dpm++-sde": sde, "dpm++-3m-sde": three_m_sde}


def noises():
    generators = [torch.Generator().manual_seed(number) for number in range(SHAPE[0])]
    while True:
        yield torch.cat([torch.randn(1, *SHAPE[1:], generator=generator) for generator in generators])


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("schedule", ["", "-karras", "-exponential"])
def test_it_is_the_loop_of_k_diffusion(name: str, schedule: str):
    scheduler = build_scheduler(name + schedule, BASE)
    scheduler.set_timesteps(20)  # of fewer than 15, the last ones would be of lower order
    sigmas = torch.unique(scheduler.sigmas).flip(0).double()
    generators = [torch.Generator().manual_seed(number) for number in range(SHAPE[0])]
    start = torch.cat([torch.randn(1, *SHAPE[1:], generator=generator) for generator in generators])
    is_vp = name == "dpm++-3m-sde"  # its samples are scaled to a variance of 1
    sample = start * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        sigma = _sigma_at(scheduler, index)
        scaled = scheduler.scale_model_input(sample, timestep)
        unscaled = scaled * (sigma**2 + 1) ** 0.5
        noise_pred = (unscaled - denoise(unscaled, sigma)) / sigma
        sample = scheduler.step(noise_pred, timestep, sample, generator=generators).prev_sample
    drawn = noises()
    first = next(drawn) * (sigmas[0] ** 2 + 1) ** 0.5 if is_vp else next(drawn) * sigmas[0]
    expected = LOOPS[name](first.double(), sigmas, drawn)
    torch.testing.assert_close(sample.double(), expected, atol=1e-3, rtol=1e-3)


def _sigma_at(scheduler, index: int) -> Tensor:
    if scheduler.order == 1 or index % 2 == 0:
        return scheduler.sigmas[index]
    return scheduler.sigmas_interpol[index - 1]


def test_a_midpoint_of_dpm_sde_is_halfway_in_logarithm():
    scheduler = DPMSolverPlusPlusSDEScheduler(beta_schedule="scaled_linear")
    scheduler.set_timesteps(4)
    sigmas, midpoints = scheduler.sigmas[::2], scheduler.sigmas_interpol[::2]
    assert midpoints[:3] == pytest.approx((sigmas[:3] * sigmas[1:4]).sqrt())
    assert len(scheduler.timesteps) == 7
    assert (scheduler.timesteps.diff() < 0).all()


def test_what_comes_back_is_a_tuple_or_an_output():
    for return_dict in (True, False):
        scheduler = build_scheduler("dpm++-2s-a", BASE)
        scheduler.set_timesteps(3)
        found = scheduler.step(torch.zeros(SHAPE), 999, torch.ones(SHAPE), return_dict=return_dict)
        assert (found.prev_sample if return_dict else found[0]).shape == SHAPE
