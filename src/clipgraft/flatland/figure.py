"""Figures: layers of shapes, to move, turn, measure and put together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clipgraft.flatland.canvas import Canvas, Colour, Point

_CIRCLE = tuple(
    (round(math.cos(k * math.pi / 12), 6), round(math.sin(k * math.pi / 12), 6)) for k in range(24)
)


class Box(NamedTuple):
    """What a figure covers; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float


class Motion(NamedTuple):
    """A turn, scale and move of points."""

    a: float
    b: float
    c: float
    d: float
    x: float
    y: float

    def of(self, point: Point) -> Point:
        """Return where a point goes."""
        x, y = point
        return self.a * x + self.b * y + self.x, self.c * x + self.d * y + self.y

    @property
    def scale(self) -> float:
        """By how much lengths grow."""
        return math.sqrt(abs(self.a * self.d - self.b * self.c))


class Area(NamedTuple):
    """A filled polygon."""

    points: tuple[Point, ...]
    colour: Colour
    is_detail: bool

    def moved(self, motion: Motion) -> "Area":
        """Return the polygon elsewhere."""
        return self._replace(points=tuple(motion.of(point) for point in self.points))

    def measured(self) -> Box:
        """Return what it covers."""
        return _around(self.points, 0.0)

    def fill(self, canvas: Canvas, colour: Colour, rim: float) -> None:
        """Draw it, wider by a rim."""
        canvas.polygon(self.points, colour)
        if rim:
            canvas.line((*self.points, self.points[0]), 2 * rim, colour)


class Blob(NamedTuple):
    """A filled ellipse with any direction of its two half axes."""

    x: float
    y: float
    first: Point
    second: Point
    colour: Colour
    is_detail: bool

    def moved(self, motion: Motion) -> "Blob":
        """Return the ellipse elsewhere."""
        turn = motion._replace(x=0.0, y=0.0)
        x, y = motion.of((self.x, self.y))
        return self._replace(x=x, y=y, first=turn.of(self.first), second=turn.of(self.second))

    def measured(self) -> Box:
        """Return what it covers."""
        half_x = math.hypot(self.first[0], self.second[0])
        half_y = math.hypot(self.first[1], self.second[1])
        return Box(self.x - half_x, self.y - half_y, self.x + half_x, self.y + half_y)

    def fill(self, canvas: Canvas, colour: Colour, rim: float) -> None:
        """Draw it, wider by a rim."""
        (ax, ay), (bx, by) = self.first, self.second
        if ay == bx == 0:
            canvas.ellipse(self.x, self.y, abs(ax) + rim, abs(by) + rim, colour)
            return
        first, second = (1 + rim / math.hypot(*axis) for axis in (self.first, self.second))
        ax, ay, bx, by = ax * first, ay * first, bx * second, by * second
        canvas.polygon([(self.x + c * ax + s * bx, self.y + c * ay + s * by) for c, s in _CIRCLE], colour)


class Stroke(NamedTuple):
    """A line with round ends and joints."""

    points: tuple[Point, ...]
    width: float
    colour: Colour
    is_detail: bool

    def moved(self, motion: Motion) -> "Stroke":
        """Return the line elsewhere."""
        return self._replace(
            points=tuple(motion.of(point) for point in self.points), width=self.width * motion.scale
        )

    def measured(self) -> Box:
        """Return what it covers."""
        return _around(self.points, self.width / 2)

    def fill(self, canvas: Canvas, colour: Colour, rim: float) -> None:
        """Draw it, wider by a rim."""
        canvas.line(self.points, self.width + 2 * rim, colour)


Shape = Area | Blob | Stroke


@dataclass
class Figure:
    """Layers of shapes, facing right.

    The ground is at y = 0, up is negative; most figures are about one unit high. A layer is drawn over the
    layers before it, with a rim around all its shapes but details.
    """

    layers: list[list[Shape]] = field(default_factory=lambda: [[]])

    def layer(self) -> None:
        """Start a layer."""
        self.layers.append([])

    def area(self, points: Sequence[Point], colour: Colour, *, detail: bool = False) -> None:
        """Add a polygon."""
        self.layers[-1].append(Area(tuple(points), colour, detail))

    def blob(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        colour: Colour,
        *,
        turn: float = 0,
        detail: bool = False,
    ) -> None:
        """Add an ellipse, turned clockwise by degrees."""
        cos, sin = _direction(turn)
        first, second = (rx * cos, rx * sin), (-ry * sin, ry * cos)
        self.layers[-1].append(Blob(x, y, first, second, colour, detail))

    def stroke(self, points: Sequence[Point], width: float, colour: Colour, *, detail: bool = False) -> None:
        """Add a line."""
        self.layers[-1].append(Stroke(tuple(points), width, colour, detail))

    def moved(
        self, x: float = 0, y: float = 0, scale: float = 1, *, turn: float = 0, mirrored: bool = False
    ) -> "Figure":
        """Return the figure mirrored, then turned by degrees, scaled and moved."""
        cos, sin = _direction(turn)
        sign = -1 if mirrored else 1
        motion = Motion(sign * scale * cos, -scale * sin, sign * scale * sin, scale * cos, x, y)
        return Figure([[shape.moved(motion) for shape in layer] for layer in self.layers])

    def __add__(self, other: "Figure") -> "Figure":
        """Return both, the other one in front."""
        return Figure(self.layers + other.layers)

    def measured(self) -> Box:
        """Return what the figure covers."""
        boxes = [shape.measured() for layer in self.layers for shape in layer]
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return Box(min(lefts), min(tops), max(rights), max(bottoms))

    def draw(self, canvas: Canvas, rim: float, rim_colour: Colour) -> None:
        """Draw every layer, first its rim."""
        for layer in self.layers:
            for shape in layer:
                if not shape.is_detail:
                    shape.fill(canvas, rim_colour, rim)
            for shape in layer:
                shape.fill(canvas, shape.colour, 0.0)


def _direction(degrees: float) -> Point:
    # Rounded, so that it does not depend on the machine's mathematical library.
    return round(math.cos(math.radians(degrees)), 6), round(math.sin(math.radians(degrees)), 6)


def _around(points: Sequence[Point], half: float) -> Box:
    xs, ys = zip(*points, strict=True)
    return Box(min(xs) - half, min(ys) - half, max(xs) + half, max(ys) + half)
