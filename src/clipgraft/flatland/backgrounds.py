"""Places, in bold shapes and gradients for a small model."""

import random

from clipgraft.flatland.canvas import Canvas, Colour, mix
from clipgraft.flatland.skies import HORIZON, SKIES, draw_distant_fog, draw_sky

FLOWER_COLOURS: tuple[Colour, ...] = (
    (226, 56, 76),
    (250, 206, 60),
    (236, 112, 190),
    (250, 250, 250),
    (150, 90, 210),
)


def draw_background(canvas: Canvas, place: str, weather: str, rng: random.Random) -> None:
    """Draw sky and place, with random details."""
    draw_sky(canvas, weather, rng)
    _PLACES[place](canvas, rng)
    if weather == "foggy":
        draw_distant_fog(canvas)


def _ground(canvas: Canvas, near: Colour, far: Colour, top: float = HORIZON) -> None:
    canvas.gradient(top, 1.0, [canvas.tinted(far), canvas.tinted(near)])


def _hills(canvas: Canvas, rng: random.Random, colour: Colour) -> None:
    for x in (0.1, 0.5, 0.9):
        canvas.ellipse(
            x + 0.15 * (rng.random() - 0.5), HORIZON + 0.03, 0.35, 0.08 + 0.05 * rng.random(), colour
        )


def _water(canvas: Canvas, top: float, bottom: float, rng: random.Random) -> None:
    glow = SKIES[canvas.time][2]
    near, far = canvas.tinted((36, 110, 190)), canvas.tinted((70, 150, 215))
    canvas.gradient(top, bottom, [mix(far, glow, 0.35), near])
    for _ in range(6):
        x, y = rng.random(), top + (bottom - top) * (0.15 + 0.75 * rng.random())
        canvas.line([(x - 0.05, y), (x + 0.05, y)], 0.008, (170, 210, 240))


def _beach(canvas: Canvas, rng: random.Random) -> None:
    _ground(canvas, (232, 200, 140), (246, 222, 170), 0.68)
    _water(canvas, HORIZON, 0.72, rng)
    canvas.line([(x / 6, 0.725 + 0.012 * (x % 2)) for x in range(7)], 0.02, (250, 250, 248))


def _garden(canvas: Canvas, rng: random.Random) -> None:
    _ground(canvas, (70, 150, 66), (110, 186, 84))
    for bush in range(5):
        canvas.ellipse(0.1 + 0.2 * bush, HORIZON, 0.13, 0.07, (52, 122, 58))
    for row in range(4):
        for column in range(6):
            x = (column + 0.5 * (row % 2) + 0.5 * rng.random()) / 6
            size = 0.018 + 0.008 * row
            _flower(canvas, x, 0.6 + 0.11 * row, size, FLOWER_COLOURS[int(rng.random() * 5)])


def _flower(canvas: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    canvas.line([(x, y), (x, y + 3 * size)], size * 0.5, (40, 104, 48))
    for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        canvas.ellipse(x + dx * size * 0.8, y + dy * size * 0.8, size, size, colour)
    canvas.ellipse(x, y, size * 0.7, size * 0.7, (252, 214, 90))


def _park(canvas: Canvas, rng: random.Random) -> None:
    _ground(canvas, (84, 168, 76), (126, 200, 100))
    for x in (0.08, 0.36, 0.64, 0.92):
        _tree(canvas, x + 0.08 * (rng.random() - 0.5), HORIZON + 0.05, 0.9 + 0.3 * rng.random())


def _tree(canvas: Canvas, x: float, foot: float, size: float) -> None:
    canvas.line([(x, foot), (x, foot - 0.18 * size)], 0.035, (112, 74, 46))
    canvas.ellipse(x, foot - 0.27 * size, 0.11 * size, 0.13 * size, (46, 126, 62))


def _street(canvas: Canvas, rng: random.Random) -> None:
    _ground(canvas, (84, 86, 96), (112, 114, 124))
    x = 0.0
    while x < 1:
        width, height = 0.14 + 0.08 * rng.random(), 0.2 + 0.22 * rng.random()
        wall = ((176, 120, 104), (140, 150, 168), (196, 178, 150))[int(rng.random() * 3)]
        canvas.polygon([(x, 0.6), (x, 0.6 - height), (x + width, 0.6 - height), (x + width, 0.6)], wall)
        pane = (255, 226, 130) if canvas.time == "night" else (214, 232, 244)
        for row in range(int(height / 0.09)):
            for column in (0.28, 0.72):
                y = 0.6 - height + 0.045 + 0.09 * row
                canvas.window(x + width * column - 0.016, y - 0.02, 0.032, 0.04, pane)
        x += width + 0.01
    for place in range(4):
        canvas.line([(0.02 + 0.27 * place, 0.9), (0.14 + 0.27 * place, 0.9)], 0.022, (240, 238, 220))


def _snow(canvas: Canvas, rng: random.Random) -> None:
    _hills(canvas, rng, (206, 222, 238))
    _ground(canvas, (248, 250, 254), (222, 234, 246), HORIZON + 0.02)
    for x in (0.1, 0.88):
        foot = HORIZON + 0.08
        x += 0.08 * (rng.random() - 0.5)
        for step in range(3):
            y = foot - 0.08 * step
            canvas.polygon(
                [(x - 0.09 + 0.02 * step, y), (x, y - 0.13), (x + 0.09 - 0.02 * step, y)], (44, 104, 84)
            )


def _lake(canvas: Canvas, rng: random.Random) -> None:
    _hills(canvas, rng, (84, 148, 96))
    _water(canvas, HORIZON, 1.0, rng)


def _mountain(canvas: Canvas, rng: random.Random) -> None:
    for x, height in ((0.2, 0.32), (0.78, 0.36), (0.5, 0.26)):
        x += 0.1 * (rng.random() - 0.5)
        peak = HORIZON - height
        canvas.polygon([(x - 0.34, HORIZON + 0.03), (x, peak), (x + 0.34, HORIZON + 0.03)], (122, 130, 150))
        canvas.polygon(
            [(x - 0.1, peak + 0.09), (x, peak), (x + 0.1, peak + 0.09), (x, peak + 0.06)], (250, 250, 254)
        )
    _ground(canvas, (96, 160, 90), (132, 186, 110), HORIZON + 0.02)


def _field(canvas: Canvas, rng: random.Random) -> None:
    _hills(canvas, rng, (112, 164, 92))
    _ground(canvas, (222, 176, 70), (240, 206, 110), HORIZON + 0.02)
    for place in range(5):
        x = place / 4 + 0.05 * (rng.random() - 0.5)
        canvas.line(
            [(0.5 + (x - 0.5) * 0.4, HORIZON + 0.05), (0.5 + (x - 0.5) * 2.2, 1.0)], 0.012, (198, 150, 54)
        )


def _forest(canvas: Canvas, rng: random.Random) -> None:
    canvas.polygon([(0, 0.32), (1, 0.32), (1, 0.62), (0, 0.62)], (30, 84, 58))
    for crown in range(6):
        x, height = (crown + rng.random() * 0.4) / 5, 0.07 + 0.03 * rng.random()
        canvas.ellipse(x, 0.32, 0.13, height, (30, 84, 58))
    for trunk in range(7):
        canvas.line([((trunk + 0.5) / 7, 0.38), ((trunk + 0.5) / 7, 0.6)], 0.022, (66, 62, 48))
    _ground(canvas, (98, 112, 62), (70, 96, 58), 0.58)
    canvas.polygon([(0.44, 0.58), (0.56, 0.58), (0.86, 1.0), (0.14, 1.0)], (168, 134, 92))
    for x in (0.03, 0.21, 0.8, 0.98):
        x += 0.06 * (rng.random() - 0.5)
        _fir(canvas, x, 0.68, 0.62 + 0.1 * rng.random())


def _fir(canvas: Canvas, x: float, foot: float, size: float) -> None:
    canvas.line([(x, foot), (x, foot - 0.2 * size)], 0.06 * size + 0.01, (104, 70, 46))
    for step, half in enumerate((0.2, 0.165, 0.13)):
        low = foot - (0.14 + 0.24 * step) * size
        colour = ((40, 112, 66), (48, 126, 72), (58, 140, 80))[step]
        canvas.polygon([(x - half * size, low), (x, low - 0.4 * size), (x + half * size, low)], colour)


def _pool(canvas: Canvas, rng: random.Random) -> None:
    for bush in range(6):
        x, height = (bush + rng.random() * 0.4) / 5, 0.07 + 0.03 * rng.random()
        canvas.ellipse(x, HORIZON, 0.13, height, (56, 132, 66))
    _palm(canvas, 0.1 + 0.08 * rng.random())
    _palm(canvas, 0.84 + 0.08 * rng.random())
    _ground(canvas, (236, 222, 196), (222, 206, 180), HORIZON + 0.03)
    tile, water, light = (248, 250, 250), (64, 200, 224), (176, 240, 248)
    canvas.polygon([(0.1, 0.6), (0.9, 0.6), (1.06, 0.9), (-0.06, 0.9)], tile)
    canvas.polygon([(0.12, 0.625), (0.88, 0.625), (1.03, 0.875), (-0.03, 0.875)], water)
    for far, near in ((0.4, 0.34), (0.6, 0.66)):
        canvas.line([(far, 0.635), (near, 0.865)], 0.012, (40, 120, 200))
    for _ in range(7):
        x, y = 0.12 + 0.76 * rng.random(), 0.65 + 0.2 * rng.random()
        canvas.line([(x - 0.05, y), (x, y + 0.008), (x + 0.05, y)], 0.009, light)


def _palm(canvas: Canvas, x: float) -> None:
    canvas.line([(x, 0.56), (x + 0.015, 0.38), (x + 0.01, 0.24)], 0.03, (146, 104, 64))
    for dx, dy in ((-0.14, 0.06), (-0.11, -0.05), (0.0, -0.1), (0.11, -0.05), (0.14, 0.06)):
        canvas.line(
            [(x + 0.01, 0.24), (x + 0.01 + dx * 0.6, 0.24 + dy - 0.03), (x + 0.01 + dx, 0.24 + dy)],
            0.028,
            (52, 142, 70),
        )


_PLACES = {
    "beach": _beach,
    "garden": _garden,
    "park": _park,
    "street": _street,
    "snow": _snow,
    "lake": _lake,
    "mountain": _mountain,
    "field": _field,
    "forest": _forest,
    "pool": _pool,
}
