"""Subjects facing right; ground at 0, up negative, height about 1."""

import random
from collections.abc import Callable
from typing import NamedTuple

from clipgraft.flatland.canvas import Canvas, Colour, Point, mix
from clipgraft.flatland.world import COLOURS, COMPANION_ACTIONS, SUBJECTS, Scene, pick

INK: Colour = (34, 32, 40)
SKIN: tuple[Colour, ...] = ((250, 214, 180), (224, 172, 126), (150, 100, 68))
HAIR: tuple[Colour, ...] = ((60, 40, 30), (30, 28, 32), (196, 150, 70))
TROUSERS: Colour = (52, 62, 92)
METAL: Colour = (70, 74, 84)


class Pose(NamedTuple):
    """Arguments of a drawing function."""

    colour: Colour
    action: str
    rng: random.Random


def draw_subjects(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    """Draw subject and companion at random place, size and direction."""
    if not scene.companion:
        _draw(canvas, scene.place, scene.subject, scene.colour, scene.action, 0.34 + 0.32 * rng.random(), rng)
        return
    side = -1 if rng.random() < 0.5 else 1
    x, beside = 0.5 + side * (0.16 + 0.06 * rng.random()), 0.5 - side * (0.24 + 0.06 * rng.random())
    action = COMPANION_ACTIONS[scene.companion]
    _draw(canvas, scene.place, scene.companion, scene.companion_colour, action, beside, rng, scale=0.75)
    _draw(canvas, scene.place, scene.subject, scene.colour, scene.action, x, rng, scale=0.9)


def _draw(
    canvas: Canvas,
    place: str,
    subject: str,
    colour: str,
    action: str,
    x: float,
    rng: random.Random,
    *,
    scale: float = 1.0,
) -> None:
    size = scale * SUBJECTS[subject].height * (0.9 + 0.25 * rng.random())
    foot = 0.62 if action == "flying" else 0.84 + 0.08 * rng.random()
    is_mirrored = rng.random() < 0.5
    canvas.frame(x, foot, size)
    if place != "lake" and action != "flying" and subject != "boat":
        canvas.ellipse(0, 0.01, 0.42, 0.045, mix((60, 70, 60), INK, 0.3))  # the shadow
    canvas.frame(x, foot - _LIFTS.get(action, 0.0), size, mirrored=is_mirrored)
    _DRAWINGS[subject](canvas, Pose(COLOURS[colour], action, rng))
    canvas.frame(0.0, 0.0, 1.0)


_LIFTS = {"jumping": 0.14, "bouncing": 0.2, "falling": 0.1}
"""Height above the ground, relative to the image."""


def _four_legged(
    canvas: Canvas, pose: Pose, *, leg: float, body: Point, neck: float, is_horse: bool = False
) -> Point:
    """Draw legs, body, neck and head; return the head's centre."""
    colour, dark = pose.colour, mix(pose.colour, INK, 0.28)
    bx, by = body
    top = -leg - by
    if pose.action == "sitting":
        canvas.polygon(
            [
                (-bx, 0),
                (-bx * 0.75, -leg * 1.1),
                (bx * 0.4, -leg - 2.1 * by),
                (bx * 0.75, -leg),
                (bx * 0.5, 0),
            ],
            colour,
        )
        canvas.ellipse(-bx * 0.45, -leg * 0.55, bx * 0.55, leg * 0.55, colour)
        canvas.line([(bx * 0.55, -leg), (bx * 0.6, -0.03)], 0.085, dark)
        canvas.line([(-bx, -0.06), (-bx * 1.45, -0.16), (-bx * 1.6, -0.34)], 0.07, colour)
        shoulder: Point = (bx * 0.45, -leg - 1.9 * by)
    else:
        legs: tuple[tuple[float, float], ...] = {
            "running": ((-0.75, -1.5), (-0.45, -0.75), (0.5, 1.0), (0.8, 1.65)),
            "jumping": ((-0.8, -1.7), (-0.65, -1.3), (0.65, 1.2), (0.85, 1.6)),
            "walking": ((-0.75, -0.95), (-0.5, -0.3), (0.5, 0.35), (0.75, 0.95)),
        }.get(pose.action, ((-0.75, -0.75), (-0.5, -0.5), (0.5, 0.5), (0.75, 0.75)))
        drop = 0.75 if pose.action in ("running", "jumping") else 1.0
        for number, (hip, foot) in enumerate(legs):
            shade = dark if number % 2 else colour
            canvas.line([(hip * bx, top + by * 0.4), (foot * bx, -leg * (1 - drop) - 0.03)], 0.09, shade)
        canvas.ellipse(0, top, bx, by, colour)
        tail: Point = (-bx * 1.4, top - 0.2) if not is_horse else (-bx * 1.35, top + 0.3)
        canvas.line(
            [(-bx * 0.9, top - 0.02), (-bx * 1.2, top - 0.05), tail], 0.075, dark if is_horse else colour
        )
        shoulder = (bx * 0.7, top - by * 0.3)
    face = (shoulder[0] + neck * 0.75, shoulder[1] - neck)
    canvas.line([shoulder, face], 0.17 if is_horse else 0.15, colour)
    return face


def _dog(canvas: Canvas, pose: Pose) -> None:
    x, y = _four_legged(canvas, pose, leg=0.34, body=(0.36, 0.17), neck=0.2)
    dark = mix(pose.colour, INK, 0.45)
    canvas.ellipse(x, y, 0.165, 0.15, pose.colour)
    canvas.ellipse(x + 0.16, y + 0.05, 0.12, 0.075, pose.colour)
    canvas.ellipse(x + 0.26, y + 0.02, 0.04, 0.035, INK)
    canvas.ellipse(x - 0.08, y + 0.03, 0.065, 0.15, dark)
    canvas.ellipse(x + 0.06, y - 0.03, 0.025, 0.03, INK)


def _cat(canvas: Canvas, pose: Pose) -> None:
    x, y = _four_legged(canvas, pose, leg=0.27, body=(0.34, 0.15), neck=0.16)
    canvas.ellipse(x, y, 0.18, 0.16, pose.colour)
    for side in (-1, 1):
        canvas.polygon(
            [(x + side * 0.17, y - 0.03), (x + side * 0.15, y - 0.27), (x + side * 0.02, y - 0.13)],
            pose.colour,
        )
        canvas.ellipse(x + side * 0.07, y - 0.02, 0.028, 0.038, (120, 210, 90))
        canvas.line(
            [(x + side * 0.06, y + 0.06), (x + side * 0.22, y + 0.05)],
            0.015,
            mix(pose.colour, (255, 255, 255), 0.6),
        )
    canvas.ellipse(x, y + 0.05, 0.025, 0.02, (230, 120, 140))


def _horse(canvas: Canvas, pose: Pose) -> None:
    x, y = _four_legged(canvas, pose, leg=0.4, body=(0.34, 0.15), neck=0.32, is_horse=True)
    mane = mix(pose.colour, INK, 0.55)
    canvas.line([(x - 0.07, y - 0.06), (x - 0.2, y + 0.1), (x - 0.3, y + 0.28)], 0.07, mane)
    canvas.line([(x - 0.02, y - 0.02), (x + 0.2, y + 0.1)], 0.14, pose.colour)
    canvas.polygon([(x - 0.08, y - 0.04), (x - 0.05, y - 0.18), (x + 0.03, y - 0.06)], pose.colour)
    canvas.ellipse(x + 0.05, y, 0.022, 0.028, INK)


def _bird(canvas: Canvas, pose: Pose) -> None:
    dark = mix(pose.colour, INK, 0.3)
    if pose.action == "standing":
        for x in (-0.06, 0.1):
            canvas.line([(x, -0.3), (x, -0.02), (x + 0.08, -0.01)], 0.035, (230, 150, 50))
    canvas.polygon([(-0.3, -0.5), (-0.72, -0.62), (-0.66, -0.4)], dark)
    canvas.ellipse(0, -0.48, 0.4, 0.24, pose.colour)
    canvas.ellipse(0.34, -0.7, 0.19, 0.18, pose.colour)
    canvas.polygon([(0.49, -0.76), (0.74, -0.68), (0.49, -0.62)], (240, 160, 40))
    canvas.ellipse(0.4, -0.74, 0.035, 0.04, INK)
    if pose.action == "flying":
        canvas.polygon([(-0.2, -0.55), (0.2, -0.55), (-0.1, -1.2), (-0.42, -1.12)], dark)
    else:
        canvas.ellipse(-0.1, -0.48, 0.25, 0.13, dark)


def _person(canvas: Canvas, pose: Pose, *, has_dress: bool = False, head: float = 0.1) -> None:
    skin, hair = pick(pose.rng, SKIN), pick(pose.rng, HAIR)
    hip, shoulder = -0.46, -0.78
    stride = {"running": 0.26, "jumping": 0.24, "walking": 0.13}.get(pose.action, 0.04)
    lower = TROUSERS if not has_dress else skin
    if pose.action == "sitting":
        hip, shoulder = -0.2, -0.54
        canvas.line([(0, hip), (0.26, hip - 0.02), (0.3, 0)], 0.1, lower)
    elif pose.action == "running":
        canvas.line([(0, hip), (-0.12, -0.2), (-0.32, -0.2)], 0.095, lower)
        canvas.line([(0, hip), (0.2, -0.26), (0.2, 0)], 0.095, lower)
    else:
        for side in (-1, 1):
            foot = -0.1 if pose.action == "jumping" else 0.0
            canvas.line([(0.04 * side, hip), (stride * side, foot)], 0.095, lower)
    arm = 0.3 if pose.action == "jumping" else -0.2
    swing = {"running": 0.24, "jumping": 0.26}.get(pose.action, 0.14)
    for side in (-1, 1):
        canvas.line([(0.1 * side, shoulder + 0.04), (swing * side, shoulder - arm)], 0.065, skin)
    if has_dress:
        canvas.polygon(
            [(-0.09, shoulder), (0.09, shoulder), (0.2, hip + 0.16), (-0.2, hip + 0.16)], pose.colour
        )
    canvas.line([(-0.06, shoulder + 0.05), (-0.06, hip)], 0.14, pose.colour)
    canvas.line([(0.06, shoulder + 0.05), (0.06, hip)], 0.14, pose.colour)
    top = shoulder - head * 1.05
    if has_dress:
        canvas.ellipse(-0.03, top + 0.06, head * 1.15, head * 1.6, hair)
    canvas.ellipse(0, top - 0.025, head * 1.05, head, hair)
    canvas.ellipse(0.02, top + 0.02, head * 0.85, head * 0.85, skin)
    canvas.ellipse(0.055, top + 0.01, 0.014, 0.018, INK)


def _woman(canvas: Canvas, pose: Pose) -> None:
    _person(canvas, pose, has_dress=True)


def _child(canvas: Canvas, pose: Pose) -> None:
    _person(canvas, pose, head=0.16)


def _wheel(canvas: Canvas, x: float, radius: float) -> None:
    canvas.ellipse(x, -radius, radius, radius, INK)
    canvas.ellipse(x, -radius, radius * 0.5, radius * 0.5, (190, 192, 200))


def _car(canvas: Canvas, pose: Pose) -> None:
    canvas.polygon([(-0.42, -0.5), (-0.26, -0.82), (0.24, -0.82), (0.46, -0.5)], pose.colour)
    glass = (190, 224, 244)
    canvas.polygon([(-0.33, -0.5), (-0.22, -0.74), (-0.02, -0.74), (-0.02, -0.5)], glass)
    canvas.polygon([(0.04, -0.5), (0.04, -0.74), (0.21, -0.74), (0.36, -0.5)], glass)
    canvas.polygon(
        [(-0.8, -0.16), (-0.78, -0.48), (-0.4, -0.54), (0.5, -0.54), (0.8, -0.42), (0.82, -0.16)], pose.colour
    )
    canvas.ellipse(0.76, -0.36, 0.05, 0.05, (255, 240, 160))
    for x in (-0.46, 0.46):
        _wheel(canvas, x, 0.17)
    if pose.action == "driving":
        for y in (-0.2, -0.36, -0.52):
            canvas.line([(-0.92, y), (-1.2, y)], 0.035, (250, 250, 250))


def _bicycle(canvas: Canvas, pose: Pose) -> None:
    is_lying = pose.action == "lying"
    rise = 0.4 if is_lying else 1.0
    for x in (-0.42, 0.42):
        canvas.ellipse(x, -0.3 * rise, 0.3, 0.3 * rise, INK)
        canvas.ellipse(x, -0.3 * rise, 0.22, 0.22 * rise, (214, 218, 214))
    frame = [(-0.42, -0.3), (-0.14, -0.72), (0.3, -0.72), (0.0, -0.3), (-0.42, -0.3)]
    canvas.line([(x, y * rise) for x, y in frame], 0.07, pose.colour)
    canvas.line([(x, y * rise) for x, y in ((0.0, -0.3), (-0.17, -0.82))], 0.06, pose.colour)
    canvas.line([(x, y * rise) for x, y in ((0.42, -0.3), (0.28, -0.9), (0.44, -0.94))], 0.06, pose.colour)
    canvas.line([(x, y * rise) for x, y in ((-0.28, -0.84), (-0.06, -0.84))], 0.07, INK)


def _boat(canvas: Canvas, pose: Pose) -> None:
    canvas.line([(0, -0.2), (0, -1.1)], 0.04, METAL)
    sail = (250, 248, 240)
    if pose.action == "sailing":
        canvas.polygon([(0.05, -1.08), (0.05, -0.34), (0.55, -0.34)], sail)
        canvas.polygon([(-0.05, -1.0), (-0.05, -0.34), (-0.42, -0.34)], mix(sail, INK, 0.1))
    else:
        canvas.line([(-0.02, -0.36), (0.5, -0.36)], 0.07, sail)
    canvas.polygon([(-0.66, -0.28), (0.72, -0.28), (0.46, 0.02), (-0.46, 0.02)], pose.colour)
    canvas.line([(-0.66, -0.28), (0.72, -0.28)], 0.05, mix(pose.colour, (255, 255, 255), 0.4))


def _ball(canvas: Canvas, pose: Pose) -> None:
    canvas.ellipse(0, -0.45, 0.45, 0.45, pose.colour)
    canvas.ellipse(-0.14, -0.6, 0.14, 0.12, mix(pose.colour, (255, 255, 255), 0.55))
    canvas.line([(-0.42, -0.4), (0, -0.3), (0.42, -0.4)], 0.06, mix(pose.colour, INK, 0.35))


def _kite(canvas: Canvas, pose: Pose) -> None:
    tilt = 0.0 if pose.action == "flying" else 0.35
    light = mix(pose.colour, (255, 255, 255), 0.4)
    canvas.line([(0.0, -0.1), (-0.2, 0.2), (0.0, 0.45), (-0.2, 0.7)], 0.03, light)
    canvas.polygon([(0 + tilt, -1.0), (0.4, -0.55 + tilt), (0, -0.1), (-0.4, -0.55 - tilt)], pose.colour)
    canvas.polygon([(0 + tilt, -1.0), (0.4, -0.55 + tilt), (0, -0.55)], light)
    canvas.polygon([(0, -0.55), (-0.4, -0.55 - tilt), (0, -0.1)], light)


_DRAWINGS: dict[str, Callable[[Canvas, Pose], None]] = {
    "dog": _dog,
    "cat": _cat,
    "horse": _horse,
    "bird": _bird,
    "man": _person,
    "woman": _woman,
    "child": _child,
    "car": _car,
    "bicycle": _bicycle,
    "boat": _boat,
    "ball": _ball,
    "kite": _kite,
}
