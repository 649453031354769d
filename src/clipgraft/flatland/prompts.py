"""Fixed prompts with known attributes, to measure prompt fidelity."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from clipgraft.flatland.captions import plain_caption
from clipgraft.flatland.scenes import sample_scene
from clipgraft.flatland.world import Scene

NUM_PROMPTS = 240
PROMPT_SEED = 240_240
"""Seed of the prompts' scenes; no data set has it."""


class Prompt(NamedTuple):
    """A prompt and the scene that it describes."""

    text: str
    scene: Scene


@cache
def fidelity_prompts() -> tuple[Prompt, ...]:
    """Return 240 prompts, alternating held-out combinations with seen ones.

    Each is the plain caption of a scene with at most one subject: it names every attribute of the scene.
    """
    held_out, seen = sample_prompts(is_held_out=True), sample_prompts(is_held_out=False)
    return tuple(prompt for _ in range(NUM_PROMPTS // 2) for prompt in (next(held_out), next(seen)))


def sample_prompts(*, is_held_out: bool) -> Iterator[Prompt]:
    """Yield different prompts, all of held-out combinations or none."""
    texts = set()
    for index in range(100 * NUM_PROMPTS):
        scene = replace(sample_scene(PROMPT_SEED, index, "test"), companion="", companion_colour="")
        text = plain_caption(scene)
        if scene.is_held_out == is_held_out and text not in texts:
            texts.add(text)
            yield Prompt(text, scene)
