"""Fixed prompts whose every attribute is known: did a generated picture follow its prompt?"""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from clipgraft.flatland.captions import kept_word_caption, plain_caption
from clipgraft.flatland.scenes import Scene, sample_scene

NUM_PROMPTS = 240
NUM_KEPT_WORD_PROMPTS = 120
FEWEST_KEPT_WORDS = 2
PROMPT_SEED = 240_240
"""Of the prompts' scenes; no data set that is drawn elsewhere has it."""


class Prompt(NamedTuple):
    """A prompt and the scene that it describes."""

    text: str
    scene: Scene


@cache
def fidelity_prompts() -> tuple[Prompt, ...]:
    """Return the 240 fixed prompts, in turn one of a held-out combination and one that train may show.

    Each is the plain caption of a scene with at most one subject: every attribute that it has is named.
    """
    held_out, seen = _prompts(is_held_out=True), _prompts(is_held_out=False)
    return tuple(prompt for _ in range(NUM_PROMPTS // 2) for prompt in (next(held_out), next(seen)))


class WordPrompt(NamedTuple):
    """The same scene in words that the base's own text encoder never read, and in plain ones."""

    kept: str
    plain: str
    scene: Scene
    named: tuple[str, ...]
    """Attributes that the first says in such words: what the two are compared by."""


@cache
def kept_word_prompts() -> tuple[WordPrompt, ...]:
    """Return 120 fixed prompts, each with two or more words kept from the teacher.

    Their combinations are ones that train may show, so that nothing but the words is new.
    """
    prompts: dict[str, WordPrompt] = {}
    for plain, scene in _prompts(is_held_out=False):
        if not scene.subject:
            continue
        kept, named = kept_word_caption(scene)
        if len(named) >= FEWEST_KEPT_WORDS:
            prompts.setdefault(kept, WordPrompt(kept, plain, scene, named))
        if len(prompts) == NUM_KEPT_WORD_PROMPTS:
            break
    return tuple(prompts.values())


def _prompts(*, is_held_out: bool) -> Iterator[Prompt]:
    texts = set()
    for index in range(100 * NUM_PROMPTS):
        scene = replace(sample_scene(PROMPT_SEED, index, "test"), companion="", companion_colour="")
        text = plain_caption(scene)
        if scene.is_held_out == is_held_out and text not in texts:
            texts.add(text)
            yield Prompt(text, scene)
