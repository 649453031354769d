"""Gradients over several micro-batches and processes as of one batch (GradCache).

A contrastive loss cannot be averaged over micro-batches: its negatives lie in the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Any]


def backward_separately(
    objective: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Add the gradient of the micro-batches' mean loss; see `backward_jointly`.

    With a joint loss, a micro-batch has the negatives of all processes.

    Returns:
        Means of `loss` and of each metric.
    """
    is_shared = accelerator.num_processes > 1 and hasattr(objective, "joint_loss")
    totals: dict[str, Any] = {}
    for batch in batches:
        if is_shared:
            metrics = backward_jointly(objective, [batch], accelerator, num_parts=len(batches))
        else:
            with accelerator.autocast():
                loss, metrics = objective(batch)
            accelerator.backward(loss / len(batches))
            metrics = {"loss": loss.detach(), **metrics}
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    return totals


def backward_jointly(
    objective: nn.Module, batches: Sequence[Batch], accelerator: Accelerator, *, num_parts: int = 1
) -> dict[str, Tensor]:
    """Add the gradient of one loss over all micro-batches of all processes.

    Micro-batches are embedded without a graph, and the loss over all embeds gives their gradients; then each
    micro-batch is embedded again, with the same random numbers, to backpropagate them. A single micro-batch
    keeps its graph and needs no second pass. Parameters of the loss itself (`logit_scale`) get their gradient
    once.

    Args:
        objective: `embed(batch)` returns tensors by name, one row per item, independent of other items;
            `joint_loss(embeds) -> (loss, metrics)` reads them concatenated.
        batches: Micro-batches on the accelerator's device, of equal size in all processes.
        accelerator: For autocast, gradient scale and the other processes.
        num_parts: Divisor of the gradient, if this loss is a part of a mean.

    Returns:
        `loss` and the metrics, over all processes.

    Source:
        Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    keeps_graph = len(batches) == 1
    states, parts = [], []
    for batch in batches:
        states.append(_random_states(accelerator.device))
        with torch.set_grad_enabled(keeps_graph):
            parts.append(_embed(objective, batch, accelerator))
    local = concatenated(parts)
    embeds = {name: _as_leaf(accelerator.gather(tensor.detach())) for name, tensor in local.items()}
    loss, metrics = objective.joint_loss(embeds)  # type: ignore[operator]
    accelerator.backward(loss / num_parts)
    state_after = _random_states(accelerator.device)
    gradients = {
        name: _own_share(leaf.grad, accelerator).split([len(part[name]) for part in parts])
        for name, leaf in embeds.items()
        if leaf.grad is not None
    }
    for index, batch in enumerate(batches):
        if not keeps_graph:
            _set_random_states(states[index], accelerator.device)
            parts[index] = _embed(objective, batch, accelerator)
        # Embeds of a frozen tower have no graph.
        trained = [name for name in gradients if parts[index][name].requires_grad]
        torch.autograd.backward(
            [parts[index][name] for name in trained], [gradients[name][index] for name in trained]
        )
        parts[index] = {}  # frees the graph before the next one is built
    _set_random_states(state_after, accelerator.device)
    return {"loss": loss.detach(), **metrics}


def concatenated(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the embeds of several micro-batches."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _embed(objective: nn.Module, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
    with accelerator.autocast():
        return objective.embed(batch)  # type: ignore[operator]


def _as_leaf(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_(tensor.is_floating_point())


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the state of each torch generator used on a device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(states["mps"])


def _own_share(gradient: Tensor, accelerator: Accelerator) -> Tensor:
    # Times the number of processes: gradients are averaged over them later.
    rows = gradient.chunk(accelerator.num_processes)[accelerator.process_index]
    return rows * accelerator.num_processes


def average_over_processes(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace each gradient by its mean over all processes."""
    # DistributedDataParallel would exchange them during the backward pass, but requires every parameter in
    # each graph, logit_scale included.
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(accelerator.reduce(parameter.grad, reduction="mean"))
