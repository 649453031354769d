"""One optimizer step: gradients, finite check, clipping, AdamW, moving average."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

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
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        seed_step(self.seed, self.state.step, self.accelerator.process_index)
        metrics = self._backward(send_to_device(micro_batches, self.accelerator.device))
        norm = self.accelerator.clip_grad_norm_(self.trained, self.max_grad_norm)
        metrics |= {"grad_norm": float(norm), "learning_rate": learning_rate}
        self.state.step += 1
        if self._step_if_finite(metrics):
            self.skipped_in_a_row = 0
            if hasattr(self.objective, "after_step"):
                self.objective.after_step()  # type: ignore[operator]
            if self.ema:
                self.ema.step(self.trained)
        else:
            self._count_skipped(metrics, micro_batches)
        return metrics

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

    def _backward(self, micro_batches: list[Batch]) -> dict[str, float]:
        """Accumulate the step's gradient; return metrics averaged over processes."""
        is_alone = len(micro_batches) == self.accelerator.num_processes == 1
        backward = backward_jointly if self.is_joint and not is_alone else backward_separately
        if self.captured and is_alone:
            metrics = self.captured(micro_batches[0])
        else:
            last_pass = self.exchange.last_pass
            metrics = backward(self.objective, micro_batches, self.accelerator, last_pass=last_pass)
            self.exchange.finish()
        tensors = {name: torch.as_tensor(value).float() for name, value in metrics.items()}
        values = torch.stack(list(tensors.values())).to(self.accelerator.device)
        # One copy from device to host for all metrics.
        return dict(zip(tensors, self.accelerator.reduce(values, reduction="mean").tolist(), strict=True))

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

    def _count_skipped(self, metrics: dict[str, float], micro_batches: list[Batch]) -> None:
        self.state.skipped_steps += 1
        self.skipped_in_a_row += 1
        images = [str(name) for batch in micro_batches for name in batch.get("image_ids", [])]
        logger.warning(
            "step %d skipped: loss %s, gradient norm %s; images: %s",
            *(self.state.step, metrics["loss"], metrics["grad_norm"], ", ".join(images) or "not named"),
        )
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{self.skipped_in_a_row} steps in a row had no finite loss or gradient; stopped at step "
                f"{self.state.step}. Lower learning_rate, or set mixed_precision to 'no' or 'bf16'"
            )


def seed_step(seed: int, step: int, process_index: int) -> None:
    """Seed torch's generators for one step; checkpoints save no random state.

    Processes differ, each having images of its own; `seed` is not negative.
    """
    sequence = np.random.SeedSequence((seed, step, process_index))
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
