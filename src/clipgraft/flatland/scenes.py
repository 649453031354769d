"""Random scenes, drawn from (seed, index), the same on every machine and Python."""

import random
from dataclasses import replace

from clipgraft.flatland.world import (
    BESIDE,
    NUMBERS,
    PLACES,
    RELATIONS,
    SIDES,
    SUBJECTS,
    TIMES,
    WEATHERS,
    Scene,
    actions_in,
    kind_of,
    pick,
    places_of,
)

EMPTY_SHARE = 0.08
"""Share of scenes without a subject."""
RELATION_SHARE, BESIDE_SHARE = 0.125, 0.125
"""Shares of scenes with a companion."""
NUMBER_SHARE = 0.15
WEATHER_SHARE = 0.25
SIZE_SHARE, SIDE_SHARE = 0.35, 0.28
"""Of the scenes with a subject whose size or side can be named; 0.2 of all."""
HELD_OUT_SHARE = 0.3
"""Share of scenes outside train that show a held-out combination."""


def sample_scene(seed: int, index: int, split: str) -> Scene:
    """Draw the scene of one image.

    Args:
        seed: Of the whole set.
        index: The image's number.
        split: "train" never gives a held-out combination; the others do in part.
    """
    look = f"flatland/{seed}/{index}"
    rng = random.Random(look)
    if rng.random() < EMPTY_SHARE:
        return _with_weather(Scene(pick(rng, PLACES), pick(rng, TIMES), "", "", "", look), rng)
    wants_held_out = split != "train" and rng.random() < HELD_OUT_SHARE
    kind = rng.random() * (1 - EMPTY_SHARE)
    while True:
        scene = _sample_subject(rng, look, kind)
        if scene.is_held_out == wants_held_out:
            return _with_weather(scene, rng)


def _sample_subject(rng: random.Random, look: str, kind: float) -> Scene:
    """Draw a scene with a subject; `kind` decides about company and number."""
    if kind < RELATION_SHARE:
        return _with_size_and_side(_sample_relation(rng, look), rng)
    if kind < RELATION_SHARE + BESIDE_SHARE:
        return _with_size_and_side(_sample_two(rng, look), rng)
    subject = pick(rng, list(SUBJECTS))
    scene = _acting(rng, look, subject, pick(rng, places_of(subject)))
    if kind < RELATION_SHARE + BESIDE_SHARE + NUMBER_SHARE:
        return replace(scene, number=pick(rng, NUMBERS[1:]))
    return _with_size_and_side(scene, rng)


def _sample_relation(rng: random.Random, look: str) -> Scene:
    action = pick(rng, list(RELATIONS))
    subject = pick(rng, list(RELATIONS[action]))
    companion = pick(rng, RELATIONS[action][subject])
    place = pick(rng, places_of(subject, action, companion))
    scene = _acting(rng, look, subject, place)
    return replace(
        scene,
        action=action,
        companion=companion,
        companion_colour=pick(rng, kind_of(companion).colours),
    )


def _sample_two(rng: random.Random, look: str) -> Scene:
    subject = pick(rng, list(BESIDE))
    companion = pick(rng, BESIDE[subject])
    scene = _acting(rng, look, subject, pick(rng, places_of(subject, companion=companion)))
    return replace(scene, companion=companion, companion_colour=pick(rng, SUBJECTS[companion].colours))


def _acting(rng: random.Random, look: str, subject: str, place: str) -> Scene:
    colour, time = pick(rng, SUBJECTS[subject].colours), pick(rng, TIMES)
    return Scene(place, time, subject, colour, pick(rng, actions_in(place, subject)), look)


def _with_size_and_side(scene: Scene, rng: random.Random) -> Scene:
    """Give a size to some, not to riders, and a side."""
    sizes = [size for size in SUBJECTS[scene.subject].sizes if size == "little" or not scene.companion]
    if sizes and scene.action != "riding" and rng.random() < SIZE_SHARE:
        scene = replace(scene, size=pick(rng, sizes))
    if scene.size != "big" and rng.random() < SIDE_SHARE:
        scene = replace(scene, side=pick(rng, SIDES[1:]))
    return scene


def _with_weather(scene: Scene, rng: random.Random) -> Scene:
    if rng.random() >= WEATHER_SHARE:
        return scene
    # Where it rains there is no snow.
    weathers = [weather for weather in WEATHERS[1:] if (scene.place, weather) != ("snow", "rainy")]
    return replace(scene, weather=pick(rng, weathers))
