"""How many pictures a job has and about how long they take, said before they are drawn."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from rich.console import Console

from clipgraft.generation.generator import ImageGenerator
from clipgraft.generation.params import Job, batches


def announce(generator: ImageGenerator, columns: Sequence[Sequence[Job]], batch_size: int) -> None:
    """Print on standard error the number of pictures and steps, and the time that a trial makes of them.

    Args:
        generator: Draws the trial: one batch with one step, and one with two.
        columns: What each text encoder has still to draw.
        batch_size: Pictures drawn at once.
    """
    num_pictures = sum(map(len, columns))
    num_steps = sum(job.num_steps for jobs in columns for job in jobs)
    line = f"{num_pictures} picture{'s' * (num_pictures != 1)}, {num_steps} step{'s' * (num_steps != 1)}"
    if num_pictures:
        line += f", about {_describe(estimate_seconds(generator, columns, batch_size))}"
    Console(stderr=True).print(line, highlight=False)


def estimate_seconds(generator: ImageGenerator, columns: Sequence[Sequence[Job]], batch_size: int) -> float:
    """Seconds that jobs will take, by a trial for each size of picture and batch among them.

    Args:
        generator: Draws the trials.
        columns: What each text encoder has to draw.
        batch_size: Pictures drawn at once.
    """
    kinds: Counter[tuple] = Counter()
    steps: Counter[tuple] = Counter()
    examples: dict[tuple, list[Job]] = {}
    for batch in chain.from_iterable(batches(jobs, batch_size) for jobs in columns):
        kind = (batch[0].height, batch[0].width, batch[0].is_guided, len(batch))
        kinds[kind] += 1
        steps[kind] += batch[0].num_steps
        examples.setdefault(kind, batch)
    seconds = 0.0
    for kind, batch in examples.items():
        _trial(generator, batch, 1)  # the first one also pays for what is prepared once
        one, two = _trial(generator, batch, 1), _trial(generator, batch, 2)
        step = max(0.0, two - one)
        seconds += steps[kind] * step + kinds[kind] * max(0.0, one - step)
    return seconds


def _trial(generator: ImageGenerator, batch: Sequence[Job], num_steps: int) -> float:
    trial = [replace(job, num_inference_steps=num_steps, init_image=None) for job in batch]
    begun = time.perf_counter()
    list(generator.draw(trial, batch_size=len(trial)))
    return time.perf_counter() - begun


def _describe(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
