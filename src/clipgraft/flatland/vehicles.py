"""Cars, buses, motorcycles, bicycles and boats."""

from clipgraft.flatland.canvas import INK, WHITE, Colour, mix, shaded
from clipgraft.flatland.figure import Figure
from clipgraft.flatland.water import waterline

GLASS: Colour = (190, 226, 246)
METAL: Colour = (150, 156, 168)
TYRE: Colour = (44, 44, 52)


def _wheel(figure: Figure, x: float, radius: float) -> None:
    figure.blob(x, -radius, radius, radius, TYRE)
    figure.blob(x, -radius, radius * 0.5, radius * 0.5, (206, 210, 216), detail=True)


def _speed(left: float, ys: tuple[float, ...]) -> Figure:
    """Draw lines and dust behind something fast."""
    figure = Figure()
    for number, y in enumerate(ys):
        figure.stroke([(left - 0.06, y), (left - 0.3 - 0.1 * (number % 2), y)], 0.055, WHITE)
    for x, size in ((0.06, 0.09), (0.2, 0.12), (0.36, 0.08)):
        figure.blob(left - x, -size, size, size, (226, 220, 210))
    return figure


def car(colour: Colour, action: str) -> Figure:
    """Draw a car: two windows, two wheels, a lamp."""
    figure = Figure()
    figure.area([(-0.5, -0.52), (-0.3, -0.94), (0.26, -0.94), (0.52, -0.52)], colour)
    figure.area(
        [(-0.86, -0.18), (-0.86, -0.5), (-0.76, -0.58), (0.56, -0.58), (0.86, -0.46), (0.9, -0.18)], colour
    )
    figure.area([(-0.38, -0.56), (-0.24, -0.85), (-0.03, -0.85), (-0.03, -0.56)], GLASS, detail=True)
    figure.area([(0.06, -0.56), (0.06, -0.85), (0.21, -0.85), (0.38, -0.56)], GLASS, detail=True)
    figure.stroke([(-0.8, -0.24), (0.84, -0.24)], 0.08, shaded(colour, 0.3), detail=True)
    figure.blob(0.82, -0.4, 0.06, 0.065, (255, 240, 150))
    figure.stroke([(-0.12, -0.44), (0.0, -0.44)], 0.035, shaded(colour, 0.4), detail=True)
    for x in (-0.48, 0.5):
        _wheel(figure, x, 0.2)
    return _speed(-0.9, (-0.36, -0.58, -0.8)) + figure if action == "driving" else figure


def bus(colour: Colour, action: str) -> Figure:
    """Draw a bus: a row of windows, a door."""
    figure = Figure()
    figure.area(
        [(-0.94, -0.16), (-0.94, -0.92), (-0.88, -1.0), (0.84, -1.0), (0.94, -0.9), (0.96, -0.16)], colour
    )
    figure.area(
        [(-0.9, -0.24), (-0.9, -0.38), (0.52, -0.38), (0.52, -0.24)],
        mix(colour, WHITE if sum(colour) < 600 else INK, 0.4),
        detail=True,
    )
    for x in (-0.82, -0.48, -0.14, 0.2):
        figure.area([(x, -0.54), (x, -0.86), (x + 0.25, -0.86), (x + 0.25, -0.54)], GLASS, detail=True)
    figure.area(
        [(0.56, -0.18), (0.56, -0.86), (0.72, -0.86), (0.72, -0.18)], mix(GLASS, INK, 0.25), detail=True
    )
    figure.area([(0.79, -0.5), (0.79, -0.86), (0.92, -0.84), (0.93, -0.5)], GLASS, detail=True)
    figure.blob(0.93, -0.3, 0.05, 0.055, (255, 240, 150))
    for x in (-0.54, 0.34):
        _wheel(figure, x, 0.18)
    return _speed(-0.98, (-0.4, -0.62, -0.84)) + figure if action == "driving" else figure


def motorcycle(colour: Colour, action: str) -> Figure:
    """Draw a motorcycle: fat wheels, a tank, a seat, an exhaust."""
    figure = Figure()
    for x in (-0.56, 0.56):
        _wheel(figure, x, 0.3)
    figure.stroke([(0.56, -0.3), (0.32, -0.86)], 0.08, METAL)
    figure.stroke([(0.2, -0.9), (0.34, -0.94)], 0.07, TYRE)
    figure.area([(-0.3, -0.22), (-0.18, -0.5), (0.22, -0.5), (0.26, -0.22)], METAL)
    figure.blob(-0.02, -0.34, 0.13, 0.12, shaded(METAL, 0.4), detail=True)
    figure.stroke([(-0.1, -0.16), (-0.66, -0.2)], 0.09, mix(METAL, WHITE, 0.3))
    figure.area([(-0.78, -0.6), (-0.5, -0.7), (-0.16, -0.56), (0.0, -0.44), (-0.4, -0.42)], colour)
    figure.stroke([(-0.52, -0.68), (-0.18, -0.62)], 0.11, TYRE)
    figure.blob(0.1, -0.64, 0.24, 0.16, colour, turn=-8)
    figure.stroke([(0.4, -0.58), (0.72, -0.58)], 0.1, colour)
    figure.blob(0.46, -0.78, 0.09, 0.09, (255, 240, 150))
    if action == "parked":
        behind = Figure()
        behind.stroke([(-0.1, -0.3), (-0.24, 0.0)], 0.06, METAL)
        return behind + figure
    return _speed(-0.84, (-0.42, -0.6, -0.78)) + figure


def bicycle(colour: Colour, action: str) -> Figure:
    """Draw a bicycle: thin wheels, a frame, a saddle."""
    figure = Figure()
    rise = 0.42 if action == "lying" else 1.0
    for x in (-0.44, 0.44):
        figure.blob(x, -0.31 * rise, 0.31, 0.31 * rise, TYRE)
    for x in (-0.44, 0.44):
        figure.blob(x, -0.31 * rise, 0.235, 0.235 * rise, (222, 226, 224), detail=True)
        for dx, dy in ((0.17, 0.17), (0.17, -0.17)):
            figure.stroke(
                [(x - dx, (-0.31 - dy) * rise), (x + dx, (-0.31 + dy) * rise)], 0.02, METAL, detail=True
            )
    figure.layer()
    for points, width in (
        (((-0.44, -0.31), (-0.16, -0.7), (0.3, -0.7), (0.0, -0.31), (-0.44, -0.31)), 0.085),
        (((0.0, -0.31), (-0.19, -0.82)), 0.08),
        (((0.44, -0.31), (0.27, -0.86)), 0.08),
    ):
        figure.stroke([(x, y * rise) for x, y in points], width, colour)
    figure.stroke([(0.26, -0.88 * rise), (0.42, -0.94 * rise)], 0.07, TYRE)
    figure.stroke([(-0.32, -0.84 * rise), (-0.1, -0.84 * rise)], 0.1, TYRE)
    figure.blob(0.0, -0.31 * rise, 0.075, 0.075 * rise, TYRE, detail=True)
    return figure


def boat(colour: Colour, action: str) -> Figure:
    """Draw a boat: sails set, or furled and an anchor's chain."""
    figure = Figure()
    figure.stroke([(0, -0.2), (0, -1.04)], 0.06, (140, 98, 62))
    sail = (252, 250, 242)
    for x in (-0.62, 0.7):
        figure.stroke([(0, -1.02), (x, -0.3)], 0.02, METAL, detail=True)
    if action == "sailing":
        figure.area([(0.06, -1.04), (0.06, -0.36), (0.58, -0.36)], sail)
        figure.area([(-0.06, -0.96), (-0.06, -0.36), (-0.44, -0.36)], mix(sail, INK, 0.12))
        figure.area([(0, -1.12), (0, -1.0), (-0.2, -1.06)], colour)
    else:
        figure.stroke([(0.04, -0.44), (0.5, -0.42)], 0.13, sail)
        figure.stroke([(0.6, -0.22), (0.78, 0.04)], 0.035, TYRE)
    figure.area([(-0.68, -0.32), (0.76, -0.32), (0.5, 0.06), (-0.48, 0.06)], colour)
    figure.stroke(
        [(-0.64, -0.3), (0.7, -0.3)],
        0.06,
        mix(colour, WHITE, 0.5) if sum(colour) < 640 else shaded(colour, 0.3),
        detail=True,
    )
    return figure + waterline(-0.7, 0.74, height=0.07).moved(0, 0.05)
