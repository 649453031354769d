"""What there is in flatland: places, times, subjects with their colours and actions, what is held out."""

from typing import NamedTuple

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
    """A kind of thing that can be in a picture."""

    colours: tuple[str, ...]
    actions: tuple[str, ...]
    places: tuple[str, ...]
    """Where it is seen: boats float."""
    height: float
    """Of the picture's, at scale 1."""


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
"""Who may be seen with a second, smaller subject; never the other way round, so the first is always known."""
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
"""What can be read from a picture; "" where there is no subject."""
