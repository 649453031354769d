"""Prompts of flatland in words that the base's own text encoder never read, and the same in plain words."""

from functools import cache
from typing import NamedTuple

from clipgraft.flatland import Scene, plain_caption
from clipgraft.flatland.prompts import sample_prompts
from clipgraft.flatland.verbs import ACTION_WORDS
from clipgraft.flatland.words import (
    COLOUR_WORDS,
    PLACE_WORDS,
    SUBJECT_WORDS,
    TIME_WORDS,
    UNKNOWN_TO_TEACHER,
)

NUM_PROMPTS = 120
FEWEST_UNSEEN_WORDS = 2
WORDS = {
    "place": PLACE_WORDS,
    "time": TIME_WORDS,
    "subject": SUBJECT_WORDS,
    "colour": COLOUR_WORDS,
    "action": ACTION_WORDS,
}
"""Synonyms of each attribute's values."""


class WordPrompt(NamedTuple):
    """One scene in unseen words and in plain ones."""

    unseen: str
    plain: str
    scene: Scene
    named: tuple[str, ...]
    """Attributes named by unseen words, by which the two are compared."""


@cache
def unseen_word_prompts() -> tuple[WordPrompt, ...]:
    """Return 120 prompts with two or more unseen words, whose combinations train may show."""
    prompts: dict[str, WordPrompt] = {}
    for plain, scene, _ in sample_prompts(is_held_out=False):
        if not scene.subject:
            continue
        words = {name: word for name in WORDS if (word := _unseen_word(name, getattr(scene, name)))}
        if len(words) >= FEWEST_UNSEEN_WORDS:
            text = plain_caption(scene, words)
            prompts.setdefault(text, WordPrompt(text, plain, scene, tuple(words)))
        if len(prompts) == NUM_PROMPTS:
            break
    return tuple(prompts.values())


def _unseen_word(attribute: str, value: str) -> str | None:
    """Return the first synonym of an attribute's value that has an unseen word."""
    ways = WORDS[attribute].get(value, ())
    return next((way for way in ways if not UNKNOWN_TO_TEACHER.isdisjoint(way.split())), None)
