"""What fine-tuning CLIP B/32 would cost on 1 to 1,024 GPUs: derived, not measured.

    python benchmarks/scaling.py [--batch 32768] [--share 0.4]

Counts, by torch, the work of a step at CLIP B/32's shape, and adds what the processes exchange: the
gradients, in float32 and during the backward pass, and the images' embeds with one number an image, before
it. Prints step time, share of peak, traffic and logits of a GPU for a global batch that is split (--batch),
and for 256 images a GPU; writes them to benchmarks/results/scaling.json.

The machine: eight H100 SXM a node. Published: 989 TFLOP/s in bfloat16; NVLink 450 GB/s each way; one 400 Gb/s
adapter a GPU between nodes. Assumed: the share of peak that training reaches (--share), and that links reach
70 % of their speed.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPModel

from clipgraft.console import print_table
from clipgraft.files import write_json

RESULT = Path(__file__).parent / "results" / "scaling.json"
PEAK, NVLINK, NETWORK, LINK_SHARE = 989e12, 450e9, 50e9, 0.7
GPUS_A_NODE, IMAGES_A_GPU, CAPTION_TOKENS, CAPTIONS_PER_IMAGE = 8, 256, 32, 1
FLOAT = 4
STATE_BYTES = 4 * FLOAT
"""A parameter's weight, gradient and AdamW's two moments."""
LOSS_MATRICES = 4
"""Of captions by images held at once: logits, masked logits, both gradients."""
NUMBERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Model(NamedTuple):
    """CLIP B/32 in training."""

    num_parameters: int
    width: int
    """Of the embeds."""
    pair_flop: float
    """An image and a caption through both towers and back."""


class Step(NamedTuple):
    """A step on some GPUs."""

    num_gpus: int
    batch: int
    seconds: float
    efficiency: float
    """Towers' work over all that the GPUs could do in that time."""
    sent_gb: float
    """By each GPU."""
    logits_gb: float
    state_gb: float
    """Weights, gradients, optimizer; activations come on top."""


def count() -> Model:
    """Count parameters and work on the meta device."""
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig())
        pixels, words = torch.zeros(8, 3, 224, 224), torch.zeros(8, CAPTION_TOKENS, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        clip(input_ids=words, pixel_values=pixels, return_loss=True).loss.backward()
    number = sum(parameter.numel() for parameter in clip.parameters())
    return Model(number, clip.config.projection_dim, counter.get_total_flops() / 8)


def step(model: Model, num_gpus: int, batch: int, share: float) -> Step:
    """Derive a step."""
    speed, own = PEAK * share, batch / num_gpus
    towers = own * model.pair_flop / speed
    logits = own * CAPTIONS_PER_IMAGE * batch
    loss = 3 * 2 * logits * model.width / speed
    link = (NVLINK if num_gpus <= GPUS_A_NODE else NETWORK) * LINK_SHARE
    others = (num_gpus - 1) / num_gpus
    embeds = 2 * others * batch * (model.width + 2) * FLOAT  # gathered, and their gradients brought back
    gradients = 2 * others * model.num_parameters * FLOAT  # a ring's all-reduce
    backward = towers * 2 / 3
    seconds = towers / 3 + loss + embeds / link + max(backward, gradients / link)
    return Step(
        num_gpus,
        batch,
        seconds,
        towers * share / seconds,
        (embeds + gradients) / 1e9,
        LOSS_MATRICES * logits * FLOAT / 1e9,
        model.num_parameters * STATE_BYTES / 1e9,
    )


def table_of(title: str, steps: list[Step]) -> Table:
    """The steps as a table."""
    table = Table("GPUs", "batch", "ms a step", "images/s", "of peak", "sent, GB", "logits, GB", title=title)
    for each in steps:
        figures = f"{each.seconds * 1e3:.1f}", f"{each.batch / each.seconds:,.0f}", f"{each.efficiency:.1%}"
        sizes = f"{each.sent_gb:.2f}", f"{each.logits_gb:.3f}"
        table.add_row(str(each.num_gpus), f"{each.batch:,}", *figures, *sizes)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=32_768)
    parser.add_argument("--share", type=float, default=0.4)
    options = parser.parse_args()
    model = count()
    split = [step(model, number, options.batch, options.share) for number in NUMBERS]
    grown = [step(model, number, IMAGES_A_GPU * number, options.share) for number in NUMBERS]
    print_table(table_of(f"a global batch of {options.batch:,}", split))
    print_table(table_of(f"{IMAGES_A_GPU} images a GPU", grown))
    result = {"model": model._asdict(), "share_of_peak": options.share, "is": "derived, not measured"}
    rows = {"split": [each._asdict() for each in split], "grown": [each._asdict() for each in grown]}
    write_json(RESULT, result | rows)


if __name__ == "__main__":
    main()
