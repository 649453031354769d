"""Balls, kites, and what people and dogs have with them."""

from clipgraft.flatland.canvas import WHITE, Colour, mix, shaded
from clipgraft.flatland.figure import Figure
from clipgraft.flatland.water import FOAM

WOOD: Colour = (150, 98, 56)


def _stripe(colour: Colour) -> Colour:
    """Return a colour for patterns on another."""
    return mix(colour, WHITE, 0.75) if sum(colour) < 640 else shaded(colour, 0.3)


def ball(colour: Colour) -> Figure:
    """Draw a ball with a stripe; one unit in diameter."""
    figure = Figure()
    figure.blob(0, -0.5, 0.5, 0.5, colour)
    figure.stroke(
        [(-0.4, -0.34), (-0.14, -0.24), (0.14, -0.24), (0.4, -0.34)], 0.13, _stripe(colour), detail=True
    )
    figure.blob(-0.16, -0.68, 0.13, 0.1, mix(colour, WHITE, 0.7), turn=-30, detail=True)
    return figure


def floating_ball(colour: Colour) -> Figure:
    """Draw a ball in the water."""
    foam = Figure()
    foam.area([(-0.6, 0.1), (-0.52, -0.14), (0.52, -0.14), (0.6, 0.1)], (70, 170, 215), detail=True)
    foam.stroke(
        [(-0.6, -0.12), (-0.3, -0.08), (0, -0.12), (0.3, -0.08), (0.6, -0.12)], 0.09, FOAM, detail=True
    )
    return ball(colour).moved(0, 0.1) + foam


def kite(colour: Colour, action: str) -> Figure:
    """Draw a kite: upright, or head down with the tail above it."""
    figure = Figure()
    light = _stripe(colour)
    tail = ((0, -0.3), (-0.14, -0.16), (0.04, -0.02), (-0.12, 0.14), (0.06, 0.26))
    figure.stroke(tail, 0.045, light)
    for x, y in tail[1:4]:
        figure.area(
            [(x - 0.09, y - 0.06), (x + 0.09, y + 0.06), (x + 0.09, y - 0.06), (x - 0.09, y + 0.06)], colour
        )
    figure.area([(0, -1.0), (0.38, -0.68), (0, -0.2), (-0.38, -0.68)], colour)
    figure.area([(0, -0.94), (0.32, -0.68), (0, -0.68)], light, detail=True)
    figure.area([(0, -0.28), (-0.32, -0.68), (0, -0.68)], light, detail=True)
    return figure if action == "flying" else figure.moved(0.0, -0.8, turn=145)


def umbrella(colour: Colour) -> Figure:
    """Draw an open umbrella; its handle ends at the origin."""
    figure = Figure()
    figure.stroke([(0, -0.7), (0, 0.0), (0.05, 0.05), (0.11, 0.0)], 0.045, WOOD)
    figure.area(
        [
            (-0.56, -0.6),
            (-0.46, -0.82),
            (-0.24, -0.98),
            (0, -1.03),
            (0.24, -0.98),
            (0.46, -0.82),
            (0.56, -0.6),
            (0.37, -0.66),
            (0.19, -0.6),
            (0, -0.66),
            (-0.19, -0.6),
            (-0.37, -0.66),
        ],
        colour,
    )
    figure.area(
        [(-0.19, -0.61), (-0.12, -0.9), (0, -1.0), (0.12, -0.9), (0.19, -0.61), (0, -0.66)],
        _stripe(colour),
        detail=True,
    )
    figure.stroke([(0, -1.03), (0, -1.1)], 0.045, WOOD)
    return figure


def frisbee(colour: Colour) -> Figure:
    """Draw a frisbee, one unit wide."""
    figure = Figure()
    figure.blob(0, -0.18, 0.5, 0.19, colour)
    figure.blob(0, -0.23, 0.32, 0.09, _stripe(colour), detail=True)
    return figure


def stick(colour: Colour) -> Figure:
    """Draw a stick with a twig, one unit long."""
    figure = Figure()
    figure.stroke([(0.1, -0.09), (0.2, -0.26)], 0.1, colour)
    figure.stroke([(-0.46, -0.05), (0.0, -0.1), (0.46, -0.07)], 0.13, colour)
    figure.stroke([(-0.4, -0.075), (0.0, -0.125)], 0.04, mix(colour, WHITE, 0.35), detail=True)
    return figure


def skateboard(colour: Colour) -> Figure:
    """Draw a skateboard, one unit long."""
    figure = Figure()
    for x in (-0.28, 0.28):
        figure.blob(x, -0.08, 0.085, 0.085, (70, 70, 78))
    figure.stroke([(-0.5, -0.24), (-0.36, -0.18), (0.36, -0.18), (0.5, -0.24)], 0.11, colour)
    return figure


def surfboard(colour: Colour) -> Figure:
    """Draw a surfboard, one unit long, its nose to the right."""
    figure = Figure()
    figure.area(
        [
            (-0.5, -0.04),
            (-0.4, -0.1),
            (0.0, -0.13),
            (0.34, -0.1),
            (0.52, -0.06),
            (0.34, 0.0),
            (0.0, 0.03),
            (-0.4, 0.01),
        ],
        colour,
    )
    figure.stroke([(-0.44, -0.045), (0.42, -0.055)], 0.04, _stripe(colour), detail=True)
    return figure
