"""Which scene a picture shows: drawn from (seed, index), the same on every machine and Python."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from clipgraft.data.flatland.world import HELD_OUT_PAIRS, HELD_OUT_TRIPLES, PLACES, SUBJECTS, TIMES

EMPTY_SHARE = 0.1
"""Of the scenes without a subject."""
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

    @property
    def is_held_out(self) -> bool:
        """Whether train never shows this subject at this place and time, or in this colour."""
        triple, pair = (self.subject, self.place, self.time), (self.subject, self.colour)
        return triple in HELD_OUT_TRIPLES or pair in HELD_OUT_PAIRS


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
        subject = pick(rng, list(SUBJECTS))
        kind = SUBJECTS[subject]
        scene = Scene(
            pick(rng, kind.places),
            pick(rng, TIMES),
            subject,
            pick(rng, kind.colours),
            pick(rng, kind.actions),
            look,
        )
        if scene.is_held_out == wants_held_out:
            return scene
