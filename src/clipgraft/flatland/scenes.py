"""Which scene a picture shows: drawn from (seed, index), the same on every machine and Python."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from clipgraft.flatland.world import (
    ATTRIBUTES,
    COMPANIONS,
    HELD_OUT_PAIRS,
    HELD_OUT_TRIPLES,
    PLACES,
    SUBJECTS,
    TIMES,
)

EMPTY_SHARE = 0.1
"""Of the scenes without a subject."""
COMPANION_SHARE = 0.25
"""Of the scenes with a second subject, where the first may have one."""
HELD_OUT_SHARE = 0.3
"""Of the scenes outside train that show a held-out combination."""

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """Everything that decides a picture."""

    place: str
    time: str
    subject: str
    """Empty where the scene has none."""
    colour: str
    action: str
    look: str
    """Seed of what captions do not name: position, size, direction, background detail."""
    companion: str = ""
    """A second subject beside the first, smaller; empty where there is none."""
    companion_colour: str = ""

    @property
    def is_held_out(self) -> bool:
        """Whether train never shows one of its subjects at this place and time, or in its colour."""
        shown = ((self.subject, self.colour), (self.companion, self.companion_colour))
        return any(
            (subject, self.place, self.time) in HELD_OUT_TRIPLES or (subject, colour) in HELD_OUT_PAIRS
            for subject, colour in shown
        )

    @property
    def labels(self) -> tuple[int, ...]:
        """Number of each attribute's value, in the order of ATTRIBUTES."""
        return tuple(values.index(getattr(self, name)) for name, values in ATTRIBUTES.items())


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Choose one; `random()` is the one method whose values Python promises to keep."""
    return items[int(rng.random() * len(items))]


def sample_scene(seed: int, index: int, split: str) -> Scene:
    """Draw the scene of one picture.

    Args:
        seed: Of the whole set.
        index: The picture's number.
        split: "train" never gives a held-out combination; the others do in part.
    """
    look = f"flatland/{seed}/{index}"
    rng = random.Random(look)
    place, time = pick(rng, PLACES), pick(rng, TIMES)
    if rng.random() < EMPTY_SHARE:
        return Scene(place, time, "", "", "", look)
    wants_held_out = split != "train" and rng.random() < HELD_OUT_SHARE
    while True:
        scene = _sample_with_subject(rng, look)
        if scene.is_held_out == wants_held_out:
            return scene


def _sample_with_subject(rng: random.Random, look: str) -> Scene:
    subject = pick(rng, list(SUBJECTS))
    kind = SUBJECTS[subject]
    place, time = pick(rng, kind.places), pick(rng, TIMES)
    scene = Scene(place, time, subject, pick(rng, kind.colours), pick(rng, kind.actions), look)
    if rng.random() >= COMPANION_SHARE:
        return scene
    fitting = [other for other in COMPANIONS.get(subject, ()) if place in SUBJECTS[other].places]
    if not fitting:
        return scene
    companion = pick(rng, fitting)
    return replace(scene, companion=companion, companion_colour=pick(rng, SUBJECTS[companion].colours))
