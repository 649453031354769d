"""Dogs, cats, horses and birds."""

from typing import NamedTuple

from clipgraft.flatland.canvas import INK, WHITE, Colour, Point, mix, shaded
from clipgraft.flatland.figure import Figure
from clipgraft.flatland.water import waterline


class Attitude(NamedTuple):
    """Where the parts of a four-legged animal are.

    The far leg of each pair comes first.
    """

    rump: Point
    chest: Point
    head: Point
    hind_legs: tuple[tuple[Point, ...], tuple[Point, ...]]
    fore_legs: tuple[tuple[Point, ...], tuple[Point, ...]]
    tail: tuple[Point, ...]
    turn: float = 0.0
    """Of the whole animal, clockwise in degrees."""


_LEAP = Attitude(
    (-0.34, -0.5),
    (0.22, -0.52),
    (0.52, -0.82),
    (((-0.4, -0.48), (-0.5, -0.24), (-0.7, -0.16)), ((-0.38, -0.44), (-0.62, -0.3), (-0.86, -0.26))),
    (((0.28, -0.46), (0.48, -0.3), (0.7, -0.34)), ((0.26, -0.42), (0.52, -0.22), (0.78, -0.18))),
    ((-0.46, -0.56), (-0.66, -0.66), (-0.82, -0.64)),
)
ATTITUDES: dict[str, Attitude] = {
    "standing": Attitude(
        (-0.3, -0.48),
        (0.2, -0.5),
        (0.44, -0.82),
        (((-0.26, -0.4), (-0.22, -0.06)), ((-0.38, -0.4), (-0.4, -0.06))),
        (((0.26, -0.4), (0.3, -0.06)), ((0.14, -0.4), (0.12, -0.06))),
        ((-0.42, -0.56), (-0.54, -0.7), (-0.56, -0.86)),
    ),
    "walking": Attitude(
        (-0.3, -0.48),
        (0.2, -0.5),
        (0.44, -0.82),
        (((-0.28, -0.42), (-0.22, -0.22), (-0.08, -0.06)), ((-0.36, -0.42), (-0.42, -0.24), (-0.54, -0.06))),
        (((0.22, -0.42), (0.16, -0.22), (0.06, -0.06)), ((0.24, -0.42), (0.36, -0.24), (0.44, -0.06))),
        ((-0.42, -0.56), (-0.56, -0.68), (-0.58, -0.86)),
    ),
    "running": _LEAP,
    "jumping": _LEAP._replace(turn=-24.0),
    "sitting": Attitude(
        (-0.2, -0.24),
        (0.12, -0.54),
        (0.26, -0.84),
        (((-0.2, -0.16), (0.02, -0.06)), ((-0.26, -0.16), (-0.02, -0.05))),
        (((0.2, -0.46), (0.26, -0.06)), ((0.1, -0.44), (0.14, -0.05))),
        ((-0.34, -0.1), (-0.52, -0.12), (-0.62, -0.28)),
    ),
    "lying": Attitude(
        (-0.34, -0.19),
        (0.16, -0.22),
        (0.38, -0.5),
        (((-0.3, -0.1), (-0.08, -0.05)), ((-0.36, -0.1), (-0.14, -0.04))),
        (((0.22, -0.12), (0.52, -0.06)), ((0.12, -0.1), (0.44, -0.04))),
        ((-0.46, -0.14), (-0.64, -0.1), (-0.78, -0.18)),
    ),
    "bowing": Attitude(
        (-0.32, -0.52),
        (0.18, -0.26),
        (0.44, -0.46),
        (((-0.3, -0.46), (-0.24, -0.06)), ((-0.4, -0.44), (-0.44, -0.06))),
        (((0.24, -0.18), (0.54, -0.06)), ((0.14, -0.14), (0.46, -0.04))),
        ((-0.42, -0.62), (-0.52, -0.8), (-0.46, -0.96)),
    ),
}


class Coat(NamedTuple):
    """The colours of an animal."""

    fur: Colour
    dark: Colour

    @classmethod
    def of(cls, colour: Colour) -> "Coat":
        """Choose the darker colour of an animal's far parts."""
        return cls(colour, shaded(colour, 0.3))


def dog(colour: Colour, action: str) -> Figure:
    """Draw a dog: a snout, hanging ears."""
    coat = Coat.of(colour)
    if action == "swimming":
        return _swimming_dog(coat)
    attitude = ATTITUDES[action]
    figure = _four_legged(coat, attitude, body=0.3, leg=0.115, tail=0.09)
    _dog_head(figure, coat, attitude.head)
    return figure.moved(turn=attitude.turn)


def _swimming_dog(coat: Coat) -> Figure:
    """Draw what is above the water, whose surface is the ground."""
    figure = Figure()
    figure.stroke([(-0.5, -0.02), (-0.62, -0.2)], 0.09, coat.fur)
    figure.area([(-0.52, 0.04), (-0.42, -0.12), (-0.1, -0.15), (0.2, -0.13), (0.3, 0.04)], coat.fur)
    figure.stroke([(0.16, -0.06), (0.34, -0.22)], 0.24, coat.fur)
    _dog_head(figure, coat, (0.36, -0.3))
    return figure + waterline(-0.7, 0.62)


def _dog_head(figure: Figure, coat: Coat, head: Point) -> None:
    x, y = head
    pale = mix(coat.fur, WHITE, 0.45)
    figure.blob(x, y, 0.19, 0.175, coat.fur)
    figure.blob(x + 0.2, y + 0.06, 0.14, 0.1, pale)
    figure.blob(x + 0.31, y + 0.02, 0.055, 0.045, INK)
    figure.blob(x - 0.1, y + 0.06, 0.085, 0.19, coat.dark, turn=14)
    figure.blob(x + 0.07, y - 0.05, 0.045, 0.05, WHITE, detail=True)
    figure.blob(x + 0.08, y - 0.045, 0.032, 0.04, INK, detail=True)
    figure.stroke([(x + 0.17, y + 0.13), (x + 0.28, y + 0.11)], 0.025, INK, detail=True)


def dog_mouth(action: str) -> Point:
    """Return where a dog holds things."""
    x, y = ATTITUDES[action].head
    return x + 0.24, y + 0.13


def cat(colour: Colour, action: str) -> Figure:
    """Draw a cat: pointed ears, green eyes, whiskers, a long tail."""
    coat = Coat.of(colour)
    attitude = ATTITUDES[action]
    start, middle, (x, y) = attitude.tail
    attitude = attitude._replace(tail=(start, middle, (x, y - 0.06), (x + 0.1, y - 0.18)))
    figure = _four_legged(coat, attitude, body=0.26, leg=0.095, tail=0.08)
    x, y = attitude.head
    _cat_head(figure, coat, (x - 0.02, y))
    return figure.moved(turn=attitude.turn)


def _cat_head(figure: Figure, coat: Coat, head: Point) -> None:
    x, y = head
    figure.layer()
    for side in (-1, 1):
        figure.area(
            [(x + side * 0.2, y + 0.0), (x + side * 0.19, y - 0.3), (x + side * 0.03, y - 0.14)], coat.fur
        )
        figure.area(
            [(x + side * 0.165, y - 0.09), (x + side * 0.162, y - 0.22), (x + side * 0.08, y - 0.13)],
            (240, 150, 160),
            detail=True,
        )
    figure.blob(x, y, 0.215, 0.18, coat.fur)
    figure.blob(x, y + 0.075, 0.1, 0.075, mix(coat.fur, WHITE, 0.55), detail=True)
    for side in (-1, 1):
        figure.blob(x + side * 0.09, y - 0.02, 0.05, 0.058, (150, 220, 90), detail=True)
        figure.blob(x + side * 0.09, y - 0.02, 0.022, 0.05, INK, detail=True)
        figure.stroke(
            [(x + side * 0.1, y + 0.07), (x + side * 0.27, y + 0.05)],
            0.018,
            mix(coat.dark, WHITE, 0.5),
            detail=True,
        )
    figure.blob(x, y + 0.05, 0.035, 0.026, (230, 110, 130), detail=True)


def _four_legged(coat: Coat, attitude: Attitude, *, body: float, leg: float, tail: float) -> Figure:
    """Draw tail, legs, body and neck."""
    figure = Figure()
    for far in (attitude.hind_legs[0], attitude.fore_legs[0]):
        _leg(figure, far, leg, coat.dark)
    figure.stroke(attitude.tail, tail, coat.fur)
    (rx, ry), (cx, cy), (hx, hy) = attitude.rump, attitude.chest, attitude.head
    figure.stroke([attitude.rump, attitude.chest], body, coat.fur)
    if attitude.hind_legs[1][0][1] > -0.2:  # the thigh of a sitting or lying animal
        figure.blob(rx - 0.02, min(ry + 0.02, -0.19), 0.2, 0.19, coat.fur)
    figure.stroke([(cx + 0.04, cy - 0.02), (hx - 0.04, hy + 0.04)], body * 0.72, coat.fur)
    for near in (attitude.hind_legs[1], attitude.fore_legs[1]):
        _leg(figure, near, leg, coat.fur)
    return figure


def _leg(figure: Figure, points: tuple[Point, ...], width: float, colour: Colour) -> None:
    x, y = points[-1]
    figure.stroke(points, width, colour)
    figure.stroke([(x, y), (x + width * 0.45, y + 0.01)], width * 0.9, colour)


_HOOF: Colour = (60, 48, 44)


def horse(colour: Colour, action: str) -> Figure:
    """Draw a horse: a mane, a long head, hooves."""
    figure, coat, mane = Figure(), Coat.of(colour), shaded(colour, 0.6 if sum(colour) > 200 else 0.3)
    is_running = action == "running"
    far, near = (_GALLOP if is_running else _STAND)[::2], (_GALLOP if is_running else _STAND)[1::2]
    for points in far:
        _horse_leg(figure, points, coat.dark)
    tail = (
        ((-0.42, -0.6), (-0.6, -0.58), (-0.76, -0.42))
        if is_running
        else ((-0.42, -0.6), (-0.54, -0.46), (-0.52, -0.2))
    )
    figure.stroke(tail, 0.11, mane)
    figure.stroke([(-0.28, -0.54), (0.2, -0.54)], 0.28, coat.fur)
    for points in near:
        _horse_leg(figure, points, coat.fur)
    tilt = 0.1 if is_running else 0.0
    figure.area(
        [(0.04, -0.64), (0.34, -0.44), (0.5 + tilt, -0.78 + tilt), (0.36 + tilt, -0.93 + tilt)], coat.fur
    )
    x, y = 0.42 + tilt, -0.85 + tilt
    figure.area([(x - 0.08, y - 0.02), (x - 0.06, y - 0.18), (x + 0.04, y - 0.06)], coat.fur)
    figure.stroke([(x, y), (x + 0.2, y + 0.16)], 0.17, coat.fur)
    figure.blob(x + 0.22, y + 0.18, 0.1, 0.085, mix(coat.fur, WHITE if sum(colour) < 600 else INK, 0.25))
    figure.stroke([(x - 0.02, y - 0.08), (x - 0.14, y + 0.06), (x - 0.28, y + 0.22)], 0.1, mane)
    figure.blob(x + 0.05, y + 0.0, 0.03, 0.036, INK if sum(colour) > 200 else WHITE, detail=True)
    figure.blob(x + 0.27, y + 0.16, 0.022, 0.022, INK, detail=True)
    return figure


def _horse_leg(figure: Figure, points: tuple[Point, ...], colour: Colour) -> None:
    x, y = points[-1]
    figure.stroke(points, 0.1, colour)
    figure.stroke([(x, y), (x + 0.02, y)], 0.11, _HOOF)


_STAND: tuple[tuple[Point, ...], ...] = (
    ((-0.28, -0.44), (-0.24, -0.26), (-0.26, -0.06)),
    ((-0.36, -0.44), (-0.4, -0.26), (-0.38, -0.06)),
    ((0.26, -0.44), (0.28, -0.06)),
    ((0.16, -0.44), (0.15, -0.06)),
)
_GALLOP: tuple[tuple[Point, ...], ...] = (
    ((-0.34, -0.46), (-0.48, -0.3), (-0.5, -0.08)),
    ((-0.36, -0.44), (-0.56, -0.34), (-0.72, -0.16)),
    ((0.26, -0.46), (0.5, -0.42), (0.56, -0.24)),
    ((0.24, -0.44), (0.48, -0.26), (0.7, -0.12)),
)


def bird(colour: Colour, action: str) -> Figure:
    """Draw a bird: a beak, a wing, a fan of a tail."""
    figure = Figure()
    dark, beak = shaded(colour, 0.32), (246, 160, 40)
    if action == "flying":
        figure.area([(0.14, -0.5), (-0.06, -0.52), (0.12, -1.04), (0.34, -1.16), (0.4, -0.94)], dark)
    elif action == "standing":
        for x in (-0.06, 0.12):
            figure.stroke([(x, -0.26), (x, -0.03), (x + 0.1, -0.03)], 0.05, beak)
    figure.area([(-0.24, -0.56), (-0.76, -0.7), (-0.8, -0.56), (-0.74, -0.42), (-0.24, -0.38)], dark)
    figure.blob(0, -0.5, 0.42, 0.28, colour)
    figure.blob(0.34, -0.76, 0.23, 0.22, colour)
    figure.area([(0.5, -0.86), (0.82, -0.73), (0.5, -0.64)], beak)
    figure.blob(0.14, -0.4, 0.24, 0.15, mix(colour, WHITE, 0.45), detail=True)
    figure.blob(0.42, -0.8, 0.065, 0.07, WHITE, detail=True)
    figure.blob(0.435, -0.8, 0.045, 0.05, INK, detail=True)
    if action == "flying":
        figure.layer()
        figure.area(
            [(0.18, -0.48), (-0.22, -0.46), (-0.44, -1.0), (-0.38, -1.26), (-0.18, -1.24), (0.04, -0.9)], dark
        )
    else:
        figure.blob(-0.14, -0.52, 0.28, 0.16, dark, turn=-8)
    if action == "floating":
        return figure.moved(0, 0.25) + waterline(-0.6, 0.54)
    return figure
