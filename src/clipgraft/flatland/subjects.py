"""Subjects and companions at their places: whole and inside the image."""

import random
from typing import NamedTuple

from clipgraft.flatland import animals, people, relations, things, vehicles
from clipgraft.flatland.canvas import Canvas, Colour
from clipgraft.flatland.figure import Box, Figure
from clipgraft.flatland.people import COMPLEXIONS, Look
from clipgraft.flatland.world import COLOURS, PEOPLE, Scene, kind_of, pick

RIM = 0.0095
RIMS: dict[str, Colour] = {"day": (40, 36, 52), "sunset": (58, 30, 52), "night": (168, 180, 224)}
"""Around everything: dark by day; at night pale, as from the moon."""
PALE_RIMS: dict[str, Colour] = {"day": (196, 204, 214), "sunset": (255, 208, 180), "night": RIMS["night"]}
"""Around what is black before a dark background."""
SNOW_AT_NIGHT: Colour = (48, 52, 90)
"""A dark rim: snow is pale at night too."""
TINT_SHARE = 0.5
ROOM = Box(0.03, 0.03, 0.97, 0.97)
"""Everything is drawn inside it."""
GAP = 0.05
"""Between those that are to be counted."""
ROWS = {"": (0.66, 0.93), "beach": (0.75, 0.96), "lake": (0.68, 0.88), "pool": (0.71, 0.84)}
"""Where the feet of two rows are, in places and elsewhere."""
SIZES = {"": 1.0, "little": 0.68, "big": 1.3}
NUMBERS = {"": 1, "two": 2, "three": 3}
CENTRES = {"": (0.42, 0.58), "left": (0.24, 0.34), "right": (0.66, 0.76)}
"""Where the middle of the subject is."""
CENTRES_IN_COMPANY = {"": (0.38, 0.62), "left": (0.22, 0.32), "right": (0.68, 0.78)}


class Part(NamedTuple):
    """Something that stands, floats or flies at a height of the image."""

    figure: Figure
    rim: Colour
    foot: float
    has_shadow: bool
    lift: float = 0.0
    """Of the figure above its shadow."""


def draw_subjects(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    """Draw subject and companion at random place and direction."""
    canvas.tint_share = TINT_SHARE
    if scene.number:
        _draw_many(canvas, scene, rng)
    elif scene.relation:
        _draw_related(canvas, scene, rng)
    else:
        _draw_beside(canvas, scene, rng)
    canvas.tint_share = 1.0


def _drawing(scene: Scene, name: str, colour: str, action: str, rng: random.Random) -> Figure:
    """Draw one thing, one unit high."""
    paint = COLOURS[colour]
    if name in PEOPLE:
        return people.person(Look(name, paint, *pick(rng, COMPLEXIONS)), action)
    if name == "bird" and scene.place == "lake" and action == "standing":
        action = "floating"
    if name == "ball":
        return things.floating_ball(paint) if scene.place == "pool" else things.ball(paint)
    draw = {
        "dog": animals.dog,
        "cat": animals.cat,
        "horse": animals.horse,
        "bird": animals.bird,
        "bus": vehicles.bus,
        "car": vehicles.car,
        "motorcycle": vehicles.motorcycle,
        "bicycle": vehicles.bicycle,
        "boat": vehicles.boat,
        "kite": things.kite,
    }[name]
    return draw(paint, action)


WATER = {"lake": 0.74, "beach": 0.665, "pool": 0.77}
LIFTS = {"jumping": 0.12, "bouncing": 0.2}


def _part(scene: Scene, name: str, colour: str, action: str, height: float, rng: random.Random) -> Part:
    """Draw one thing at its height in the image."""
    figure = _drawing(scene, name, colour, action, rng).moved(scale=height)
    rim = _rim(scene, colour)
    if action in ("flying", "falling"):
        box = figure.measured()
        centre = (0.29 if action == "flying" else 0.44) + 0.1 * rng.random()
        return Part(figure, rim, centre - (box.top + box.bottom) / 2, has_shadow=False)
    if _is_afloat(scene.place, name, action):
        foot = WATER[scene.place] + (0.06 * rng.random() if scene.place == "lake" else 0.0)
        return Part(figure, rim, foot, has_shadow=False, lift=LIFTS.get(action, 0.0))
    foot = 0.95 if scene.place == "pool" else 0.85 + 0.07 * rng.random()
    return Part(figure, rim, foot, has_shadow=True, lift=LIFTS.get(action, 0.0))


def _rim(scene: Scene, colour: str) -> Colour:
    if colour == "black" and (scene.place == "forest" or scene.time == "sunset"):
        return PALE_RIMS[scene.time]
    if colour != "black" and (scene.place, scene.time) == ("snow", "night"):
        return SNOW_AT_NIGHT
    return RIMS[scene.time]


def _is_afloat(place: str, name: str, action: str) -> bool:
    return (
        place == "lake"
        or name == "boat"
        or action == "swimming"
        or (place == "pool" and (action == "jumping" or name == "ball"))
    )


def _draw_many(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    """Draw two or three side by side, long ones in two rows."""
    count = NUMBERS[scene.number]
    height = kind_of(scene.subject).height * {2: 0.75, 3: 0.6}[count]
    parts = [_part(scene, scene.subject, scene.colour, scene.action, height, rng) for _ in range(count)]
    if rng.random() < 0.5:
        parts = [part._replace(figure=part.figure.moved(mirrored=True)) for part in parts]
    box = parts[0].figure.measured()
    is_flying = scene.action in ("flying", "falling")
    if not is_flying:  # on one ground
        parts = [part._replace(foot=parts[0].foot + 0.015 * (rng.random() - 0.5)) for part in parts]
    rooms = _columns(count)
    if count == 3 and not is_flying and (scene.subject, scene.place) != ("boat", "beach"):
        back, front = ROWS.get(scene.place, ROWS[""])
        left, right = (column._replace(top=back + 0.05, bottom=front) for column in _columns(2))
        in_rows = [Box(0.27, 2 * back - front + 0.05, 0.73, back), left, right]
        if _fitting(parts[0], box, in_rows[1]) > _fitting(parts[0], box, rooms[0]):
            rooms = in_rows
            parts = [part._replace(foot=room.bottom) for part, room in zip(parts, rooms, strict=True)]
    for part, room in zip(parts, rooms, strict=True):
        x = (room.left + room.right) / 2
        _place(canvas, [part], box, 0.5, (x, x), room)


def _columns(count: int) -> list[Box]:
    width = (ROOM.right - ROOM.left - GAP * (count - 1)) / count
    lefts = [ROOM.left + (width + GAP) * k for k in range(count)]
    return [ROOM._replace(left=left, right=left + width) for left in lefts]


def _fitting(part: Part, box: Box, room: Box) -> float:
    """Return how large a part can be, up to 1."""
    return min(
        1.0,
        (room.right - room.left) / (box.right - box.left),
        (room.bottom - room.top) / (part.lift - box.top),
    )


def _draw_related(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    colour, other = COLOURS[scene.colour], COLOURS[scene.companion_colour]
    if scene.action == "chasing":
        pair = relations.chasing(scene.subject, colour, scene.companion, other)
    elif scene.subject == "dog":
        pair = relations.dog_playing(colour, scene.companion, other)
    else:
        draw = {"riding": relations.riding, "playing": relations.playing, "holding": relations.holding}
        look = Look(scene.subject, colour, *pick(rng, COMPLEXIONS))
        pair = draw[scene.action](look, scene.companion, other)
    height = kind_of(scene.subject).height * SIZES[scene.size]
    is_afloat = (scene.action, scene.companion) == ("riding", "surfboard")
    foot = WATER[scene.place] - 0.03 if is_afloat else 0.86 + 0.07 * rng.random()
    # Towards the wider side, where the chased and the held are; riders have waves and dust behind them.
    is_mirrored = {"left": False, "right": True}.get(scene.side, rng.random() < 0.5)
    if scene.action == "riding":
        is_mirrored = not is_mirrored
    subject, companion = (
        Part(
            figure.moved(scale=height, mirrored=is_mirrored),
            _rim(scene, paint),
            foot,
            has_shadow=not is_afloat and stands,
        )
        for figure, paint, stands in (
            (pair.subject, scene.colour, scene.action != "riding"),
            (pair.companion, scene.companion_colour, pair.companion.measured().bottom > -0.06),
        )
    )
    parts = [subject, companion] if pair.is_in_front else [companion, subject]
    _place(canvas, parts, subject.figure.measured(), rng.random(), CENTRES_IN_COMPANY[scene.side])


def _draw_beside(canvas: Canvas, scene: Scene, rng: random.Random) -> None:
    """Draw a subject alone or with a companion beside it."""
    height = kind_of(scene.subject).height * SIZES[scene.size] * (0.94 + 0.12 * rng.random())
    subject = _part(scene, scene.subject, scene.colour, scene.action, height, rng)
    subject = subject._replace(figure=subject.figure.moved(mirrored=rng.random() < 0.5))
    box = subject.figure.measured()
    if scene.companion:
        companion = _companion(scene, box, subject, rng)
        _place(canvas, [companion, subject], box, rng.random(), CENTRES_IN_COMPANY[scene.side])
    else:
        _place(canvas, [subject], box, rng.random(), CENTRES[scene.side])


def _companion(scene: Scene, beside: Box, subject: Part, rng: random.Random) -> Part:
    """Draw what is beside a subject; long things stand partly behind it."""
    height = kind_of(scene.companion).height * (0.95 if scene.companion in PEOPLE else 0.85)
    part = _part(scene, scene.companion, scene.companion_colour, scene.companion_action, height, rng)
    figure = part.figure.moved(mirrored=rng.random() < 0.5)
    box = figure.measured()
    is_right = {"left": True, "right": False}.get(scene.side, rng.random() < 0.5)
    width = box.right - box.left
    gap = 0.04 - (0.2 * width if width > 0.4 else 0.0)
    shift = beside.right + gap - box.left if is_right else beside.left - gap - box.right
    foot = subject.foot - 0.03 if part.has_shadow and subject.has_shadow else part.foot
    return part._replace(figure=figure.moved(shift), foot=foot)


def _place(
    canvas: Canvas,
    parts: list[Part],
    subject: Box,
    aside: float,
    centres: tuple[float, float],
    room: Box = ROOM,
) -> None:
    """Draw parts, small enough for their room.

    Args:
        canvas: What they are drawn on.
        parts: From back to front.
        subject: What the subject covers.
        aside: Where its middle is between the two `centres`, from 0 to 1, if there is room.
        centres: Bounds of the middle.
        room: What the parts may cover.
    """
    boxes = [part.figure.measured() for part in parts]
    middle = (subject.left + subject.right) / 2
    before = middle - min(box.left for box in boxes)
    after = max(box.right for box in boxes) - middle
    x = centres[0] + (centres[1] - centres[0]) * aside
    if x < room.left + before or x > room.right - after:  # too far aside for its width
        best = room.left + (room.right - room.left) * before / (before + after)
        x = min(max(best, centres[0]), centres[1])
    scale = min(1.0, (x - room.left) / before, (room.right - x) / after)
    for part, box in zip(parts, boxes, strict=True):
        scale = min(scale, (part.foot - room.top) / (part.lift - box.top))
    for part, box in zip(parts, boxes, strict=True):
        if part.has_shadow:
            half = (box.right - box.left) * scale * 0.44
            canvas.shadow(x + ((box.left + box.right) / 2 - middle) * scale, part.foot, half, 0.02)
    for part in parts:
        figure = part.figure.moved(x - middle * scale, part.foot - part.lift * scale, scale)
        figure.draw(canvas, RIM, part.rim)
