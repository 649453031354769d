"""Gradients of several micro-batches, and of several processes, as if they were one batch.

A mean loss is cut in pieces freely. A contrastive loss is not: its negatives lie in the other micro-batches.
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
    """Add the gradients of the mean of the micro-batches' own losses to the parameters.

    A micro-batch is that of all processes together: where the objective can give a joint loss, its negatives
    come from all of them.

    Args:
        objective: `objective(batch) -> (loss, metrics)`; may have what `backward_jointly` reads.
        batches: Micro-batches, on the accelerator's device; as many in each process.
        accelerator: Gives autocast, the gradient scale and the other processes.

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
        num_parts: Of a mean that this loss is one part of; divides the gradient.

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
        # What a frozen tower gives has no graph to go back through.
        trained = [name for name in gradients if parts[index][name].requires_grad]
        torch.autograd.backward(
            [parts[index][name] for name in trained], [gradients[name][index] for name in trained]
        )
        parts[index] = {}  # frees the graph before the next one is built
    _set_random_states(state_after, accelerator.device)
    return {"loss": loss.detach(), **metrics}


def concatenated(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what `embed` gave of several micro-batches as if it were of one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _embed(objective: nn.Module, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
    with accelerator.autocast():
        return objective.embed(batch)  # type: ignore[operator]


def _as_leaf(tensor: Tensor) -> Tensor:
    return tensor.requires_grad_(tensor.is_floating_point())


def _random_states(device: torch.device) -> dict[str, Tensor]:
    """State of each of torch's generators that work on a device draws from."""
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
