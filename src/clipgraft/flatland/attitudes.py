"""Proportions of people and what their limbs do."""

from typing import NamedTuple

from clipgraft.flatland.canvas import Point


class Build(NamedTuple):
    """Proportions of a body that is one unit high."""

    leg: float
    torso: float
    arm: float
    head: float
    """Radius."""
    width: float
    """Of the torso."""
    limb: float
    """Width of a leg."""


ADULT = Build(leg=0.44, torso=0.27, arm=0.36, head=0.135, width=0.24, limb=0.115)
SMALL = Build(leg=0.34, torso=0.23, arm=0.36, head=0.19, width=0.24, limb=0.125)


class Attitude(NamedTuple):
    """Where the parts of a body are.

    The far limb of each pair comes first. Hands are relative to the shoulder in lengths of an arm, feet to
    the hip in lengths of a leg; a bend moves the knee forwards or the elbow backwards.
    """

    hands: tuple[Point, Point]
    elbows: tuple[float, float]
    feet: tuple[Point, Point]
    knees: tuple[float, float]
    lean: float = 0.0
    """How far the shoulder is before the hip, in lengths of the torso."""
    is_on_ground: bool = False
    """Whether the hip is on the ground."""


ATTITUDES: dict[str, Attitude] = {
    "standing": Attitude(((0.34, 0.9), (-0.34, 0.9)), (0.05, -0.05), ((0.17, 0.96), (-0.17, 0.96)), (0, 0)),
    "walking": Attitude(
        ((0.55, 0.72), (-0.5, 0.78)), (0.2, 0.12), ((-0.48, 0.86), (0.5, 0.93)), (0.12, 0.08), 0.06
    ),
    "running": Attitude(
        ((-0.62, 0.42), (0.72, 0.22)), (0.42, 0.5), ((0.62, 0.88), (-0.86, 0.62)), (0.16, 0.24), 0.26
    ),
    "jumping": Attitude(((0.9, -0.62), (-0.9, -0.62)), (0.0, 0.0), ((0.5, 0.66), (-0.62, 0.6)), (0.36, 0.3)),
    "sitting": Attitude(
        ((0.72, 0.55), (-0.42, 0.78)), (0.2, 0.0), ((0.98, 0.08), (1.04, 0.12)), (0.3, 0.16), -0.12, True
    ),
    "kicking": Attitude(
        ((0.66, 0.3), (-0.78, 0.2)), (0.1, -0.1), ((-0.16, 0.97), (0.84, 0.55)), (0.06, 0.12), -0.16
    ),
    "throwing": Attitude(
        ((-0.55, 0.6), (0.95, -0.2)), (0.2, 0.05), ((-0.36, 0.92), (0.38, 0.92)), (0.06, 0.12), 0.14
    ),
    "holding up": Attitude(
        ((-0.34, 0.9), (0.62, -0.02)), (0.1, 0.4), ((-0.26, 0.95), (0.26, 0.95)), (0.04, 0.04)
    ),
    "pulling": Attitude(
        ((0.8, -0.6), (-0.5, 0.72)), (0.1, 0.1), ((-0.34, 0.93), (0.34, 0.93)), (0.04, 0.08), -0.12
    ),
    "carrying": Attitude(((0.72, 0.5), (0.72, 0.56)), (0.3, 0.35), ((0.17, 0.96), (-0.17, 0.96)), (0.0, 0.0)),
    "balancing": Attitude(
        ((0.95, -0.06), (-0.95, -0.1)), (0.1, -0.1), ((0.42, 0.74), (-0.42, 0.74)), (0.24, -0.1), 0.16
    ),
}


class Skeleton(NamedTuple):
    """Where joints are; the far one of each pair comes first."""

    hip: Point
    shoulder: Point
    hands: tuple[Point, Point]
    elbows: tuple[float, float]
    feet: tuple[Point, Point]
    knees: tuple[float, float]


def skeleton(build: Build, attitude: Attitude) -> Skeleton:
    """Return the joints of a body whose feet are on the ground."""
    drop = max(y for _, y in attitude.feet) * build.leg
    hip = (0.0, -0.09 if attitude.is_on_ground else -drop - 0.035)
    shoulder = (hip[0] + attitude.lean * build.torso, hip[1] - build.torso)
    hands, feet = (
        tuple((start[0] + x * length, start[1] + y * length) for x, y in ends)
        for start, length, ends in ((shoulder, build.arm, attitude.hands), (hip, build.leg, attitude.feet))
    )
    return Skeleton(hip, shoulder, hands, attitude.elbows, feet, attitude.knees)  # type: ignore[arg-type]
