"""Skies and weather."""

import random

from clipgraft.flatland.canvas import Canvas, Colour, mix

SKIES: dict[str, tuple[Colour, ...]] = {
    "day": ((88, 170, 240), (150, 206, 250), (214, 236, 252)),
    "sunset": ((92, 58, 128), (232, 104, 92), (255, 188, 98)),
    "night": ((12, 16, 48), (24, 32, 84), (44, 54, 112)),
}
HORIZON = 0.52
OVERCAST: dict[str, tuple[Colour, ...]] = {
    "day": ((128, 140, 156), (164, 174, 186), (200, 206, 212)),
    "sunset": ((74, 60, 92), (150, 92, 98), (238, 150, 96)),
    "night": ((16, 18, 28), (28, 31, 44), (44, 48, 64)),
}
"""Skies without sun, moon and stars."""
CLOUDS: dict[str, tuple[Colour, Colour]] = {
    "day": ((222, 227, 232), (178, 187, 198)),
    "sunset": ((196, 118, 112), (112, 76, 100)),
    "night": ((70, 74, 92), (48, 52, 68)),
}
RAIN: dict[str, Colour] = {"day": (226, 238, 252), "sunset": (250, 222, 214), "night": (150, 168, 214)}
FOG: dict[str, Colour] = {"day": (226, 230, 234), "sunset": (240, 196, 172), "night": (104, 112, 140)}


def draw_sky(canvas: Canvas, weather: str, rng: random.Random) -> None:
    """Draw a clear sky, or one of clouds alone."""
    if weather in ("cloudy", "rainy"):
        _overcast(canvas, weather, rng)
    else:
        _clear(canvas, rng)


def draw_distant_fog(canvas: Canvas) -> None:
    """Draw fog over the background, densest at the horizon."""
    canvas.veil(FOG[canvas.time], (0.4, 0.52, 0.62, 0.5, 0.3))


def draw_weather(canvas: Canvas, weather: str, rng: random.Random) -> None:
    """Draw rain or a light fog over everything."""
    if weather == "rainy":
        for row in range(6):
            for column in range(5):
                x = (column + rng.random()) / 5
                y = (row + rng.random()) / 6
                canvas.streak((x, y), (x - 0.03, y + 0.09), 0.009, RAIN[canvas.time])
    elif weather == "foggy":
        canvas.veil(FOG[canvas.time], (0.12, 0.2, 0.24, 0.2, 0.12))


def _overcast(canvas: Canvas, weather: str, rng: random.Random) -> None:
    dark = (30, 36, 52)
    share = 0.3 if weather == "rainy" else 0.0
    canvas.gradient(0.0, HORIZON + 0.02, [mix(colour, dark, share) for colour in OVERCAST[canvas.time]])
    light, low = (mix(colour, dark, share) for colour in CLOUDS[canvas.time])
    for row, colour in ((0, low), (1, light), (2, low)):
        for column in range(3):
            x = (column + 0.25 + 0.5 * rng.random() + 0.3 * (row % 2)) / 3
            _cloud(canvas, x, 0.05 + 0.13 * row + 0.04 * rng.random(), 0.11 + 0.05 * rng.random(), colour)


def _clear(canvas: Canvas, rng: random.Random) -> None:
    shift = (rng.random() - 0.5) * 0.2
    accent = (255, 255, 255) if shift > 0 else (30, 40, 90)
    canvas.gradient(0.0, HORIZON + 0.02, [mix(colour, accent, abs(shift)) for colour in SKIES[canvas.time]])
    x = 0.15 + 0.7 * rng.random()
    if canvas.time == "day":
        canvas.light(x, 0.13, 0.07, (255, 232, 110))
        for _ in range(2):
            _cloud(
                canvas, rng.random(), 0.1 + 0.2 * rng.random(), 0.09 + 0.04 * rng.random(), (252, 252, 255)
            )
    elif canvas.time == "sunset":
        for radius, colour in ((0.17, (255, 176, 96)), (0.13, (255, 206, 120)), (0.09, (255, 240, 190))):
            canvas.light(x, HORIZON - 0.06, radius, colour)
    else:
        canvas.light(x, 0.14, 0.065, (250, 248, 220))
        for _ in range(14):
            canvas.light(rng.random(), 0.42 * rng.random(), 0.007, (255, 255, 240))


def _cloud(canvas: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    for dx, scale in ((-0.8, 0.6), (0.0, 1.0), (0.8, 0.65)):
        canvas.ellipse(x + dx * size, y, size * scale, size * scale * 0.6, colour)
