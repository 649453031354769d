"""Stochastic schedulers of k-diffusion: DPM++ 2S a, SDE and 3M SDE.

Noise comes from the generators given to `step`, one for each image of a batch. diffusers has no DPM++ 2S a;
its DPM++ SDE needs torchsde and draws from a Brownian tree of the whole batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, KDPM2AncestralDiscreteScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None
DrawNoise = Callable[[], Tensor]


class DPMSolver2SAncestralScheduler(KDPM2AncestralDiscreteScheduler):
    """DPM++ 2S a (`sample_dpmpp_2s_ancestral`), which runs the U-Net twice per step.

    Sigmas and midpoints are those of DPM2 a, from which it differs in what it makes of the second run.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Go to the midpoint, or to the end of the step."""
        if self.step_index is None:
            self._init_step_index(timestep)
        place = {"device": model_output.device, "dtype": model_output.dtype}
        draw_noise = partial(randn_tensor, model_output.shape, generator=generator, **place)
        if self.state_in_first_order:
            index = self.step_index
            denoised = self._denoised(model_output, sample, self.sigmas[index])
            prev_sample = self._to_midpoint(sample, denoised, index, draw_noise)
            self.sample = sample
        else:
            index = self.step_index - 1
            denoised = self._denoised(model_output, sample, self.sigmas_interpol[index])
            prev_sample = self._to_end(self.sample, denoised, index, draw_noise())
            self.sample = None  # type: ignore[assignment]  # marks the first stage
        self._step_index += 1
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _to_midpoint(self, sample: Tensor, denoised: Tensor, index: int, _draw_noise: DrawNoise) -> Tensor:
        return denoised + (sample - denoised) * self.sigmas_interpol[index] / self.sigmas[index]

    def _to_end(self, sample: Tensor, denoised: Tensor, index: int, noise: Tensor) -> Tensor:
        kept = (sample - denoised) * self.sigmas_down[index] / self.sigmas[index]
        return denoised + kept + noise * self.sigmas_up[index]

    def _denoised(self, model_output: Tensor, sample: Tensor, sigma: Tensor) -> Tensor:
        if self.config.prediction_type == "epsilon":
            return sample - sigma * model_output
        return (sample - sigma * (sigma**2 + 1) ** 0.5 * model_output) / (sigma**2 + 1)


class DPMSolverPlusPlusSDEScheduler(DPMSolver2SAncestralScheduler):
    """DPM++ SDE (`sample_dpmpp_sde` with r = 1/2), with noise on the way to the midpoint too."""

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        num_train_timesteps: int | None = None,
    ) -> None:
        """As of DPM2 a, with midpoints halfway to the next sigma."""
        super().set_timesteps(num_inference_steps, device, num_train_timesteps)
        midpoints = (self.sigmas[::2] * self.sigmas[1::2]).sqrt()  # the last two are 0
        self.sigmas_interpol = midpoints.repeat_interleave(2)
        times = self._sigma_to_t(midpoints[:-2].numpy(), self.log_sigmas.cpu().numpy())
        self.timesteps[1::2] = torch.from_numpy(times).to(self.timesteps)

    def _to_midpoint(self, sample: Tensor, denoised: Tensor, index: int, draw_noise: DrawNoise) -> Tensor:
        sigma, midpoint = self.sigmas[index], self.sigmas_interpol[index]
        up = midpoint * (1 - (midpoint / sigma) ** 2) ** 0.5
        down = (midpoint**2 - up**2) ** 0.5
        self._noise = draw_noise()
        return denoised + (sample - denoised) * down / sigma + self._noise * up

    def _to_end(self, sample: Tensor, denoised: Tensor, index: int, noise: Tensor) -> Tensor:
        # One Brownian motion along sigma: the way to the midpoint is the first part of the whole.
        sigma, midpoint, end = self.sigmas[index], self.sigmas_interpol[index], self.sigmas[index + 1]
        noise = ((sigma - midpoint).sqrt() * self._noise + (midpoint - end).sqrt() * noise) / (
            sigma - end
        ).sqrt()
        return super()._to_end(sample, denoised, index, noise)


class DPMSolver3MSDEScheduler(DPMSolverMultistepScheduler):
    """DPM++ 3M SDE (`sample_dpmpp_3m_sde`)."""

    def multistep_dpm_solver_third_order_update(
        self, model_output_list: Sequence[Tensor], *args: Any, **options: Any
    ) -> Tensor:
        """As diffusers', with the right weight of the second difference.

        Of (1 - exp(-2h) - 2h) / (2h)^2 + 1/2, diffusers 0.42.1 subtracts the half: its images become noisier
        with more steps.
        """
        index = self.step_index
        sigmas = self.sigmas[index - 2 : index + 2]
        h_1, h_0, h = (sigmas[:-1] / sigmas[1:]).log()
        r_0, r_1 = h_0 / h, h_1 / h
        oldest, older, newest = model_output_list[-3:]
        second_difference = ((newest - older) / r_0 - (older - oldest) / r_1) / (r_0 + r_1)
        alpha, _ = self._sigma_to_alpha_sigma_t(sigmas[-1])
        x_t: Tensor = super().multistep_dpm_solver_third_order_update(model_output_list, *args, **options)
        return x_t + alpha * second_difference
