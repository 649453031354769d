"""Networks that an engine runs, and their stand-ins in a pipeline.

The pipeline is float32 throughout; only the U-Net and the VAE's decoder have the engine's dtype. B rows (a
guided image has two), h and w latent positions, L tokens, W width of the prompt embeds.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate.utils import recursively_apply
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

Run = Callable[..., tuple[Tensor, ...]]
"""Runs a network on an engine: float32 tensors in, float32 tensors out."""


@runtime_checkable
class CalibratedRun(Protocol):
    """A `Run` of a network that is quantized after it has seen inputs."""

    calibration: str
    """Checksum of what it found; empty until it is calibrated."""

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the network."""

    def finish(self) -> None:
        """Quantize the network by what it has seen."""


Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`predict(sample (B, 4, h, w), t_proj (1, C), encoder_hidden_states (B, L, W))` gives noise_pred."""

CONDITIONS = {"down_block_additional_residuals", "mid_block_additional_residual", "added_cond_kwargs"}
"""Arguments of a U-Net with what ControlNets and IP-Adapters add."""
POSITIONS_AT_ONCE = 8192
"""Latent positions of the rows run at once: a guided image of 512 x 512. More rows do not make a CPU faster,
but take memory; smaller images share a pass."""


class Denoiser(nn.Module):
    """The U-Net without its timestep projection."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        # Made in float32 by TimestepProjection: in OpenVINO's bfloat16, 500 radians are some 2 off.
        unet.get_time_embed = lambda sample, timestep: timestep.to(sample.dtype)

    def forward(self, sample: Tensor, t_proj: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Return `(noise_pred,)` of sample (B, 4, h, w), t_proj (1, C), states (B, L, W)."""
        return (self.unet(sample, t_proj, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0],)


class TimestepProjection(nn.Module):
    """Sinusoidal projection of a timestep, with a distilled U-Net's guidance."""

    def __init__(self, unet: UNet2DConditionModel, device: torch.device) -> None:
        super().__init__()
        self.time_proj = unet.time_proj
        self.cond_proj = copy.deepcopy(getattr(unet.time_embedding, "cond_proj", None))
        self.to(device, torch.float32)

    @torch.no_grad()
    def forward(self, timestep: Tensor, timestep_cond: Tensor | None) -> Tensor:
        """Return t_proj (1, C) of timestep (1,) and timestep_cond (B, D)."""
        t_proj: Tensor = self.time_proj(timestep)
        if self.cond_proj is not None and timestep_cond is not None:
            t_proj = t_proj + self.cond_proj(timestep_cond[:1].float())
        return t_proj


class Decoder(nn.Module):
    """VAE decoder: latents (B, 4, h, w) to `(pixels (B, 3, 8h, 8w),)`."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        """Return pixels in [-1, 1], not clamped."""
        return (self.decoder(latents),)


def in_chunks(run: Run, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Run a network a few rows at a time, in constant memory.

    Args:
        run: The network.
        *tensors: Inputs; the first is (B, C, h, w); t_proj, of two dimensions, belongs to all rows.
    """
    num_rows, _, height, width = tensors[0].shape
    rows = max(1, POSITIONS_AT_ONCE // (height * width))
    if num_rows <= rows:
        return run(*tensors)
    parts = [
        run(*(tensor if tensor.ndim == 2 else tensor[start : start + rows] for tensor in tensors))
        for start in range(0, num_rows, rows)
    ]
    return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))


class TorchUNet:
    """A base's U-Net in torch, for conditions that no engine carries.

    Args:
        load: Returns the U-Net; called when it is first needed.
    """

    def __init__(self, load: Callable[[], UNet2DConditionModel]) -> None:
        self._load = load

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The U-Net, which takes t_proj in place of a timestep."""
        return Denoiser(self._load()).unet

    @torch.no_grad()
    def predict(
        self, sample: Tensor, t_proj: Tensor, encoder_hidden_states: Tensor, conditions: dict[str, Any]
    ) -> Tensor:
        """Return noise_pred (B, 4, h, w) under CONDITIONS."""
        unet = self.unet
        sample, t_proj, states, conditions = recursively_apply(
            lambda tensor: tensor.to(unet.device, unet.dtype),
            (sample, t_proj, encoder_hidden_states, conditions),
        )
        noise_pred = unet(sample, t_proj, encoder_hidden_states=states, return_dict=False, **conditions)[0]
        return noise_pred.float()


class EngineUNet(nn.Module):
    """Drop-in U-Net that runs on an engine.

    Args:
        config: The U-Net's.
        project: Its timestep projection.
        device: Where the pipeline works.
        run_unet: Gives noise_pred first.
        run_last_layer: For a feature cache.
        in_torch: Runs what has conditions.
    """

    def __init__(
        self,
        config: Any,
        project: TimestepProjection,
        device: torch.device,
        run_unet: Run,
        run_last_layer: Run | None,
        in_torch: TorchUNet,
    ) -> None:
        super().__init__()
        self.config, self.project, self.device, self.dtype = config, project, device, torch.float32
        self.run_unet, self.run_last_layer, self.in_torch = run_unet, run_last_layer, in_torch
        self.is_approximated = False
        """Whether `predict` leaves out work."""
        self.predict: Predict = lambda *inputs: in_chunks(run_unet, *inputs)[0]
        self.begin(is_guided=True, first_step=0)

    def begin(self, *, is_guided: bool, first_step: int) -> None:
        """Prepare for the first step of other images.

        Args:
            is_guided: Whether there is classifier-free guidance.
            first_step: Of the scheduler's steps; above 0 with an initial image.
        """
        # A distilled U-Net is told its guidance with the timestep, and has no rows for the negative prompt.
        self.is_guided = is_guided and self.config.time_cond_proj_dim is None
        """Whether the first half of a batch has the negative prompt."""
        self.first_step = first_step
        self.num_runs = 0
        """Of the U-Net; PNDM and Karras sigmas may visit a timestep twice."""

    @property
    def calibrated_runs(self) -> list[CalibratedRun]:
        """Runs that are calibrated, or will be."""
        return [run for run in (self.run_unet, self.run_last_layer) if isinstance(run, CalibratedRun)]

    @property
    def is_calibrated(self) -> bool:
        """Whether it has been calibrated, or needs not to be."""
        return all(run.calibration for run in self.calibrated_runs)

    @property
    def calibration(self) -> str:
        """Checksum of what calibration found; empty before it, and without quantization."""
        return "".join(run.calibration for run in self.calibrated_runs)

    @contextmanager
    def calibrating(self) -> Iterator[None]:
        """Calibrate on what is predicted in a block, without approximations."""

        def predict(*inputs: Tensor) -> Tensor:
            outputs = in_chunks(self.run_unet, *inputs)
            if self.run_last_layer is not None:
                in_chunks(self.run_last_layer, *inputs, outputs[1])
            return outputs[0]

        usual, self.predict = self.predict, predict
        try:
            yield
        finally:
            self.predict = usual
        for run in self.calibrated_runs:
            if not run.calibration:
                run.finish()

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        return_dict: bool = False,
        **conditions: Any,
    ) -> tuple[Tensor]:
        """Return `(noise_pred,)`, as the U-Net does with `return_dict=False`."""
        conditions = {name: value for name, value in conditions.items() if value is not None}
        assert conditions.keys() <= CONDITIONS, conditions.keys()
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(1)
        t_proj = self.project(timestep, timestep_cond)
        if conditions:
            assert not self.is_approximated
            noise_pred = self.in_torch.predict(sample, t_proj, encoder_hidden_states, conditions)
        else:
            noise_pred = self.predict(sample, t_proj, encoder_hidden_states)
        self.num_runs += 1
        return (noise_pred,)


class EngineDecoder(nn.Module):
    """Drop-in VAE decoder on an engine; a deep copy is plain torch.

    Args:
        decoder: Kept for copies.
        run: Gives `(pixels,)`.
    """

    def __init__(self, decoder: nn.Module, run: Run) -> None:
        super().__init__()
        self.decoder, self.run = decoder, run

    def forward(self, latents: Tensor, *_unused: Any) -> Tensor:
        """Return pixels (B, 3, 8h, 8w) of latents (B, 4, h, w)."""
        return in_chunks(self.run, latents)[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        return copy.deepcopy(self.decoder, memo)
