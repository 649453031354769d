"""What is drawn: whole, countable, at its place, told from its background."""

import math
from dataclasses import replace

import numpy as np
import pytest

from clipgraft.flatland import Scene, draw_scene
from clipgraft.flatland.figure import Figure
from clipgraft.flatland.world import (
    BESIDE,
    COLOURS,
    NUMBERS,
    PLACES,
    RELATIONS,
    SUBJECTS,
    TIMES,
    actions_in,
    kind_of,
    places_of,
)

ALONE = [
    (place, subject, action)
    for subject in SUBJECTS
    for place in PLACES
    for action in actions_in(place, subject)
]
RELATED = [
    (subject, action, companion)
    for action, pairs in RELATIONS.items()
    for subject, companions in pairs.items()
    for companion in companions
]


def of(subject: str, action: str, place: str, look: str = "look", **others: str) -> Scene:
    colour = SUBJECTS[subject].colours[0]
    return Scene(place, "day", subject, colour, action, look, **others)


def of_two(subject: str, action: str, companion: str, look: str = "look", **others: str) -> Scene:
    place = places_of(subject, action, companion)[0]
    doing = action or actions_in(place, subject)[0]
    colour = kind_of(companion).colours[-1]
    return of(subject, doing, place, look, companion=companion, companion_colour=colour, **others)


def changed(scene: Scene, other: Scene) -> np.ndarray:
    """By how much two images differ, at each pixel."""
    first, second = (np.asarray(draw_scene(each)).astype(int) for each in (scene, other))
    return np.abs(first - second).max(axis=2)


def covered(scene: Scene) -> np.ndarray:
    """By how much the image differs from the one of the empty place."""
    nobody = {"subject": "", "action": "", "colour": "", "companion": "", "companion_colour": ""}
    return changed(scene, replace(scene, **nobody, number="", size="", side=""))


def islands(mask: np.ndarray) -> int:
    """Count connected areas of at least 12 pixels."""
    left, count = mask.copy(), 0
    while left.any():
        stack, size = [tuple(np.argwhere(left)[0])], 0
        while stack:
            y, x = stack.pop()
            if 0 <= y < left.shape[0] and 0 <= x < left.shape[1] and left[y, x]:
                left[y, x] = False
                size += 1
                stack += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        count += size >= 12
    return count


def border(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


@pytest.mark.parametrize("size", ["", "big"])
def test_no_subject_is_cut_by_the_border(size):
    for place, subject, action in ALONE:
        assert not border(covered(of(subject, action, place, size=size))).any(), (place, subject, action)


@pytest.mark.parametrize("side", ["", "left", "right"])
def test_no_relation_is_cut_by_the_border(side):
    for names in RELATED:
        difference = covered(of_two(*names, side=side))
        assert difference.any()
        assert not border(difference).any(), names


def test_no_two_beside_each_other_are_cut_by_the_border():
    for subject, companions in BESIDE.items():
        for companion in companions:
            assert not border(covered(of_two(subject, "", companion))).any(), (subject, companion)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_two_and_three_can_be_counted(subject):
    for place in places_of(subject):
        for action in actions_in(place, subject):
            for count, number in enumerate(NUMBERS[1:], start=2):
                scene = of(subject, action, place, number=number)
                # Shadows are wider than those who throw them: less than half as dark as any rim is.
                assert islands(covered(scene) > 110) >= 1
                gaps = np.flatnonzero(~(covered(scene) > 60).any(axis=0))
                assert len(gaps) >= 2, (place, action, count)


def test_little_is_smaller_than_big():
    for subject, kind in SUBJECTS.items():
        action, place = kind.actions[0], kind.places[0]
        sizes = [size for size in ("little", "", "big") if not size or size in kind.sizes]
        areas = [(covered(of(subject, action, place, size=size)) > 20).sum() for size in sizes]
        assert areas == sorted(areas), subject


def test_a_subject_is_on_its_side():
    for place, subject, action in ALONE:
        for side, low, high in (("left", 0, 56), ("", 46, 82), ("right", 72, 128)):
            columns = np.flatnonzero((covered(of(subject, action, place, side=side)) > 20).any(axis=0))
            assert low < (columns[0] + columns[-1]) / 2 < high, (place, subject, action, side)
