"""Gradients over several micro-batches and processes as of one batch (GradCache).

A contrastive loss cannot be averaged over micro-batches: its negatives lie in the others.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipgraft.training.exchange import Gather, gather_of

Batch = dict[str, Any]
LastPass = Callable[[], AbstractContextManager[None]]


def backward_separately(
    objective: nn.Module,
    batches: Sequence[Batch],
    accelerator: Accelerator,
    *,
    last_pass: LastPass = nullcontext,
) -> dict[str, Tensor]:
    """Add the gradient of the micro-batches' mean loss; see `backward_jointly`.

    With a joint loss, a micro-batch has the negatives of all processes.

    Returns:
        Means of `loss` and of each metric.
    """
    is_shared = accelerator.num_processes > 1 and hasattr(objective, "joint_loss")
    totals: dict[str, Any] = {}
    for number, batch in enumerate(batches, start=1):
        context = last_pass if number == len(batches) else nullcontext
        if is_shared:
            metrics = backward_jointly(
                objective, [batch], accelerator, num_parts=len(batches), last_pass=context
            )
        else:
            with accelerator.autocast():
                loss, metrics = objective(batch)
            with context():
                accelerator.backward(loss / len(batches))
            metrics = {"loss": loss.detach(), **metrics}
        for name, value in metrics.items():
            totals[name] = totals.get(name, 0.0) + value / len(batches)
    return totals


def backward_jointly(
    objective: nn.Module,
    batches: Sequence[Batch],
    accelerator: Accelerator,
    *,
    num_parts: int = 1,
    last_pass: LastPass = nullcontext,
) -> dict[str, Tensor]:
    """Add the gradient of one loss over all micro-batches of all processes.

    Micro-batches are embedded without a graph, and the loss over all embeds gives their gradients; then each
    micro-batch is embedded again, with the same random numbers, to backpropagate them. A single micro-batch
    keeps its graph and needs no second pass. Parameters of the loss itself (`logit_scale`) get their gradient
    once. An objective with `embed_parts(batch)`, which yields the embeds in parts without common trained
    parameters, has the graph of one part at a time in memory.

    Args:
        objective: `embed(batch)` returns tensors by name, one row per item, independent of other items;
            `joint_loss(embeds) -> (loss, metrics)` reads those of all processes, concatenated. With an
            argument `gather` it reads this process's own, and gathers what else it needs.
        batches: Micro-batches on the accelerator's device, of equal size in all processes.
        accelerator: For autocast, gradient scale and the other processes.
        num_parts: Divisor of the gradient, if this loss is a part of a mean.
        last_pass: Context of the backward pass that completes the gradients.

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
    embeds = {name: _as_leaf(tensor.detach()) for name, tensor in concatenated(parts).items()}
    loss, metrics = joint_loss(objective, embeds, gather_of(accelerator))
    accelerator.backward(loss / num_parts)
    state_after = _random_states(accelerator.device)
    gradients = {
        name: leaf.grad.split([len(part[name]) for part in parts])
        for name, leaf in embeds.items()
        if leaf.grad is not None
    }
    for index, batch in enumerate(batches):
        towers: Iterable[dict[str, Tensor]] = [parts[index]]
        if not keeps_graph:
            _set_random_states(states[index], accelerator.device)
            towers = _embed_parts(objective, batch, accelerator)
        with last_pass() if index == len(batches) - 1 else nullcontext():
            for embeds in towers:
                _backpropagate(embeds, {name: split[index] for name, split in gradients.items()})
    _set_random_states(state_after, accelerator.device)
    return {"loss": loss.detach(), **metrics}


def joint_loss(objective: nn.Module, embeds: dict[str, Tensor], gather: Gather) -> Any:
    """Return an objective's joint loss; see `backward_jointly`."""
    if "gather" in signature(objective.joint_loss).parameters:  # type: ignore[arg-type]
        return objective.joint_loss(embeds, gather)  # type: ignore[operator]
    return objective.joint_loss({name: gather(tensor) for name, tensor in embeds.items()})  # type: ignore[operator]


def concatenated(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the embeds of several micro-batches."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _embed(objective: nn.Module, batch: Batch, accelerator: Accelerator) -> dict[str, Tensor]:
    with accelerator.autocast():
        return objective.embed(batch)  # type: ignore[operator]


def _embed_parts(objective: nn.Module, batch: Batch, accelerator: Accelerator) -> Iterator[dict[str, Tensor]]:
    """Yield a micro-batch's embeds, in parts if the objective has some."""
    if not hasattr(objective, "embed_parts"):
        yield _embed(objective, batch, accelerator)
        return
    parts = objective.embed_parts(batch)  # type: ignore[operator]
    while True:
        with accelerator.autocast():  # for the forward pass alone
            embeds = next(parts, None)
        if embeds is None:
            return
        yield embeds


def _backpropagate(embeds: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
    # Embeds of a frozen tower have no graph.
    trained = [name for name in gradients if name in embeds and embeds[name].requires_grad]
    if trained:
        torch.autograd.backward([embeds[name] for name in trained], [gradients[name] for name in trained])


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
