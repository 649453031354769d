"""The world of flatland: its things, actions, places and held-out combinations."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

TIMES = ("day", "sunset", "night")
WEATHERS = ("", "cloudy", "rainy", "foggy")
"""Clear first."""
NUMBERS = ("", "two", "three")
"""One first."""
SIZES = ("", "little", "big")
SIDES = ("", "left", "right")

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

_LAND = ("beach", "garden", "park", "street", "snow", "mountain", "field", "forest")
_ROADS = ("street", "mountain", "field", "beach", "snow")
_PATHS = ("street", "park", "garden", "field", "beach", "forest")
_OPEN = ("beach", "park", "field", "mountain", "snow")
PLACES = ("beach", "garden", "park", "street", "snow", "lake", "mountain", "field", "forest", "pool")


class Subject(NamedTuple):
    """A kind of thing in an image."""

    colours: tuple[str, ...]
    actions: tuple[str, ...]
    """On land, alone or beside another."""
    places: tuple[str, ...]
    """On land; for lake and pool see AFLOAT."""
    height: float
    """Relative to the image, at scale 1."""
    sizes: tuple[str, ...] = ("little", "big")
    """Besides the ordinary one."""


_GAITS = ("walking", "running", "jumping", "sitting", "standing")
SUBJECTS: dict[str, Subject] = {
    "man": Subject(_PAINT, _GAITS, _LAND, 0.60, ()),
    "woman": Subject(_PAINT, _GAITS, _LAND, 0.58, ()),
    "boy": Subject(_PAINT, _GAITS, _LAND, 0.48, ("little",)),
    "girl": Subject(_PAINT, _GAITS, _LAND, 0.48, ("little",)),
    "horse": Subject(("brown", "black", "white", "gray"), ("running", "standing"), _LAND, 0.56),
    "dog": Subject(_FUR, ("running", "sitting", "jumping", "lying"), _LAND, 0.42),
    "cat": Subject(_FUR, ("walking", "sitting", "lying"), _LAND, 0.36),
    "bird": Subject(("red", "blue", "yellow", "black", "white"), ("flying", "standing"), _LAND, 0.30),
    "bus": Subject(_PAINT, ("driving", "parked"), _ROADS, 0.38),
    "car": Subject(_PAINT, ("driving", "parked"), _ROADS, 0.34),
    "motorcycle": Subject(_PAINT, ("driving", "parked"), (*_ROADS, "forest"), 0.36),
    "boat": Subject(_PAINT, ("sailing", "anchored"), ("beach",), 0.44),
    "bicycle": Subject(_PAINT, ("standing", "lying"), _PATHS, 0.38),
    "kite": Subject(_PAINT, ("flying", "falling"), _OPEN, 0.34),
    "ball": Subject(_PAINT, ("lying", "bouncing"), _LAND, 0.26),
}
THINGS: dict[str, Subject] = {
    "frisbee": Subject(_PAINT, (), ("beach", "park", "garden", "field", "snow"), 0.10),
    "stick": Subject(("brown",), (), ("beach", "park", "garden", "field", "snow", "forest"), 0.08),
    "skateboard": Subject(_PAINT, (), ("street", "park"), 0.10),
    "surfboard": Subject(_PAINT, (), ("beach",), 0.44),
    "umbrella": Subject(_PAINT, (), _LAND, 0.30),
}
"""Companions alone, and only in a relation."""
PEOPLE = ("man", "woman", "boy", "girl")

AFLOAT: dict[str, dict[str, tuple[str, ...]]] = {
    "lake": dict.fromkeys(PEOPLE, ("swimming",))
    | {"dog": ("swimming",), "bird": ("flying", "standing"), "boat": ("sailing", "anchored")},
    "pool": dict.fromkeys(PEOPLE, ("swimming", "jumping", "sitting", "standing"))
    | {"dog": ("swimming",), "ball": ("lying",)},
}
"""Place -> subject -> what it may do there; nothing else may be there."""

RELATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "riding": dict.fromkeys(PEOPLE, ("bicycle", "horse", "motorcycle", "skateboard", "surfboard")),
    "playing": dict.fromkeys(PEOPLE, ("ball", "frisbee")) | {"dog": ("ball", "frisbee", "stick")},
    "holding": dict.fromkeys(PEOPLE, ("umbrella", "kite", "ball", "surfboard")),
    "chasing": {"dog": ("cat", "bird", "ball"), "cat": ("bird",)},
}
"""Action -> subject -> its companions; with any other action a companion is beside the subject."""
_BESIDE_PEOPLE = (
    *("dog", "dog", "dog", "horse", "cat", "bird"),  # a dog oftener: captions have it the most
    *("bus", "car", "motorcycle", "boat", "bicycle", "ball"),
)
BESIDE: dict[str, tuple[str, ...]] = {
    "man": ("woman", "boy", "girl", *_BESIDE_PEOPLE),
    "woman": ("boy", "girl", *_BESIDE_PEOPLE),
    "boy": ("girl", *_BESIDE_PEOPLE),
    "girl": _BESIDE_PEOPLE,
    "horse": ("dog", "cat", "bird"),
    "dog": ("cat", "bird", "car", "bicycle", "ball"),
    "cat": ("bird", "ball"),
}
"""Subject -> what may be beside it; of two subjects the earlier one in SUBJECTS comes first."""
COMPANION_ACTIONS = {
    "horse": "standing",
    "dog": "sitting",
    "cat": "sitting",
    "bird": "standing",
    "bus": "parked",
    "car": "parked",
    "motorcycle": "parked",
    "boat": "anchored",
    "bicycle": "standing",
    "ball": "lying",
}
"""Beside a subject on land; of two people both do the same."""

HELD_OUT_TRIPLES = frozenset(
    {
        ("dog", "beach", "sunset"),
        ("cat", "garden", "day"),
        ("horse", "snow", "night"),
        ("bird", "lake", "sunset"),
        ("man", "field", "sunset"),
        ("woman", "park", "night"),
        ("boy", "street", "day"),
        ("girl", "forest", "sunset"),
        ("bus", "street", "sunset"),
        ("car", "mountain", "sunset"),
        ("motorcycle", "field", "night"),
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
        ("bus", "pink"),
        ("boat", "green"),
        ("ball", "blue"),
        ("kite", "orange"),
    }
)
"""(subject, colour) never in train."""
HELD_OUT_NUMBERS = frozenset(
    {("two", "horse"), ("two", "bus"), ("two", "girl"), ("three", "cat"), ("three", "boat"), ("three", "man")}
)
"""(number, subject) never in train."""
HELD_OUT_RELATIONS = frozenset(
    {
        ("girl", "riding", "horse"),
        ("woman", "riding", "motorcycle"),
        ("boy", "playing", "frisbee"),
        ("man", "holding", "umbrella"),
        ("dog", "chasing", "cat"),
        ("horse", "", "dog"),
        ("woman", "", "cat"),
        ("boy", "", "bicycle"),
    }
)
"""(subject, action, companion) never in train; the action "" means beside."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "place": PLACES,
    "time": TIMES,
    "weather": WEATHERS,
    "subject": ("", *SUBJECTS),
    "colour": ("", *COLOURS),
    "number": NUMBERS,
    "action": ("", *sorted({"swimming", *RELATIONS}.union(*(kind.actions for kind in SUBJECTS.values())))),
    "size": SIZES,
    "side": SIDES,
    "companion": ("", *SUBJECTS, *THINGS),
    "companion_colour": ("", *COLOURS),
}
"""What can be read from an image; a caption does not name what is ""."""

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """Everything that decides an image."""

    place: str
    time: str
    subject: str
    """Empty where the scene has none."""
    colour: str
    """Of all of them, where they are two or three."""
    action: str
    """A key of RELATIONS says what the subject does with its companion."""
    look: str
    """Seed of the rest: position, direction, background detail."""
    weather: str = ""
    number: str = ""
    """Of the subject; two or three have no companion."""
    size: str = ""
    side: str = ""
    """Where in the image the subject is; empty in the middle, and for two or three."""
    companion: str = ""
    """A second thing, or empty."""
    companion_colour: str = ""

    @property
    def relation(self) -> str:
        """What the subject does with its companion; empty if just beside it."""
        return self.action if self.action in RELATIONS else ""

    @property
    def companion_action(self) -> str:
        """What a companion beside the subject does; empty in a relation."""
        if not self.companion or self.relation:
            return ""
        if self.companion in PEOPLE:
            return self.action
        if self.place in AFLOAT:
            return AFLOAT[self.place][self.companion][-1]
        return COMPANION_ACTIONS[self.companion]

    @property
    def is_held_out(self) -> bool:
        """Whether the train split never shows this combination."""
        shown = ((self.subject, self.colour), (self.companion, self.companion_colour))
        return (
            (self.number, self.subject) in HELD_OUT_NUMBERS
            or (self.subject, self.relation, self.companion) in HELD_OUT_RELATIONS
            or any(
                (subject, self.place, self.time) in HELD_OUT_TRIPLES or (subject, colour) in HELD_OUT_PAIRS
                for subject, colour in shown
            )
        )

    @property
    def labels(self) -> tuple[int, ...]:
        """Index of each attribute's value, in the order of ATTRIBUTES."""
        return tuple(values.index(getattr(self, name)) for name, values in ATTRIBUTES.items())


def kind_of(subject: str) -> Subject:
    """Return the kind of a subject or thing."""
    return SUBJECTS.get(subject) or THINGS[subject]


def actions_in(place: str, subject: str) -> tuple[str, ...]:
    """Return what a subject may do in a place, without relations."""
    if place in AFLOAT:
        return AFLOAT[place].get(subject, ())
    return SUBJECTS[subject].actions if place in SUBJECTS[subject].places else ()


def places_of(subject: str, action: str = "", companion: str = "") -> tuple[str, ...]:
    """Return the places of a subject, a relation or two subjects."""
    if not action:
        both = [each for each in (subject, companion) if each]
        return tuple(place for place in PLACES if all(actions_in(place, each) for each in both))
    places = SUBJECTS[subject].places
    shared = tuple(place for place in kind_of(companion).places if place in places)
    return (*shared, "lake") if (action, companion) == ("riding", "surfboard") else shared


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Choose one item."""
    # `random()` is the only method whose values Python promises to keep.
    return items[int(rng.random() * len(items))]
