"""Token states of captions, computed once and kept in a file; batches of captions of about one length.

B captions in a batch, L positions of the longest of them, T positions of all captions.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipgraft.errors import UserError

BATCHES_IN_POOL = 16
"""Captions are drawn for so many batches at once and then put to those of their length."""
BYTES = 2
"""Of a number in the file, a float16: its rounding, 5e-4, is far below the error of any bridge."""


class TokenStates:
    """States of two towers at chosen positions of captions, in a file, not in memory.

    Args:
        path: Of the file, made anew.
        counts: Positions that will be added of each caption, (N,) int64, in the order of adding.
        sizes: Widths of both towers.

    Raises:
        UserError: If the disk has no room for it.
        OSError: If the system refuses it.
    """

    def __init__(self, path: Path, counts: Tensor, sizes: tuple[int, int]):
        self.sizes = sizes
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        path.unlink(missing_ok=True)
        total, width = int(self.starts[-1]), sum(sizes)
        needed, free = total * width * BYTES, shutil.disk_usage(path.parent).free
        if needed > free:
            raise UserError(
                f"token states of {len(counts):,} captions take {needed / 1e9:.1f} GB and {path.parent} has "
                f"{free / 1e9:.1f} GB free; give fewer captions (bridge.max_captions) or make room"
            )
        with path.open("wb") as file:
            _reserve(file.fileno(), needed)
        self.states = torch.from_file(str(path), shared=True, size=total * width, dtype=torch.float16)
        self.states = self.states.view(total, width)
        self.classes, self.positions = (torch.zeros(total, dtype=torch.uint8) for _ in range(2))
        self.num_added = 0

    def __len__(self) -> int:
        """Return the number of captions."""
        return len(self.starts) - 1

    def add(self, student: Tensor, teacher: Tensor, classes: Tensor, chosen: Tensor) -> None:
        """Add captions.

        Args:
            student: (B, L, D).
            teacher: (B, L, W).
            classes: (B, L), token classes.
            chosen: (B, L) bool, the positions to keep.
        """
        part = slice(self.num_added, self.num_added + int(chosen.sum()))
        self.states[part] = torch.cat([student[chosen], teacher[chosen]], dim=1)
        self.classes[part] = classes[chosen]
        self.positions[part] = torch.arange(classes.shape[1]).expand_as(classes)[chosen]
        self.num_added = part.stop


def _reserve(file: int, num_bytes: int) -> None:
    """Take a file's room on the disk now: without it, a write to memory kills the process later."""
    if num_bytes and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, num_bytes)
    else:
        os.truncate(file, num_bytes)


class StateBatches:
    """Batches of captions' states, padded to the longest with what weighs nothing and nobody sees.

    Args:
        states: All of them.
        padding: The class of padding.
        bos: The class of BOS, a constant that weighs nothing.
        batch_size: Captions in a batch; what an epoch has beyond whole batches is left out.
        seed: Decides the order, together with the epoch.
    """

    def __init__(self, states: TokenStates, *, padding: int, bos: int, batch_size: int, seed: int):
        self.states, self.padding, self.bos = states, padding, bos
        self.batch_size, self.seed = batch_size, seed

    def __len__(self) -> int:
        return len(self.states) // self.batch_size

    def epoch(self, epoch: int, start: int) -> Iterator[dict[str, Tensor]]:
        """Give `student` (B, L, D), `teacher` (B, L, W), `classes`, `positions` and `weights` (B, L)."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.states))[: len(self) * self.batch_size]
        size = self.batch_size * BATCHES_IN_POOL
        lengths = self.states.starts.diff().numpy()
        pools = (order[begin : begin + size] for begin in range(0, len(order), size))
        by_length = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
        batches = np.concatenate(by_length).reshape(len(self), self.batch_size)
        for rows in batches[random.permutation(len(self))[start:]]:
            yield self._batch(torch.from_numpy(rows))

    def _batch(self, rows: Tensor) -> dict[str, Tensor]:
        kept, (student_size, _) = self.states, self.states.sizes
        starts, counts = kept.starts[rows], kept.starts[rows + 1] - kept.starts[rows]
        place = torch.arange(int(counts.max()))  # (L,)
        is_there = place < counts[:, None]  # (B, L)
        index = starts[:, None] + place.minimum(counts[:, None] - 1)
        states = kept.states[index].float()
        classes = torch.where(is_there, kept.classes[index].long(), self.padding)
        return {
            "student": states[..., :student_size],
            "teacher": states[..., student_size:],
            "classes": classes,
            "positions": kept.positions[index].long(),
            "weights": (is_there & (classes != self.bos)).float(),
        }
