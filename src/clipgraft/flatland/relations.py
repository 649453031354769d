"""What a subject does with its companion: riding, playing, holding, chasing."""

from typing import NamedTuple

from clipgraft.flatland import animals, things, vehicles
from clipgraft.flatland.attitudes import ADULT, ATTITUDES, SMALL, Skeleton, skeleton
from clipgraft.flatland.canvas import Colour, Point
from clipgraft.flatland.figure import Figure
from clipgraft.flatland.people import Look, body
from clipgraft.flatland.water import FOAM, waterline


class Pair(NamedTuple):
    """A subject and its companion, in units of the subject's height."""

    subject: Figure
    companion: Figure
    is_in_front: bool = False
    """Whether the companion is drawn over the subject."""


def riding(look: Look, vehicle: str, colour: Colour) -> Pair:
    """Draw a person on a vehicle, a horse or a board."""
    if vehicle in ("skateboard", "surfboard"):
        return _balancing(look, vehicle, colour)
    scale, saddle, hands, feet, lean = _SEATS[vehicle]
    if look.build is SMALL and vehicle != "horse":
        scale *= 0.86
    drawn = {
        "bicycle": lambda: vehicles.bicycle(colour, "standing"),
        "motorcycle": lambda: vehicles.motorcycle(colour, "ridden"),
        "horse": lambda: animals.horse(colour, "running"),
    }[vehicle]()
    build = look.build
    hip = (saddle[0] * scale, saddle[1] * scale - build.limb * 0.4)
    shoulder = (hip[0] + lean * build.torso, hip[1] - build.torso * (1 - lean * lean / 2))
    ends = tuple((x * scale, y * scale) for x, y in (*hands, *feet))
    joints = Skeleton(hip, shoulder, ends[:2], (0.1, 0.12), ends[2:], (0.3, 0.22))  # type: ignore[arg-type]
    return Pair(body(look, joints), drawn.moved(scale=scale))


_SEATS: dict[str, tuple[float, Point, tuple[Point, Point], tuple[Point, Point], float]] = {
    "bicycle": (0.66, (-0.2, -0.88), ((0.42, -0.96), (0.4, -0.93)), ((0.16, -0.36), (0.02, -0.1)), 0.4),
    "motorcycle": (0.72, (-0.32, -0.76), ((0.28, -0.96), (0.26, -0.92)), ((0.14, -0.2), (0.1, -0.18)), 0.3),
    "horse": (1.0, (-0.04, -0.7), ((0.32, -0.76), (0.3, -0.74)), ((0.12, -0.36), (0.1, -0.34)), 0.12),
}
"""Scale, saddle, where hands and feet are, and the rider's lean."""


def _balancing(look: Look, board: str, colour: Colour) -> Pair:
    figure = body(look, skeleton(look.build, ATTITUDES["balancing"]))
    if board == "skateboard":
        return Pair(figure.moved(0, -0.15), things.skateboard(colour).moved(scale=0.72))
    crest = Figure()
    crest.area(
        [
            (-0.72, 0.14),
            (-0.9, -0.16),
            (-0.78, -0.26),
            (-0.58, -0.1),
            (-0.2, -0.04),
            (0.5, 0.02),
            (0.66, 0.14),
        ],
        (120, 196, 236),
    )
    crest.blob(-0.84, -0.2, 0.09, 0.08, FOAM)
    crest.blob(-0.72, -0.26, 0.08, 0.07, FOAM)
    plank = things.surfboard(colour).moved(0.02, 0.03, 1.1, turn=-5)
    return Pair(figure.moved(0, -0.05), crest + plank + waterline(-0.86, 0.72).moved(0, 0.12))


def playing(look: Look, toy: str, colour: Colour) -> Pair:
    """Draw a person who kicks a ball or throws a frisbee."""
    size = 0.3 if look.build is ADULT else 0.38
    joints = skeleton(look.build, ATTITUDES["kicking" if toy == "ball" else "throwing"])
    if toy == "ball":
        x, y = joints.feet[1]
        return Pair(
            body(look, joints), things.ball(colour).moved(x + 0.12 + size * 0.62, y + size * 0.2, size)
        )
    x, y = joints.hands[1]
    return Pair(body(look, joints), things.frisbee(colour).moved(x + 0.34, y - 0.02, size * 1.35, turn=-12))


def holding(look: Look, thing: str, colour: Colour) -> Pair:
    """Draw a person with an umbrella, kite, ball or surfboard."""
    is_adult = look.build is ADULT
    attitude = {"umbrella": "holding up", "kite": "pulling", "ball": "carrying", "surfboard": "standing"}[
        thing
    ]
    joints = skeleton(look.build, ATTITUDES[attitude])
    x, y = joints.hands[0 if thing == "kite" else 1]
    if thing == "umbrella":
        held = things.umbrella(colour).moved(x, y + 0.02, 0.68 if is_adult else 0.78, turn=-12)
    elif thing == "kite":
        held = _kite_on_string(colour, (x, y), 0.5 if is_adult else 0.6)
    elif thing == "ball":
        held = things.ball(colour).moved(x + 0.04, y + 0.17, 0.3 if is_adult else 0.36)
    else:
        held = things.surfboard(colour).moved(-0.02, joints.hip[1] - 0.02, 1.25, turn=-16)
    if thing == "kite":
        return Pair(body(look, joints), held)
    return Pair(body(look, joints, between=held), held)


def _kite_on_string(colour: Colour, hand: Point, size: float) -> Figure:
    x, y = hand[0] + 0.72, hand[1] - 0.16
    string = Figure()
    points = [hand, (x - 0.42, y + 0.1), (x - 0.16, y + 0.02), (x + 0.06, y - 0.3 * size)]
    string.stroke(points, 0.022, (104, 108, 124), detail=True)
    return string + things.kite(colour, "flying").moved(x, y, size, turn=18)


def dog_playing(colour: Colour, toy: str, toy_colour: Colour) -> Pair:
    """Draw a dog with a ball, a stick or a frisbee."""
    if toy == "ball":
        return Pair(animals.dog(colour, "bowing"), things.ball(toy_colour).moved(1.06, 0.0, 0.42))
    if toy == "stick":
        x, y = animals.dog_mouth("walking")
        return Pair(
            animals.dog(colour, "walking"),
            things.stick(toy_colour).moved(x + 0.02, y + 0.03, 0.72),
            is_in_front=True,
        )
    return Pair(
        animals.dog(colour, "jumping").moved(0, -0.18),
        things.frisbee(toy_colour).moved(0.98, -1.06, 0.5, turn=-14),
    )


def chasing(hunter: str, colour: Colour, prey: str, prey_colour: Colour) -> Pair:
    """Draw a dog or a cat that runs after something."""
    runner = (animals.dog if hunter == "dog" else animals.cat)(colour, "running")
    if prey == "ball":
        return Pair(runner, things.ball(prey_colour).moved(1.24, -0.1, 0.44))
    if prey == "bird":
        return Pair(runner, animals.bird(prey_colour, "flying").moved(1.56, -0.5, 0.66))
    return Pair(runner, animals.cat(prey_colour, "running").moved(1.72, 0.0, 0.8))
