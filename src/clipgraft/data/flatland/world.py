"""What there is in flatland: places, times, subjects with colours and actions, and the words for them."""

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

# The first word of each is the plain one, the only one that plain captions use.
SUBJECT_WORDS: dict[str, tuple[str, ...]] = {
    "dog": ("dog", "puppy", "pup", "hound"),
    "cat": ("cat", "kitten", "kitty"),
    "horse": ("horse", "pony", "stallion"),
    "bird": ("bird", "songbird"),
    "man": ("man", "guy", "fellow"),
    "woman": ("woman", "lady"),
    "child": ("child", "kid", "little one"),
    "car": ("car", "automobile"),
    "bicycle": ("bicycle", "bike"),
    "boat": ("boat", "sailboat"),
    "ball": ("ball", "beach ball"),
    "kite": ("kite", "paper kite"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "beach": ("on the beach", "by the sea", "at the seaside", "on the sand", "along the shore"),
    "garden": ("in the garden", "among the flowers", "between flower beds"),
    "park": ("in the park", "under the trees", "on the green lawn"),
    "street": ("on the street", "in the city", "in front of tall buildings", "on the road"),
    "snow": ("in the snow", "on a snowy hill", "in a white winter landscape"),
    "lake": ("on the lake", "by the water", "near the calm lake"),
    "mountain": ("in the mountains", "below the peaks", "on a mountain meadow"),
    "field": ("in the field", "in a wheat field", "on the golden farmland"),
}
TIME_WORDS: dict[str, tuple[str, ...]] = {
    "day": ("during the day", "under a blue sky", "on a sunny day", "in daylight"),
    "sunset": ("at sunset", "at dusk", "in the evening light", "while the sun goes down"),
    "night": ("at night", "under the stars", "in the moonlight", "after dark"),
}
ACTION_WORDS: dict[str, tuple[str, ...]] = {
    "running": ("running", "racing", "dashing"),
    "sitting": ("sitting", "resting"),
    "jumping": ("jumping", "leaping"),
    "walking": ("walking", "strolling"),
    "standing": ("standing", "waiting"),
    "flying": ("flying", "soaring"),
    "driving": ("driving", "speeding"),
    "parked": ("parked", "stopped"),
    "lying": ("lying", "resting"),
    "sailing": ("sailing", "gliding"),
    "anchored": ("anchored", "floating"),
    "bouncing": ("bouncing", "hopping"),
    "falling": ("falling", "tumbling"),
}
COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "blue": ("blue",),
    "green": ("green",),
    "yellow": ("yellow",),
    "orange": ("orange", "ginger"),
    "pink": ("pink", "rosy"),
    "brown": ("brown", "chestnut"),
    "black": ("black", "dark"),
    "white": ("white", "pale"),
    "gray": ("gray", "silver"),
}
