"""One optimizer step: gradients, finite check, clipping, AdamW, moving average."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from clipgraft.errors import UserError
from clipgraft.settings import OptimConfig
from clipgraft.training.captured import CapturedBackward, can_capture
from clipgraft.training.checkpoints import TrainingState, refuse_other_model
from clipgraft.training.exchange import GradientExchange
from clipgraft.training.grad_cache import Batch, backward_jointly, backward_separately
from clipgraft.training.optim import parameter_groups

MAX_SKIPPED_IN_A_ROW = 10
"""Non-finite losses in a row taken as divergence (a guess)."""

logger = logging.getLogger(__name__)


class DeviceMetrics(NamedTuple):
    """Metrics of a step, on its device."""

    names: tuple[str, ...]
    values: Tensor
    """(names,) float32."""
    learning_rate: float

    def is_not_finite(self) -> Tensor:
        """Return 1.0 (on the device) if loss or gradient is not finite, else 0."""
        deciding = [self.values[self.names.index(name)] for name in ("loss", "grad_norm")]
        return (~torch.stack(deciding).isfinite().all()).float()


def read_together(steps: Sequence[DeviceMetrics]) -> list[dict[str, float]]:
    """Copy steps' metrics from the device at once."""
    rows = torch.stack([step.values for step in steps]).tolist()
    return [
        dict(zip(step.names, row, strict=True)) | {"learning_rate": step.learning_rate}
        for step, row in zip(steps, rows, strict=True)
    ]


class TrainStep:
    """Optimizer steps of an objective; they change only `state`.

    Args:
        objective: See `fit`, also for `seed` and `learning_rate_scales`.
        optim: With a resolved `mixed_precision`: "no", "fp16" or "bf16".
        device: "cpu", "cuda" or "mps".

    Raises:
        UserError: If there is nothing to train.
    """

    def __init__(
        self,
        objective: nn.Module,
        optim: OptimConfig,
        device: str = "cpu",
        seed: int = 0,
        learning_rate_scales: Mapping[str, float] = MappingProxyType({}),
    ):
        groups = parameter_groups(objective, optim.weight_decay, optim.layer_decay, learning_rate_scales)
        # accelerate keeps the first Accelerator's precision for the whole process, but stages may differ.
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(mixed_precision=optim.mixed_precision, cpu=device == "cpu")
        self.objective = objective.to(self.accelerator.device).train()
        self.max_grad_norm, self.seed = optim.max_grad_norm, seed
        # Fused for speed: one pass over memory instead of ten.
        optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, fused=device != "mps")
        self.optimizer = self.accelerator.prepare(optimizer)
        self.trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.exchange = GradientExchange(self.trained, self.accelerator.num_processes)
        self.ema = EMAModel(self.trained, decay=optim.ema_decay, foreach=True) if optim.ema_decay else None
        self.state = TrainingState(
            objective, self.optimizer.optimizer, self.ema, self.accelerator.scaler, optim.mixed_precision
        )
        self.is_joint = optim.accumulation == "joint" and hasattr(objective, "joint_loss")
        self.skipped_in_a_row = 0
        self.captured: CapturedBackward | None = None
        if can_capture(objective, self.accelerator):
            self.captured = CapturedBackward(self._backward_alone, self.trained)

    def __call__(self, micro_batches: list[Batch], learning_rate: float) -> dict[str, float]:
        """Make one optimizer step; return metrics to log."""
        metrics = read_together([self._gradients(micro_batches, learning_rate)])[0]
        self.state.step += 1
        if self._step_if_finite(metrics):
            self.skipped_in_a_row = 0
            self._update_average()
        else:
            self._count_skipped(metrics, micro_batches)
        return metrics

    def without_waiting(self, micro_batches: list[Batch], learning_rate: float) -> DeviceMetrics:
        """Make an optimizer step without waiting; `check` its metrics later.

        The device itself leaves out an update that is not finite. Not for float16's scaler, nor for MPS.
        """
        metrics = self._gradients(micro_batches, learning_rate)
        self.state.step += 1
        # Read by torch's fused AdamW, also without a scaler.
        self.state.optimizer.found_inf = metrics.is_not_finite()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._update_average()
        return metrics

    def check(self, steps: Sequence[DeviceMetrics]) -> list[dict[str, float]]:
        """Return the metrics of the last steps made `without_waiting`.

        Raises:
            UserError: If too many steps in a row were left out.
        """
        found = read_together(steps)
        for number, metrics in enumerate(found, start=self.state.step - len(found)):
            if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
                self.skipped_in_a_row = 0
            else:
                self._count_skipped(metrics, [], number + 1)
        return found

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights, if any, within the context."""
        if self.ema:
            self.ema.store(self.trained)
            self.ema.copy_to(self.trained)
        try:
            yield
        finally:
            self.objective.train()
            if self.ema:
                self.ema.restore(self.trained)

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the trained parameters, by name, on the CPU."""
        named = self.objective.named_parameters()
        return {name: p.detach().cpu().contiguous().clone() for name, p in named if p.requires_grad}

    def agree_on(self, signal_number: int) -> int:
        """Return a signal sent to any process, so all stop together."""
        if self.accelerator.num_processes == 1:
            return signal_number
        signals = self.accelerator.gather(torch.tensor([signal_number], device=self.accelerator.device))
        return int(signals.max())

    def finish(self, weights: dict[str, Tensor] | None) -> None:
        """Load the given weights, else the averaged ones, into the objective.

        Raises:
            CheckpointError: If names or shapes differ from the trained parameters'.
        """
        if self.ema:
            self.ema.copy_to(self.trained)
        if weights:
            named = self.objective.named_parameters()
            refuse_other_model("best.safetensors", weights, {n: p for n, p in named if p.requires_grad})
            self.objective.load_state_dict(weights, strict=False)  # without the frozen ones
        self.exchange.close()
        self.accelerator.free_memory()

    def _gradients(self, micro_batches: list[Batch], learning_rate: float) -> DeviceMetrics:
        """Compute the step's clipped gradients; return metrics averaged over processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        seed_step(self.seed, self.state.step, self.accelerator.process_index)
        metrics = self._backward(send_to_device(micro_batches, self.accelerator.device))
        values = torch.stack([torch.as_tensor(value).float() for value in metrics.values()])
        values = self.accelerator.reduce(values.to(self.accelerator.device), reduction="mean")
        norm = self.accelerator.clip_grad_norm_(self.trained, self.max_grad_norm)
        return DeviceMetrics(
            (*metrics, "grad_norm"), torch.cat([values, norm.float().view(1)]), learning_rate
        )

    def _backward(self, micro_batches: list[Batch]) -> dict[str, Tensor]:
        """Accumulate the step's gradient; return this process's metrics."""
        is_alone = len(micro_batches) == self.accelerator.num_processes == 1
        backward = backward_jointly if self.is_joint and not is_alone else backward_separately
        if self.captured and is_alone:
            return self.captured(micro_batches[0])
        last_pass = self.exchange.last_pass
        metrics = backward(self.objective, micro_batches, self.accelerator, last_pass=last_pass)
        self.exchange.finish()
        return metrics

    def _update_average(self) -> None:
        if hasattr(self.objective, "after_step"):
            self.objective.after_step()  # type: ignore[operator]
        if self.ema:
            self.ema.step(self.trained)

    def _backward_alone(self, batch: Batch) -> dict[str, Tensor]:
        return backward_separately(self.objective, [batch], self.accelerator)

    def _step_if_finite(self, metrics: dict[str, float]) -> bool:
        """Update the weights if loss and gradient are finite."""
        is_finite = math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])
        if is_finite or self.accelerator.scaler is not None:
            # float16's scaler checks by itself, and lowers its scale on an overflow.
            self.optimizer.step()
        self.optimizer.zero_grad()
        return is_finite and not self.optimizer.step_was_skipped

    def _count_skipped(
        self, metrics: dict[str, float], micro_batches: list[Batch], step: int | None = None
    ) -> None:
        self.state.skipped_steps += 1
        self.skipped_in_a_row += 1
        step = self.state.step if step is None else step
        images = [str(name) for batch in micro_batches for name in batch.get("image_ids", [])]
        logger.warning(
            "step %d skipped: loss %s, gradient norm %s; images: %s",
            *(step, metrics["loss"], metrics["grad_norm"], ", ".join(images) or "not named"),
        )
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{self.skipped_in_a_row} steps in a row had no finite loss or gradient; stopped at step "
                f"{step}. Lower learning_rate, or set mixed_precision to 'no' or 'bf16'"
            )


def seed_step(seed: int, step: int, process_index: int) -> None:
    """Seed torch's generators for one step; checkpoints save no random state.

    Processes differ, each having images of its own; `seed` is not negative.
    """
    sequence = np.random.SeedSequence((seed, step, process_index))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
