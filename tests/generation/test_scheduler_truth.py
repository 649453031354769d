"""Every scheduler against normally distributed data, whose denoiser and ODE are known in closed form."""

import inspect
import math
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from clipgraft.errors import UserError
from clipgraft.generation.schedulers import build_scheduler
from clipgraft.scheduler_recipes import SAMPLERS, SCHEDULERS

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BASE = DDIMScheduler(**BETAS)
SIGMAS = ((1 - BASE.alphas_cumprod.double()) / BASE.alphas_cumprod.double()) ** 0.5
MEAN, STD = 0.3, 0.5
SHAPE = (4, 32, 32)
DRAWS_NOISE = [name for name in SCHEDULERS if "sde" in name or name.endswith("-a") or "-a-" in name]
DRAWS_NOISE += ["ddpm", "lcm", "tcd"]
DETERMINISTIC = [name for name in SCHEDULERS if name not in DRAWS_NOISE]


def sigma_of(timestep: float) -> float:
    """Noise level of a timestep, between two by its logarithm as in k-diffusion."""
    below = min(int(timestep), 998)
    share = timestep - below
    return math.exp((1 - share) * SIGMAS[below].log() + share * SIGMAS[below + 1].log())


def predict(sample: torch.Tensor, timestep: torch.Tensor, prediction: str, distilled: bool) -> torch.Tensor:
    """What a perfect U-Net predicts of the data; a distilled one the end of the ODE, not the mean."""
    sigma = sigma_of(float(timestep))
    alpha = (1 + sigma**2) ** -0.5
    variance = alpha**2 * STD**2 + (sigma * alpha) ** 2
    gain = STD / variance**0.5 if distilled else alpha * STD**2 / variance
    denoised = MEAN + gain * (sample - alpha * MEAN)
    noise = (sample - alpha * denoised) / (sigma * alpha)
    velocity = alpha * noise - sigma * alpha * denoised
    return {"sample": denoised, "epsilon": noise, "v_prediction": velocity}[prediction]


@cache
def scheduler_of(name, prediction):
    return build_scheduler(name, DDIMScheduler(**BETAS, prediction_type=prediction))


def drawn(name, steps, seeds=(0, 1), prediction="epsilon", start=None, skipped=0):
    """Images of a scheduler from noise, or from `start` without its first steps."""
    scheduler = scheduler_of(name, prediction)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    scheduler.set_timesteps(steps)
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": generators, "eta": SCHEDULERS[name].eta}
    options = {key: value for key, value in options.items() if key in accepted}
    noise = torch.cat([torch.randn(1, *SHAPE, generator=generator) for generator in generators])
    timesteps = scheduler.timesteps[skipped * scheduler.order :]
    if start is None:
        sample = noise * scheduler.init_noise_sigma
    else:  # as image-to-image of diffusers
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped * scheduler.order)
        sample = scheduler.add_noise(start, noise, timesteps[:1])
    for timestep in timesteps:
        scaled = scheduler.scale_model_input(sample, timestep)
        output = predict(scaled, timestep, prediction, name == "lcm")
        sample = scheduler.step(output, timestep, sample, return_dict=False, **options)[0]
    return sample, noise, float(timesteps[0])


def steps_of(name: str) -> int:
    return {"lcm": 8, "tcd": 50}.get(name, 100)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_it_ends_where_the_ode_ends(name: str):
    found, noise, first = drawn(name, 100)
    sigma = sigma_of(first)
    alpha = (1 + sigma**2) ** -0.5
    expected = MEAN + STD * (noise - alpha * MEAN) / (alpha**2 * STD**2 + (sigma * alpha) ** 2) ** 0.5
    assert (found - expected).abs().max() < 0.08  # first order: 0.07; most are below 0.02


@pytest.mark.parametrize("name", DRAWS_NOISE)
def test_its_images_have_the_datas_mean_and_spread(name: str):
    found, _, _ = drawn(name, steps_of(name))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(STD, abs=0.06)  # first order in 50 steps: 0.05


@pytest.mark.parametrize("name", ["dpm++", *SAMPLERS])
def test_images_changed_in_part_have_them_too(name: str):
    data = MEAN + STD * torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(9))
    steps = steps_of(name)
    found, _, _ = drawn(name, steps, start=data, skipped=steps // 2)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert found.std().item() == pytest.approx(STD, abs=0.06)
    kept = torch.corrcoef(torch.stack([found.flatten(), data.flatten()]))[0, 1]
    assert kept < 0.9
    assert kept > 0.04 or name == "tcd"  # whose 25 steps with fresh noise keep nothing


@pytest.mark.parametrize("name", ["dpm++", *SAMPLERS])
def test_an_image_is_the_same_alone_and_in_a_batch(name: str):
    together, _, _ = drawn(name, 6, seeds=(3, 4, 5))
    for index, seed in enumerate((3, 4, 5)):
        alone, _, _ = drawn(name, 6, seeds=(seed,))
        assert torch.equal(alone[0], together[index])
    if name in DRAWS_NOISE:
        rest = together - drawn("ddim", 6, seeds=(3, 4, 5))[0]
        assert torch.corrcoef(rest.flatten(1))[0, 1].abs() < 0.05


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_what_the_u_net_predicts_makes_no_difference(name: str, prediction: str):
    if prediction not in SCHEDULERS[name].predictions:
        with pytest.raises(UserError, match=r"this base's prediction_type 'sample'; name one of dpm\+\+, "):
            scheduler_of(name, prediction)
        return
    found, expected = drawn(name, 50, prediction=prediction)[0], drawn(name, 50)[0]
    # Timesteps are whole numbers, and PNDM extrapolates what the U-Net predicts.
    assert (found - expected).abs().max() < (0.1 if name == "pndm" else 0.02)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if SCHEDULERS[name].schedule])
def test_karras_and_exponential_sigmas_are_k_diffusions(name: str):
    scheduler, steps = scheduler_of(name, "epsilon"), 30
    scheduler.set_timesteps(steps)
    least, most = SIGMAS[0].item(), SIGMAS[-1].item()
    if SCHEDULERS[name].schedule == "Karras":
        expected = np.linspace(most ** (1 / 7), least ** (1 / 7), steps) ** 7
    else:
        expected = np.exp(np.linspace(np.log(most), np.log(least), steps))
    found = np.unique(scheduler.sigmas.numpy())[::-1]  # runs of the U-Net for one step share theirs
    assert found[:steps] == pytest.approx(expected, rel=1e-4)
    assert list(found[steps:]) == ([] if name.startswith("deis") else [0])


@pytest.mark.parametrize("name", ["dpm++", *SAMPLERS])
def test_zero_terminal_snr_is_followed_or_refused(name: str):
    base = DDIMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    followed = {"dpm++", "dpm++-2m", "dpm++-2m-sde", "dpm++-2m-sde-heun", "dpm++-3m-sde", "euler", "euler-a"}
    if name not in followed | {"ddim", "ddpm", "unipc", "lcm", "tcd"}:
        with pytest.raises(
            UserError, match=r"follow this base's betas \(rescale_betas_zero_snr\); name one of"
        ):
            build_scheduler(name, base)
        return
    scheduler = build_scheduler(name, base)
    scheduler.set_timesteps(steps_of(name))
    alphas = base.alphas_cumprod.double().clamp(min=2**-24)  # as Euler's and DPM-Solver's, which divide by it
    sample = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        alpha = alphas[round(float(timestep))] ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        scaled = scheduler.scale_model_input(sample, timestep)
        gain = STD / (alpha**2 * STD**2 + sigma**2) ** 0.5
        if name != "lcm":
            gain = alpha * gain**2
        denoised = MEAN + gain * (scaled - alpha * MEAN)
        velocity = (alpha * scaled - denoised) / sigma
        sample = scheduler.step(velocity.float(), timestep, sample, return_dict=False)[0]
    assert sample.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert sample.std().item() == pytest.approx(STD, abs=0.1)
