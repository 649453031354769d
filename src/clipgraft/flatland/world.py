"""The world of flatland: places, times, subjects; held-out combinations; random scenes.

A scene is drawn from (seed, index), the same on every machine and Python.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

PLACES = ("beach", "garden", "park", "street", "snow", "lake", "mountain", "field")
TIMES = ("day", "sunset", "night")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "blue": (45, 98, 214),
    "green": (39, 150, 75),
    "yellow": (247, 201, 40),
    "orange": (240, 130, 40),
    "pink": (240, 120, 170),
    "brown": (134, 84, 48),
    "black": (38, 38, 46),
    "white": (245, 245, 240),
    "gray": (140, 144, 152),
}
_FUR = ("brown", "black", "white", "gray", "orange")
_PAINT = ("red", "blue", "green", "yellow", "orange", "pink", "black", "white")


class Subject(NamedTuple):
    """A kind of thing in an image."""

    colours: tuple[str, ...]
    actions: tuple[str, ...]
    places: tuple[str, ...]
    """Where it may be: boats float."""
    height: float
    """Relative to the image, at scale 1."""


_LAND = ("beach", "garden", "park", "street", "snow", "mountain", "field")
SUBJECTS: dict[str, Subject] = {
    "dog": Subject(_FUR, ("running", "sitting", "jumping"), _LAND, 0.42),
    "cat": Subject(_FUR, ("walking", "sitting"), _LAND, 0.36),
    "horse": Subject(("brown", "black", "white", "gray"), ("running", "standing"), _LAND, 0.56),
    "bird": Subject(("red", "blue", "yellow", "black", "white"), ("flying", "standing"), PLACES, 0.30),
    "man": Subject(_PAINT, ("walking", "running", "jumping"), _LAND, 0.60),
    "woman": Subject(_PAINT, ("walking", "running", "sitting"), _LAND, 0.58),
    "child": Subject(_PAINT, ("walking", "running", "jumping"), _LAND, 0.44),
    "car": Subject(_PAINT, ("driving", "parked"), ("street", "mountain", "field", "snow", "beach"), 0.34),
    "bicycle": Subject(_PAINT, ("standing", "lying"), ("street", "park", "garden", "field", "beach"), 0.38),
    "boat": Subject(_PAINT, ("sailing", "anchored"), ("beach", "lake"), 0.44),
    "ball": Subject(_PAINT, ("lying", "bouncing"), _LAND, 0.26),
    "kite": Subject(_PAINT, ("flying", "falling"), ("beach", "park", "field", "mountain", "snow"), 0.34),
}

COMPANIONS: dict[str, tuple[str, ...]] = {
    "man": ("dog", "ball", "bicycle", "kite"),
    "woman": ("dog", "cat", "bicycle", "kite"),
    "child": ("dog", "cat", "ball", "kite"),
    "dog": ("ball", "cat", "bird"),
}
"""Subjects with a second, smaller one; never the other way round, so the first is always known."""
COMPANION_ACTIONS = {
    "dog": "sitting",
    "cat": "sitting",
    "ball": "lying",
    "bicycle": "standing",
    "kite": "flying",
    "bird": "standing",
}

HELD_OUT_TRIPLES = frozenset(
    {
        ("dog", "beach", "sunset"),
        ("cat", "garden", "day"),
        ("horse", "snow", "night"),
        ("bird", "lake", "sunset"),
        ("man", "field", "sunset"),
        ("woman", "park", "night"),
        ("child", "street", "day"),
        ("car", "mountain", "sunset"),
        ("bicycle", "garden", "night"),
        ("boat", "lake", "night"),
        ("ball", "snow", "day"),
        ("kite", "beach", "day"),
    }
)
"""(subject, place, time) never in train."""

HELD_OUT_PAIRS = frozenset(
    {
        ("dog", "gray"),
        ("cat", "white"),
        ("car", "yellow"),
        ("boat", "green"),
        ("ball", "blue"),
        ("kite", "orange"),
    }
)
"""(subject, colour) never in train."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "place": PLACES,
    "time": TIMES,
    "subject": ("", *SUBJECTS),
    "colour": ("", *COLOURS),
    "action": ("", *sorted({action for kind in SUBJECTS.values() for action in kind.actions})),
}
"""What can be read from an image; "" without a subject."""

EMPTY_SHARE = 0.1
"""Share of scenes without a subject."""
COMPANION_SHARE = 0.25
"""Share of scenes with a second subject, where the first may have one."""
HELD_OUT_SHARE = 0.3
"""Share of scenes outside train that show a held-out combination."""

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """Everything that decides an image."""

    place: str
    time: str
    subject: str
    """Empty where the scene has none."""
    colour: str
    action: str
    look: str
    """Seed of the rest: position, size, direction, background detail."""
    companion: str = ""
    """A second, smaller subject beside the first, or empty."""
    companion_colour: str = ""

    @property
    def is_held_out(self) -> bool:
        """Whether the train split never shows this combination."""
        shown = ((self.subject, self.colour), (self.companion, self.companion_colour))
        return any(
            (subject, self.place, self.time) in HELD_OUT_TRIPLES or (subject, colour) in HELD_OUT_PAIRS
            for subject, colour in shown
        )

    @property
    def labels(self) -> tuple[int, ...]:
        """Index of each attribute's value, in the order of ATTRIBUTES."""
        return tuple(values.index(getattr(self, name)) for name, values in ATTRIBUTES.items())


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Choose one item."""
    # `random()` is the only method whose values Python promises to keep.
    return items[int(rng.random() * len(items))]


def sample_scene(seed: int, index: int, split: str) -> Scene:
    """Draw the scene of one image.

    Args:
        seed: Of the whole set.
        index: The image's number.
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
