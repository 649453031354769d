"""Exchange of tensors and gradients between processes.

Every process computes the whole loss from parts of all; `gather` sums the gradients of these losses, and
`GradientExchange` takes the mean over processes, so that each parameter gets the gradient of one loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather

T = TypeVar("T")
Gather = Callable[[Tensor], Tensor]
"""Concatenates the rows (first dimension) of a tensor of all processes, equally many in each."""

BUCKET_BYTES = 25 * 2**20
"""Gradients exchanged at once (DistributedDataParallel's default)."""


def alone(tensor: Tensor) -> Tensor:
    """Return the rows of the only process."""
    return tensor


def gather_of(processes: Accelerator | PartialState) -> Gather:
    """Return the `Gather` of processes that work together, with gradients."""
    return alone if processes.num_processes == 1 else lambda tensor: torch.cat(all_gather(tensor))


def in_shares(
    items: Sequence[T], compute: Callable[[Sequence[T]], Tensor], processes: PartialState | None
) -> Tensor:
    """Compute a row for each item, every process its share.

    Args:
        items: At least one; the same in all processes.
        compute: Of one share, (share, ...) from items.
        processes: Those that call this together; None = this one alone.

    Returns:
        All rows in order, on the CPU.
    """
    if processes is None or processes.num_processes == 1:
        return compute(items).cpu()
    size = -(-len(items) // processes.num_processes)
    own = items[processes.process_index * size :][:size]
    rows = gather_object([compute(own).cpu()] if own else [])
    return torch.cat(rows)


class GradientExchange:
    """Means of gradients over processes, exchanged while others are computed.

    Args:
        parameters: The trained ones, in the order of the forward pass.
        num_processes: 1 = nothing to exchange.
    """

    # DistributedDataParallel would do the same, but requires every parameter in each graph, logit_scale
    # included, and that the loss is computed within its forward pass.

    def __init__(self, parameters: Sequence[nn.Parameter], num_processes: int):
        self.num_processes = num_processes
        self.buckets = buckets_of(parameters) if num_processes > 1 else []
        self.missing: list[set[nn.Parameter]] = []
        """By bucket, parameters whose gradient the last pass has not completed yet."""
        self.started: list[tuple[Tensor, distributed.Work]] = []
        self.is_last_pass = False
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._on_gradient)
            for bucket in self.buckets
            for parameter in bucket
        ]

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """Exchange each bucket as soon as its gradients are complete."""
        self.missing = [set(bucket) for bucket in self.buckets]
        self.is_last_pass = True
        try:
            yield
        finally:
            self.is_last_pass = False

    def finish(self) -> None:
        """Exchange the rest; wait until each gradient is the mean."""
        while len(self.started) < len(self.buckets):
            self._start_next()
        for bucket, (flat, work) in zip(self.buckets, self.started, strict=True):
            work.wait()
            first = 0
            for parameter in bucket:
                if parameter.grad is not None:
                    part = flat[first : first + parameter.numel()]
                    parameter.grad.copy_(part.view_as(parameter) / self.num_processes)
                    first += parameter.numel()
        self.started = []

    def close(self) -> None:
        """Take the hooks off the parameters."""
        for hook in self.hooks:
            hook.remove()

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        if not self.is_last_pass:
            return
        for bucket in self.missing:
            bucket.discard(parameter)
        # In one order in all processes, as the exchange pairs them by it.
        while len(self.started) < len(self.buckets) and not self.missing[len(self.started)]:
            self._start_next()

    def _start_next(self) -> None:
        bucket = self.buckets[len(self.started)]
        gradients = [each.grad.flatten() for each in bucket if each.grad is not None]
        flat = torch.cat(gradients) if gradients else torch.zeros(1, device=bucket[0].device)
        self.started.append((flat, distributed.all_reduce(flat, async_op=True)))


def buckets_of(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split parameters by size and dtype, last ones first.

    In that order the backward pass reaches them.
    """
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in reversed(parameters):
        num_bytes = parameter.numel() * parameter.element_size()
        if not buckets or size + num_bytes > BUCKET_BYTES or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += num_bytes
    return buckets
