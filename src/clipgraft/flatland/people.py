"""Men, women, boys and girls, in any attitude."""

from typing import NamedTuple

from clipgraft.flatland.attitudes import ADULT, ATTITUDES, SMALL, Build, Skeleton, skeleton
from clipgraft.flatland.canvas import INK, Colour, Point, shaded
from clipgraft.flatland.figure import Figure
from clipgraft.flatland.water import waterline

COMPLEXIONS: tuple[tuple[Colour, Colour], ...] = (
    ((252, 216, 184), (120, 72, 44)),
    ((252, 216, 184), (244, 200, 84)),
    ((228, 178, 132), (44, 38, 40)),
    ((164, 112, 78), (36, 32, 34)),
)
"""Skin and hair."""
TROUSERS: Colour = (56, 70, 112)
SHOES: Colour = (74, 60, 58)


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


def person(look: Look, action: str) -> Figure:
    """Draw a person who does something alone."""
    if action == "swimming":
        return _swimmer(look)
    return body(look, skeleton(look.build, ATTITUDES[action]))


def body(look: Look, joints: Skeleton, between: Figure | None = None) -> Figure:
    """Draw a person, with something between body and near arm."""
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
    if between:
        figure += between
    figure.layer()
    _arm(figure, look, joints, 1)
    _head(figure, look, shoulder[0] + 0.01, shoulder[1] - build.head * 0.86)
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
    """Return where a foot ends, at a right angle to the shin."""
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
        figure.blob(x - 0.52 * r, y + 0.34 * r, 0.68 * r, 1.25 * r, hair, turn=8)
    elif look.kind == "girl":
        for side in (-1, 1):
            figure.blob(x + side * 1.12 * r, y + 0.32 * r, 0.3 * r, 0.58 * r, hair, turn=-18 * side)
            figure.blob(x + side * 1.0 * r, y - 0.18 * r, 0.19 * r, 0.19 * r, look.clothes)
    figure.blob(x, y - (0.06 if look.has_dress else 0.16) * r, r, r * (0.98 if look.has_dress else 0.9), hair)
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
    """Draw what is above the water, whose surface is the ground."""
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
