"""Forward and backward pass recorded as one CUDA graph.

A small model's step is hundreds of short kernels, which a CPU launches more slowly than a GPU runs them.
"""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipgraft.console import say
from clipgraft.training.grad_cache import Batch

WARMUP_CALLS = 3
"""Eager calls before recording, in which libraries allocate workspaces (torch's guide to CUDA graphs)."""


def can_capture(objective: nn.Module, accelerator: Accelerator) -> bool:
    """Whether an objective may be recorded.

    Its class says so by `has_fixed_shapes`: batches of tensors of constant shapes, and no synchronization.
    float16's scaler and several processes work between the kernels.
    """
    return (
        getattr(objective, "has_fixed_shapes", False)
        and accelerator.device.type == "cuda"
        and accelerator.num_processes == 1
        and accelerator.scaler is None
    )


class CapturedBackward:
    """A backward pass that is recorded after its first calls.

    Args:
        backward: Of a batch on the GPU; sets the gradients, returns metrics.
        parameters: Those that get gradients.
    """

    def __init__(self, backward: Callable[[Batch], dict[str, Tensor]], parameters: Sequence[nn.Parameter]):
        self._backward, self._parameters = backward, parameters
        self._num_calls, self._is_refused = 0, False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: dict[str, Tensor] = {}
        self._metrics: dict[str, Tensor] = {}
        self._gradients: list[Tensor | None] = []

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Set the gradients; return metrics, overwritten by the next call."""
        self._num_calls += 1
        if self._graph is None and self._num_calls > WARMUP_CALLS and not self._is_refused:
            self._capture(batch)
        if self._graph is None or not self._fits(batch):
            return self._apart(batch)
        for name, tensor in batch.items():
            self._batch[name].copy_(tensor, non_blocking=True)
        self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._metrics

    def _fits(self, batch: Batch) -> bool:
        return {name: (value.shape, value.dtype) for name, value in batch.items()} == {
            name: (value.shape, value.dtype) for name, value in self._batch.items()
        }

    def _apart(self, batch: Batch) -> dict[str, Tensor]:
        """Run eagerly on a stream of its own, as a recording needs."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            metrics = self._backward(batch)
        current.wait_stream(stream)
        return metrics

    def _capture(self, batch: Batch) -> None:
        """Record the pass; without success, all calls stay eager."""
        for parameter in self._parameters:
            parameter.grad = None  # so that a replay writes gradients instead of adding to them
        self._batch = {name: tensor.clone() for name, tensor in batch.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._metrics = self._backward(self._batch)
        except RuntimeError as error:
            self._is_refused = True
            say(f"the step cannot be recorded as a CUDA graph and runs eagerly: {str(error).splitlines()[0]}")
            return
        self._gradients = [parameter.grad for parameter in self._parameters]
        self._graph = graph
