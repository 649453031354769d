"""Gradients of several micro-batches, and of several processes, as if they were one batch.

A mean loss is cut in pieces freely. A contrastive loss is not: its negatives lie in the other micro-batches.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

Batch = dict[str, Any]
Accumulation = Literal["joint", "separate"]


def backward_separately(
    objective: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Add the gradients of the mean of the micro-batches' own losses to the parameters.

    Args:
        objective: `objective(batch) -> (loss, metrics)`.
        batches: Micro-batches, on the accelerator's device.
        accelerator: Gives autocast and the gradient scale.

    Returns:
        Means of `loss` and of each metric.
    """
    totals: dict[str, Any] = {}
    for batch in batches:
        with accelerator.autocast():
            loss, metrics = objective(batch)
        accelerator.backward(loss / len(batches))
        for name, value in {"loss": loss.detach(), **metrics}.items():
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    return totals


def backward_jointly(
    objective: nn.Module, batches: Sequence[Batch], accelerator: Accelerator
) -> dict[str, Tensor]:
    """Add the gradient of the loss over all micro-batches of all processes together to the parameters.

    The micro-batches are embedded without a graph; the loss over all embeds gives the gradient at each; then
    each micro-batch is embedded once more, under the same random numbers, and that gradient is passed back
    through it. One micro-batch keeps its graph and needs no second pass.

    Parameters that the loss itself reads (`logit_scale`) get their gradient once, and not once a micro-batch.

    Args:
        objective: `embed(batch)` gives tensors by name, a row an item, none of which depends on another
            item; `joint_loss(embeds) -> (loss, metrics)` reads them concatenated.
        batches: Micro-batches, on the accelerator's device; as many items in each process.
        accelerator: Gives autocast, the gradient scale and the other processes.

    Returns:
        `loss` and the metrics, over all processes.

    Source:
        Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup".
    """
    keeps_graph = len(batches) == 1
    random_states, parts = [], []
    for batch in batches:
        random_states.append(_random_state(accelerator.device))
        with torch.set_grad_enabled(keeps_graph):
            parts.append(_embed(objective, batch, accelerator))
    local = {name: torch.cat([part[name].detach() for part in parts]) for name in parts[0]}
    embeds = {name: _as_leaf(accelerator.gather(tensor)) for name, tensor in local.items()}
    loss, metrics = objective.joint_loss(embeds)  # type: ignore[operator]
    accelerator.backward(loss)
    random_state = _random_state(accelerator.device)
    gradients = {
        name: _own_share(leaf.grad, accelerator).split([len(part[name]) for part in parts])
        for name, leaf in embeds.items()
        if leaf.grad is not None
    }
    for index, batch in enumerate(batches):
        if not keeps_graph:
            _set_random_state(random_states[index], accelerator.device)
            parts[index] = _embed(objective, batch, accelerator)
        torch.autograd.backward(
            [parts[index][name] for name in gradients], [parts_of[index] for parts_of in gradients.values()]
        )
        parts[index] = {}  # frees the graph before the next one is built
    _set_random_state(random_state, accelerator.device)
    return {"loss": loss.detach(), **metrics}


def _embed(objective: nn.Module, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
    with accelerator.autocast():
        return objective.embed(batch)  # type: ignore[operator]


def _as_leaf(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_(tensor.is_floating_point())


def _own_share(gradient: Tensor, accelerator: Accelerator) -> Tensor:
    """Rows of this process, times the number of processes: gradients are averaged over them later."""
    rows = gradient.chunk(accelerator.num_processes)[accelerator.process_index]
    return rows * accelerator.num_processes


def average_over_processes(parameters: Sequence[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace each gradient by its mean over all processes.

    Once a step and after the last micro-batch: DistributedDataParallel would exchange them during the
    backward pass, but wants every parameter in each graph, `logit_scale` included.
    """
    if accelerator.num_processes == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(accelerator.reduce(parameter.grad, reduction="mean"))


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
