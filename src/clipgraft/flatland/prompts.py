"""Fixed prompts with known attributes, to measure prompt fidelity."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from clipgraft.flatland.captions import plain_caption
from clipgraft.flatland.scenes import sample_scene
from clipgraft.flatland.world import HELD_OUT_NUMBERS, HELD_OUT_RELATIONS, Scene

NUM_PROMPTS = 240
NUM_COMPOSED_PROMPTS = 120
PROMPT_SEED = 240_240
"""Seed of the prompts' scenes; no data set has it."""
KINDS = ("relation", "two", "number", "side", "size", "weather")
"""Of composed prompts: two are beside each other."""
MOST_SCENES = 100 * NUM_PROMPTS


class Prompt(NamedTuple):
    """A prompt and the scene that it describes."""

    text: str
    scene: Scene
    kind: str = ""
    """What a composed prompt has more than a simple one."""


@cache
def fidelity_prompts() -> tuple[Prompt, ...]:
    """Return 240 simple prompts, alternating held-out combinations with seen ones.

    Each is the plain caption of a scene with at most one subject: it names every attribute of the scene.
    """
    held_out, seen = sample_prompts(is_held_out=True), sample_prompts(is_held_out=False)
    return tuple(prompt for _ in range(NUM_PROMPTS // 2) for prompt in (next(held_out), next(seen)))


@cache
def composed_prompts() -> tuple[Prompt, ...]:
    """Return 120 prompts, twenty of each kind in turn.

    Held-out combinations alternate with seen ones by round. Each names one thing more than a simple prompt:
    a relation, a second subject, a number, side, size or the weather. The held-out relations, pairs of
    subjects and numbers are absent from training themselves.
    """
    half = NUM_COMPOSED_PROMPTS // len(KINDS) // 2
    found: dict[tuple[str, bool], dict[str, Prompt]] = {
        (k, is_new): {} for k in KINDS for is_new in (True, False)
    }
    for scene in _scenes(PROMPT_SEED + 1):
        for kind in KINDS:
            own = _only(kind, scene)
            if own and (is_new := _is_new(kind, own)) is not None and len(found[kind, is_new]) < half:
                found[kind, is_new].setdefault(text := plain_caption(own), Prompt(text, own, kind))
        if all(len(prompts) == half for prompts in found.values()):
            break
    columns = [list(prompts.values()) for prompts in found.values()]
    return tuple(own[row] for row in range(half) for first in (0, 1) for own in columns[first::2])


def sample_prompts(*, is_held_out: bool) -> Iterator[Prompt]:
    """Yield different simple prompts, all of held-out combinations or none."""
    texts = set()
    for scene in _scenes(PROMPT_SEED):
        simple = _simple(scene)
        text = plain_caption(simple) if not scene.relation else ""
        if text and simple.is_held_out == is_held_out and text not in texts:
            texts.add(text)
            yield Prompt(text, simple)


def _scenes(seed: int) -> Iterator[Scene]:
    return (sample_scene(seed, index, "test") for index in range(MOST_SCENES))


def _simple(scene: Scene) -> Scene:
    return replace(scene, weather="", number="", size="", side="", companion="", companion_colour="")


def _only(kind: str, scene: Scene) -> Scene | None:
    """Leave a scene what a kind is about; None if missing."""
    if kind in ("relation", "two"):
        is_there = bool(scene.companion) and bool(scene.relation) == (kind == "relation")
        kept = {"companion": scene.companion, "companion_colour": scene.companion_colour}
    else:
        is_there = bool(scene.subject and getattr(scene, kind) and not scene.relation)
        kept = {kind: getattr(scene, kind)}
    return replace(_simple(scene), **kept) if is_there else None


def _is_new(kind: str, scene: Scene) -> bool | None:
    """Whether the kind itself is held out; None if something else is."""
    is_new = scene.is_held_out
    if kind in ("relation", "two"):
        is_new = (scene.subject, scene.relation, scene.companion) in HELD_OUT_RELATIONS
    elif kind == "number":
        is_new = (scene.number, scene.subject) in HELD_OUT_NUMBERS
    return None if scene.is_held_out and not is_new else is_new
