"""Men, women, boys and girls, in any attitude."""

from typing import NamedTuple

from clipgraft.flatland.canvas import INK, WHITE, Colour, Point, mix, shaded
from clipgraft.flatland.figure import Figure

COMPLEXIONS: tuple[tuple[Colour, Colour], ...] = (
    ((252, 216, 184), (120, 72, 44)),
    ((252, 216, 184), (244, 200, 84)),
    ((228, 178, 132), (44, 38, 40)),
    ((150, 100, 68), (36, 32, 34)),
)
"""Skin and hair."""
TROUSERS: Colour = (56, 70, 112)
SHOES: Colour = (74, 60, 58)
FOAM: Colour = (240, 248, 255)


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


class Look(NamedTuple):
    """Who is drawn, and in what colours."""

    kind: str
    clothes: Colour
    skin: Colour
    hair: Colour

    @property
    def build(self) -> Build:
        """The body's proportions."""
        return ADULT if self.kind in ("man", "woman") else SMALL

    @property
    def has_dress(self) -> bool:
        """Whether the clothes' colour is that of a dress."""
        return self.kind in ("woman", "girl")


class Attitude(NamedTuple):
    """Where the parts of a body are; the far limb of each pair comes first.

    Hands are relative to the shoulder in lengths of an arm, feet to the hip in lengths of a leg; a bend moves
    the knee forwards or the elbow backwards.
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
        ((-0.5, 0.72), (0.7, -0.62)), (0.1, 0.1), ((-0.34, 0.93), (0.34, 0.93)), (0.04, 0.08), -0.12
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
    """Return the joints of a body, with the lowest foot on the ground."""
    drop = max(y for _, y in attitude.feet) * build.leg
    hip = (0.0, -0.09 if attitude.is_on_ground else -drop - 0.035)
    shoulder = (hip[0] + attitude.lean * build.torso, hip[1] - build.torso)
    hands, feet = (
        tuple((start[0] + x * length, start[1] + y * length) for x, y in ends)
        for start, length, ends in ((shoulder, build.arm, attitude.hands), (hip, build.leg, attitude.feet))
    )
    return Skeleton(hip, shoulder, hands, attitude.elbows, feet, attitude.knees)  # type: ignore[arg-type]


def person(look: Look, action: str) -> Figure:
    """Draw a person who does something alone."""
    if action == "swimming":
        return _swimmer(look)
    return body(look, skeleton(look.build, ATTITUDES[action]))


def body(look: Look, joints: Skeleton, between: Figure | None = None) -> Figure:
    """Draw a person by the joints, with something between body and near arm."""
    figure = Figure()
    build, clothes = look.build, look.clothes
    _arm(figure, look, joints, 0)
    for side in (0, 1):
        _leg(figure, look, joints, side)
    hip, shoulder = joints.hip, joints.shoulder
    half = build.width / 2
    if look.has_dress:
        _dress(figure, look, joints)
    figure.stroke([shoulder, (shoulder[0], shoulder[1] - build.head * 0.5)], build.limb * 0.9, look.skin)
    chest = (shoulder[0], shoulder[1] + half * 0.75)
    waist = (hip[0], hip[1] - half * 0.35)
    figure.stroke([chest, waist], build.width * (0.82 if look.has_dress else 1), clothes)
    _head(figure, look, shoulder[0] + 0.01, shoulder[1] - build.head * 0.86)
    if between:
        figure += between
    figure.layer()
    _arm(figure, look, joints, 1)
    return figure


def _joint(start: Point, end: Point, bend: float) -> Point:
    """Return a knee (bend > 0: forwards)."""
    (x0, y0), (x1, y1) = start, end
    return (x0 + x1) / 2 + bend * (y1 - y0), (y0 + y1) / 2 - bend * (x1 - x0)


def _leg(figure: Figure, look: Look, joints: Skeleton, side: int) -> None:
    foot, build = joints.feet[side], look.build
    spread = build.width * 0.2 * (1 if side == 0 else -1)
    hip = (joints.hip[0] + spread, joints.hip[1])
    knee = _joint(hip, foot, joints.knees[side])
    skin = look.skin if side else shaded(look.skin, 0.14)
    trousers = TROUSERS if side else shaded(TROUSERS)
    if look.kind == "man":
        figure.stroke([hip, knee, foot], build.limb, trousers)
    else:
        figure.stroke([hip, knee, foot], build.limb * 0.88, skin)
        if look.kind == "boy":
            figure.stroke(
                [hip, ((hip[0] + 2 * knee[0]) / 3, (hip[1] + 2 * knee[1]) / 3)], build.limb * 1.1, trousers
            )
    toe = _toe(knee, foot, build.limb * 0.55)
    figure.stroke([foot, toe], build.limb * 0.8, SHOES)


def _toe(knee: Point, foot: Point, length: float) -> Point:
    """Return where a foot ends: forwards, at a right angle to the shin."""
    dx, dy = foot[0] - knee[0], foot[1] - knee[1]
    size = max((dx * dx + dy * dy) ** 0.5, 1e-6)
    return foot[0] + length * dy / size, foot[1] - length * dx / size


def _arm(figure: Figure, look: Look, joints: Skeleton, side: int) -> None:
    build = look.build
    away = 0.26 if side == 0 else -0.26
    start = (joints.shoulder[0] + away * build.width, joints.shoulder[1] + build.limb * 0.35)
    hand = joints.hands[side]
    elbow = _joint(start, hand, -joints.elbows[side])
    skin = look.skin if side else shaded(look.skin, 0.14)
    sleeve = look.clothes if side else shaded(look.clothes, 0.2)
    figure.stroke([start, elbow, hand], build.limb * 0.66, skin)
    figure.blob(*hand, build.limb * 0.46, build.limb * 0.46, skin)
    figure.stroke([start, elbow], build.limb * 0.8, sleeve)


def _dress(figure: Figure, look: Look, joints: Skeleton) -> None:
    """Draw a skirt over the thighs."""
    (hx, hy), build = joints.hip, look.build
    knees = [_joint(joints.hip, joints.feet[side], joints.knees[side]) for side in (0, 1)]
    half = build.width / 2
    if max(y for _, y in knees) < hy + 0.1:  # sitting, riding: along the thighs
        for x, y in knees:
            figure.stroke(
                [(hx, hy), (hx + 0.85 * (x - hx), hy + 0.85 * (y - hy))], build.limb * 1.5, look.clothes
            )
        return
    (bx, by), (fx, fy) = sorted(knees)
    if abs(by - fy) > 0.03:  # running
        figure.area(
            [
                (hx - half * 0.8, hy - 0.1),
                (hx + half * 0.8, hy - 0.1),
                (fx + 0.02, fy - 0.05),
                (fx, fy + 0.05),
                (bx, by),
                (bx - 0.09, by - 0.06),
            ],
            look.clothes,
        )
        return
    left = min(hx - half * 1.25, *(x - 0.05 for x, _ in knees))
    right = max(hx + half * 1.25, *(x + 0.05 for x, _ in knees))
    hem = hy + build.leg * 0.36
    figure.area(
        [(hx - half * 0.7, hy - 0.1), (hx + half * 0.7, hy - 0.1), (right, hem), (left, hem)], look.clothes
    )


def _head(figure: Figure, look: Look, x: float, y: float) -> None:
    r, hair, skin = look.build.head, look.hair, look.skin
    figure.layer()
    if look.kind == "woman":
        figure.blob(x - 0.3 * r, y + 0.35 * r, 0.95 * r, 1.35 * r, hair)
    elif look.kind == "girl":
        for side in (-1, 1):
            figure.blob(x + side * 1.12 * r, y + 0.32 * r, 0.3 * r, 0.58 * r, hair, turn=-18 * side)
            figure.blob(x + side * 1.0 * r, y - 0.18 * r, 0.19 * r, 0.19 * r, look.clothes)
    figure.blob(x, y - 0.06 * r, r, r * 0.98, hair)
    figure.blob(x + 0.13 * r, y + 0.14 * r, 0.84 * r, 0.82 * r, skin)
    if look.kind == "boy":
        figure.area(
            [
                (x - r, y - 0.24 * r),
                (x - 0.78 * r, y - 0.78 * r),
                (x - 0.3 * r, y - 1.1 * r),
                (x + 0.3 * r, y - 1.1 * r),
                (x + 0.78 * r, y - 0.78 * r),
                (x + r, y - 0.24 * r),
            ],
            look.clothes,
        )
        figure.stroke(
            [(x + 0.5 * r, y - 0.3 * r), (x + 1.38 * r, y - 0.22 * r)], 0.24 * r, shaded(look.clothes)
        )
    else:
        figure.area(
            [
                (x - 0.9 * r, y - 0.2 * r),
                (x - 0.5 * r, y - 0.85 * r),
                (x + 0.4 * r, y - 0.88 * r),
                (x + 0.92 * r, y - 0.3 * r),
                (x + 0.3 * r, y - 0.46 * r),
            ],
            hair,
            detail=True,
        )
    if not look.has_dress:
        figure.blob(x - 0.5 * r, y + 0.24 * r, 0.17 * r, 0.22 * r, shaded(skin, 0.12), detail=True)  # the ear
    for eye in (0.08, 0.6):
        figure.blob(x + eye * r, y + 0.1 * r, 0.115 * r, 0.16 * r, INK, detail=True)
    figure.stroke(
        [(x + 0.08 * r, y + 0.5 * r), (x + 0.34 * r, y + 0.62 * r), (x + 0.6 * r, y + 0.5 * r)],
        0.1 * r,
        (200, 70, 70),
        detail=True,
    )


def _swimmer(look: Look) -> Figure:
    """Draw head, arm and back of somebody in the water; its surface is at y = 0."""
    figure, build = Figure(), look.build
    figure.stroke([(0.05, -0.06), (0.34, -0.16), (0.56, -0.05)], build.limb * 0.66, shaded(look.skin, 0.14))
    figure.area(
        [(-0.52, 0.02), (-0.42, -0.08), (-0.2, -0.15), (0.02, -0.17), (0.18, -0.1), (0.2, 0.02)], look.clothes
    )
    figure.stroke([(-0.52, -0.02), (-0.66, -0.1)], build.limb * 0.8, look.skin)
    _head(figure, look, 0.26, -build.head * 0.95)
    figure.layer()
    figure.stroke([(0.0, -0.1), (-0.08, -0.34), (0.16, -0.44)], build.limb * 0.7, look.skin)
    figure.stroke([(0.0, -0.1), (-0.06, -0.26)], build.limb * 0.85, look.clothes)
    figure += waterline(-0.74, 0.66)
    return figure


def waterline(left: float, right: float) -> Figure:
    """Draw the foam around something in the water."""
    figure = Figure()
    steps = 6
    figure.stroke(
        [(left + (right - left) * k / steps, 0.02 * (-1) ** k + 0.01) for k in range(steps + 1)],
        0.06,
        FOAM,
        detail=True,
    )
    return figure
