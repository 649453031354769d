"""What is drawn: whole, countable, at its place, told from its background."""

from dataclasses import replace

import numpy as np
import pytest

from clipgraft.flatland import Scene, draw_scene
from clipgraft.flatland.figure import Figure
from clipgraft.flatland.world import (
    AFLOAT,
    BESIDE,
    NUMBERS,
    PLACES,
    RELATIONS,
    SUBJECTS,
    TIMES,
    WEATHERS,
    actions_in,
    kind_of,
    places_of,
)

ALONE = [
    (place, subject, action)
    for subject in SUBJECTS
    for place in (places_of(subject)[0], *AFLOAT)
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


def test_no_subject_is_cut_by_the_border():
    for place, subject, action in ALONE:
        assert not border(covered(of(subject, action, place, size="big"))).any(), (place, subject, action)


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


@pytest.mark.integration
def test_two_and_three_can_be_counted():
    for place, subject, action in ALONE:
        if action == "driving":  # with speed lines, apart from the vehicle
            continue
        parts = 2 if action in ("jumping", "bouncing") and place != "pool" else 1  # with the shadow
        for count in (2, 3):
            scene = of(subject, action, place, number=NUMBERS[count - 1])
            assert islands(covered(scene) > 8) == parts * count, scene


def test_little_is_smaller_than_big():
    for subject, kind in SUBJECTS.items():
        action, place = kind.actions[0], kind.places[0]
        sizes = [size for size in ("little", "", "big") if not size or size in kind.sizes]
        areas = [(covered(of(subject, action, place, size=size)) > 20).sum() for size in sizes]
        assert areas == sorted(areas), subject


@pytest.mark.integration
def test_a_subject_is_on_its_side():
    for place, subject, action in ALONE:
        for side, low, high in (("left", 0, 56), ("", 46, 82), ("right", 72, 128)):
            columns = np.flatnonzero((covered(of(subject, action, place, side=side)) > 20).any(axis=0))
            assert low < (columns[0] + columns[-1]) / 2 < high, (place, subject, action, side)


def test_riders_are_above_what_they_ride():
    for vehicle in RELATIONS["riding"]["man"]:
        place = places_of("man", "riding", vehicle)[0]
        colours = {"horse": "white"}
        scene = Scene(place, "day", "man", "red", "riding", "look")
        scene = replace(scene, companion=vehicle, companion_colour=colours.get(vehicle, "pink"))
        rows = [
            np.flatnonzero((changed(scene, replace(scene, **{name: other})) > 20).any(axis=1)).mean()
            for name, other in (("colour", "green"), ("companion_colour", "black"))
        ]
        assert rows[0] < rows[1] - 8, vehicle


def test_the_chased_is_ahead():
    for hunter, prey in (("dog", "cat"), ("dog", "bird"), ("dog", "ball"), ("cat", "bird")):
        for side, sign in (("left", 1), ("right", -1)):
            scene = of_two(hunter, "chasing", prey, side=side)
            columns = [
                np.flatnonzero((changed(scene, replace(scene, **{name: "black"})) > 20).any(axis=0)).mean()
                for name in ("colour", "companion_colour")
            ]
            assert sign * (columns[1] - columns[0]) > 20


@pytest.mark.integration
@pytest.mark.parametrize("subject", ["dog", "man"])
def test_no_colour_is_lost_on_any_background(subject):
    for place in PLACES:
        for action in actions_in(place, subject)[:1]:
            for time in TIMES:
                for colour in SUBJECTS[subject].colours:
                    seen = covered(Scene(place, time, subject, colour, action, "look")) > 40
                    assert seen.sum() > 350, (place, time, colour)


def test_a_place_is_the_same_without_its_subject():
    alone = of("dog", "sitting", "garden", side="left")
    assert (covered(alone)[:, 100:] == 0).all()


@pytest.mark.parametrize("time", TIMES)
def test_weather_can_be_seen_everywhere(time):
    for place in PLACES:
        clear = Scene(place, time, "", "", "", "look")
        images = {weather: replace(clear, weather=weather) for weather in WEATHERS}
        for weather in WEATHERS[1:]:
            assert (changed(clear, images[weather]) > 12).mean() > 0.08, (place, weather)
        assert (changed(images["rainy"], images["cloudy"])[64:] > 12).mean() > 0.01, place


def test_figures_are_mirrored_turned_scaled_then_moved():
    figure = Figure()
    figure.area([(1, 0), (2, 0), (2, -1)], (0, 0, 0))
    figure.stroke([(1, 0), (2, 0)], 0.5, (0, 0, 0))
    moved = figure.moved(10, 20, 2, turn=90, mirrored=True).layers[0]
    assert moved[0].points == ((10, 18), (10, 16), (12, 16))
    assert moved[1].width == 1


def test_a_figure_is_measured_with_the_width_of_its_lines():
    figure = Figure()
    figure.stroke([(0, 0), (1, 0)], 0.5, (0, 0, 0))
    figure.blob(0, -1, 1, 0.5, (0, 0, 0), turn=90)
    assert figure.measured() == pytest.approx((-0.5, -2, 1.25, 0.25))
