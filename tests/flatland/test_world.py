"""Scenes of flatland: sensible, with all that the world has, and what is held out never in train."""

from collections import Counter

import pytest

from clipgraft.flatland import ATTRIBUTES, Scene, sample_scene
from clipgraft.flatland.world import (
    AFLOAT,
    BESIDE,
    COLOURS,
    HELD_OUT_NUMBERS,
    HELD_OUT_PAIRS,
    HELD_OUT_RELATIONS,
    HELD_OUT_TRIPLES,
    PLACES,
    RELATIONS,
    SUBJECTS,
    TIMES,
    WEATHERS,
    actions_in,
    kind_of,
    places_of,
)


@pytest.fixture(scope="module")
def train():
    return [sample_scene(0, index, "train") for index in range(12_000)]


def test_held_out_combinations_are_in_test_and_never_in_train(train):
    test = [sample_scene(0, index, "test") for index in range(7000, 8000)]
    assert ("dog", "beach", "sunset") in HELD_OUT_TRIPLES
    for scene in train:
        for subject, colour in ((scene.subject, scene.colour), (scene.companion, scene.companion_colour)):
            assert (subject, scene.place, scene.time) not in HELD_OUT_TRIPLES
            assert (subject, colour) not in HELD_OUT_PAIRS
        assert (scene.number, scene.subject) not in HELD_OUT_NUMBERS
        relation = scene.action if scene.action in RELATIONS else ""
        assert (scene.subject, relation, scene.companion) not in HELD_OUT_RELATIONS
    assert sum(scene.is_held_out for scene in test) > 200


@pytest.mark.parametrize(
    "changed",
    [
        {"number": "two"},
        {"subject": "dog", "companion": "horse"},
        {"subject": "girl", "action": "riding", "companion": "horse"},
    ],
)
def test_numbers_and_relations_are_held_out_too(changed):
    values = {"subject": "horse", "action": "standing"} | changed
    scene = Scene("park", "day", colour="brown", look="", **values)
    assert scene.is_held_out == (values.get("companion") != "horse" or values["action"] == "riding")


def test_every_word_of_the_world_comes_up(train):
    assert {scene.place for scene in train} == set(PLACES)
    assert {scene.time for scene in train} == set(TIMES)
    assert {scene.weather for scene in train} == set(WEATHERS)
    assert {scene.subject for scene in train} == {*SUBJECTS, ""}
    assert {scene.colour for scene in train} == {*COLOURS, ""}
    shown = {(scene.subject, scene.action) for scene in train if scene.subject and not scene.relation}
    assert shown == {
        (name, action) for name in SUBJECTS for place in PLACES for action in actions_in(place, name)
    }


def test_companions_and_relations_are_those_of_the_tables(train):
    shown = {(scene.subject, scene.relation, scene.companion) for scene in train if scene.companion}
    beside = {(subject, "", other) for subject, others in BESIDE.items() for other in others}
    related = {
        (subject, action, other)
        for action, subjects in RELATIONS.items()
        for subject, others in subjects.items()
        for other in others
    }
    assert shown == (beside | related) - HELD_OUT_RELATIONS
    order = list(SUBJECTS)
    assert all(order.index(subject) < order.index(other) for subject, _, other in beside)


def test_shares_of_a_scenes_parts_are_those_of_the_plan(train):
    shares = {
        name: sum(bool(getattr(scene, name)) for scene in train) / len(train)
        for name in ("subject", "companion", "relation", "number", "weather", "size", "side")
    }
    planned = {"subject": 0.92, "companion": 0.25, "relation": 0.125, "number": 0.15}
    planned |= {"weather": 0.25, "size": 0.2, "side": 0.2}
    assert shares == pytest.approx(planned, abs=0.02)


def test_a_scene_is_one_that_can_be_drawn(train):
    for scene in train:
        if scene.number:
            assert (scene.companion, scene.size, scene.side) == ("", "", "")
        if scene.size == "big":
            assert (scene.companion, scene.side) == ("", "")
        if scene.subject:
            assert scene.place in places_of(scene.subject, scene.relation, scene.companion)
            assert scene.colour in SUBJECTS[scene.subject].colours
        if scene.companion:
            assert scene.companion_colour in kind_of(scene.companion).colours
        assert (scene.place, scene.weather) != ("snow", "rainy")


def test_boats_float_and_cars_do_not(train):
    assert {scene.place for scene in train if scene.subject == "boat"} == {"beach", "lake"}
    for place in AFLOAT:
        wet = Counter(scene.subject for scene in train if scene.place == place and not scene.relation)
        assert wet.keys() - {""} == AFLOAT[place].keys()


def test_companions_beside_a_subject_do_what_suits_them():
    def other(place: str, companion: str, action: str = "walking") -> str:
        return Scene(place, "day", "man", "red", action, "", companion=companion).companion_action

    assert other("park", "woman") == "walking"
    assert other("park", "dog") == "sitting"
    assert other("lake", "dog", "swimming") == "swimming"
    assert other("park", "ball", "playing") == ""


def test_labels_are_the_numbers_of_the_attributes_values():
    scene = Scene("garden", "night", "", "", "", "look", weather="rainy")
    empty = [values[label] for values, label in zip(ATTRIBUTES.values(), scene.labels, strict=True)]
    assert empty == ["garden", "night", "rainy", *[""] * 8]
    girl = Scene(
        "beach", "sunset", "girl", "blue", "holding", "", "foggy", "", "little", "left", "kite", "red"
    )
    read = {
        name: values[label] for (name, values), label in zip(ATTRIBUTES.items(), girl.labels, strict=True)
    }
    assert read == {name: getattr(girl, name) for name in ATTRIBUTES}
