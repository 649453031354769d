"""A training in two processes with random crops and dropout: broken off and resumed, it is the same run."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.training.objectives import ContrastiveObjective
from regression import read_log
from tiny import fit
from two_processes import run_in_two_processes

DEATH = 17
"""Call of `embed` within step 5 of 6; a step with two micro-batches makes four calls."""


class DeathError(Exception):
    """In place of SIGKILL, which would end this process's other runs too."""


class Mortal(ContrastiveObjective):
    """Dies at a call of `embed`."""

    num_calls, dies_at = 0, 0

    def embed(self, batch):
        self.num_calls += 1
        if self.num_calls == self.dies_at:
            raise DeathError
        return super().embed(batch)


def clip_batches(clip, num_batches):
    """Micro-batches of four images with two captions each, the first image shown again in the second."""
    generator = torch.Generator().manual_seed(1)
    size = tiny.IMAGE_SIZE
    batches = []
    for index in range(num_batches):
        images = torch.arange(4) + 4 * index
        batches.append(
            {
                "clip_pixel_values": torch.randn(4, 3, size, size, generator=generator),
                "input_ids": torch.randint(10, 200, (8, 12), generator=generator),
                "image_index": images,
                "caption_image": images.repeat_interleave(2),
                "duplicate_id": torch.where(images == 4, 0, images),
            }
        )
        batches[-1]["input_ids"][:, -1] = clip.tokenizer.eos_token_id
    return batches


class Share:
    """One process's share of four batches an epoch."""

    def __init__(self, clip, rank):
        self.batches = clip_batches(clip, 8)[rank::2]

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch, start):
        return self.batches[start:]


def run(folder: Path, rank: int, *, dies_at: int = 0, resume: bool = False) -> dict[str, torch.Tensor]:
    clip = tiny.build_clip()
    for layer in [*clip.model.text_model.encoder.layers, *clip.model.vision_model.encoder.layers]:
        layer.self_attn.dropout = 0.3
    objective = Mortal(clip.model)
    objective.dies_at = dies_at
    options = {
        "num_epochs": 3,
        "gradient_accumulation_steps": 2,
        "checkpoint_every": 2,
        "learning_rate": 1e-3,
    }
    fit(objective, Share(clip, rank), run_dir=folder, seed=7, resume=resume, **options)
    return dict(objective.named_parameters())


@pytest.mark.slow
def test_resumed_run_of_two_processes_ends_in_the_same_bits(tmp_path):
    run_in_two_processes(__file__, tmp_path)
    for rank in range(2):
        unbroken, resumed = (load_file(tmp_path / f"{name}{rank}") for name in ("unbroken", "resumed"))
        assert all(torch.equal(resumed[name], value) for name, value in unbroken.items())
    assert read_log(tmp_path / "broken") == read_log(tmp_path / "whole")
    losses = {row["loss"] for row in read_log(tmp_path / "whole")}
    assert len(losses) == 6


def main(folder: Path, rank: int) -> None:
    save_file(run(folder / "whole", rank), folder / f"unbroken{rank}")
    try:
        run(folder / "broken", rank, dies_at=DEATH)
    except DeathError:
        save_file(run(folder / "broken", rank, resume=True), folder / f"resumed{rank}")


if __name__ == "__main__":
    import os

    main(Path(sys.argv[1]), int(os.environ["RANK"]))
