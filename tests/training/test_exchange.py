"""Losses and gradients shared by several processes, against one process with everything."""

import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipgraft.training import exchange
from clipgraft.training.exchange import GradientExchange, buckets_of, gather_of
from clipgraft.training.losses import contrastive_loss
from two_processes import run_in_processes

NUM_PROCESSES, IMAGES, CAPTIONS_PER_IMAGE, WIDTH = 4, 16, 5, 8
"""Images of one process."""


class LargestTensor(TorchDispatchMode):
    """Remembers how many numbers the largest tensor made within it has."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, tuple | list) else [made]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return made


def embeds():
    torch.manual_seed(0)
    sizes = NUM_PROCESSES * IMAGES, NUM_PROCESSES * IMAGES * CAPTIONS_PER_IMAGE
    return [nn.functional.normalize(torch.randn(size, WIDTH), dim=-1) for size in sizes]


def own(tensor, rank):
    return tensor.chunk(NUM_PROCESSES)[rank]


def layers():
    torch.manual_seed(1)
    return nn.ModuleList(nn.Linear(20, 20) for _ in range(4))


def input_of(rank):
    return torch.randn(3, 20, generator=torch.Generator().manual_seed(rank))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    run_in_processes(NUM_PROCESSES, __file__, folder)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(NUM_PROCESSES)]


@pytest.mark.slow
def test_each_process_has_the_loss_and_the_gradients_of_all(saved):
    image, text = (tensor.requires_grad_() for tensor in embeds())
    scale = torch.tensor(2.0, requires_grad=True)
    rows = torch.arange(len(image)).repeat_interleave(CAPTIONS_PER_IMAGE)
    loss = contrastive_loss(image, text, scale, caption_row=rows)
    loss.backward()
    for rank, found in enumerate(saved):
        torch.testing.assert_close(found["loss"], loss.detach())
        # The mean over processes follows, which brings the gradient of the mean back to that of the loss.
        torch.testing.assert_close(found["image"] / NUM_PROCESSES, own(image.grad, rank))
        torch.testing.assert_close(found["text"] / NUM_PROCESSES, own(text.grad, rank))
    torch.testing.assert_close(sum(found["scale"] for found in saved) / NUM_PROCESSES, scale.grad)


@pytest.mark.slow
def test_a_process_makes_no_more_than_its_captions_logits(saved):
    largest = IMAGES * CAPTIONS_PER_IMAGE * NUM_PROCESSES * IMAGES
    assert [int(found["largest"]) for found in saved] == [largest] * NUM_PROCESSES


@pytest.mark.slow
def test_gradients_become_their_mean_over_processes(saved):
    model = layers()
    for rank in range(NUM_PROCESSES):
        (forward(model, input_of(rank)) / NUM_PROCESSES).backward()
    expected = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert len(expected) == 6  # the last layer takes no part
    for found in saved:
        torch.testing.assert_close({name: found[name] for name in expected}, expected)
        assert int(found["started_early"]) > 0


def test_buckets_begin_at_the_end_and_keep_dtypes_apart(monkeypatch):
    monkeypatch.setattr(exchange, "BUCKET_BYTES", 100)
    sizes = [(30, torch.float32), (10, torch.float32), (10, torch.float32), (2, torch.float64)]
    first, second, third, last = (nn.Parameter(torch.zeros(size, dtype=dtype)) for size, dtype in sizes)
    found = buckets_of([first, second, third, last])
    assert [[id(each) for each in bucket] for bucket in found] == [
        [id(last)],
        [id(third), id(second)],
        [id(first)],
    ]


def test_one_process_exchanges_nothing():
    layer = nn.Linear(2, 2)
    alone = GradientExchange([*layer.parameters()], 1)
    with alone.last_pass():
        layer(torch.ones(1, 2)).sum().backward()
    alone.finish()
    assert torch.equal(layer.bias.grad, torch.ones(2))
    alone.close()


def forward(model, inputs):
    for layer in model[:3]:
        inputs = layer(inputs).tanh()
    return inputs.square().sum()


def main(folder: Path, rank: int) -> None:
    gather = gather_of(Accelerator(cpu=True))
    image, text = (own(tensor, rank).clone().requires_grad_() for tensor in embeds())
    scale = torch.tensor(2.0, requires_grad=True)
    rows = (torch.arange(IMAGES) + rank * IMAGES).repeat_interleave(CAPTIONS_PER_IMAGE)
    with LargestTensor() as largest:
        loss = contrastive_loss(gather(image), text, scale, caption_row=rows, gather=gather)
        loss.backward()
    found = {"loss": loss.detach(), "image": image.grad, "text": text.grad, "scale": scale.grad}
    found["largest"] = torch.tensor(largest.numel)
    exchange.BUCKET_BYTES = 1_700  # a layer of 1,680 each, so that the last one's has no gradient at all
    model = layers()
    # Without a gradient, the last layer comes last, else all others would wait for it.
    parameters = [*model[3].parameters(), *model[:3].parameters()]
    exchanged = GradientExchange(parameters, NUM_PROCESSES)
    with exchanged.last_pass():
        forward(model, input_of(rank)).backward()
    found["started_early"] = torch.tensor(len(exchanged.started))
    exchanged.finish()
    found |= {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    save_file(found, folder / f"{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ["RANK"]))
