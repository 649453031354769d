"""Foam around what is in the water."""

from clipgraft.flatland.canvas import Colour
from clipgraft.flatland.figure import Figure

FOAM: Colour = (240, 248, 255)
WAVES = 6


def waterline(left: float, right: float, *, height: float = 0.06) -> Figure:
    """Draw a line of foam along y = 0."""
    figure = Figure()
    step = (right - left) / WAVES
    points = [(left + step * wave, 0.02 * (-1) ** wave + 0.01) for wave in range(WAVES + 1)]
    figure.stroke(points, height, FOAM, detail=True)
    return figure
