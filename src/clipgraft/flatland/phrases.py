"""Parts of captions: plurals, clothes, words that fit a scene."""

import random

from clipgraft.flatland.verbs import (
    ACTION_WORDS,
    AT_PLAY,
    FINITE_RELATIONS,
    FINITE_VERBS,
    PEOPLE_ACTION_WORDS,
    PEOPLE_FINITE_VERBS,
    RELATION_WORDS,
)
from clipgraft.flatland.words import (
    CLOTHES,
    IRREGULAR_PLURALS,
    NEEDS_CLEAR_SKY,
    PLACE_WORDS,
    PLACE_WORDS_AFLOAT,
    PLACE_WORDS_FLYING,
    PLACE_WORDS_MOVING,
    PLACE_WORDS_ON_FOOT,
    PLACE_WORDS_SWIMMING,
    SWIMWEAR,
    TIME_WORDS,
)
from clipgraft.flatland.world import PEOPLE, Scene, pick

MOVING = frozenset({"running", "walking", "driving", "riding", "chasing"})

FLOATING = frozenset({("pool", "lying"), ("lake", "standing")})
"""Where a ball that lies, or a bird that stands, is drawn in the water."""


def article(words: str) -> str:
    """Put "a" or "an" before words."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def plural(noun: str) -> str:
    """Return a noun's plural."""
    *others, last = noun.split()
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = f"{last[:-1]}ies"
    else:
        last += "es" if last.endswith(("s", "ch", "sh", "x")) else "s"
    return " ".join([*others, last])


def plural_verb(verb: str) -> str:
    """Return the plural of a verb: "flies high" gives "fly high"."""
    first, *others = verb.split()
    if first in ("is", "has"):
        first = {"is": "are", "has": "have"}[first]
    elif first.endswith("ies") and len(first) > len("lies"):
        first = f"{first[:-3]}y"
    else:
        first = first[:-2] if first.endswith(("shes", "ches", "sses")) else first[:-1]
    return " ".join([first, *others])


def counted(noun: str, adjectives: str = "", number: str | None = None) -> str:
    """Put a number, or an article if None, before adjectives and noun."""
    if number is None:
        return article(f"{adjectives} {noun}".strip())
    return " ".join(filter(None, (number, adjectives, plural(noun))))


def plain_noun(subject: str, noun: str, colour: str, size: str = "", number: str | None = None) -> str:
    """Write a noun in the plain form: "a dog", "men in red"."""
    if subject in PEOPLE:
        return f"{counted(noun, size, number)} in {colour}"
    return counted(noun, f"{size} {colour}".strip(), number)


def dressed(subject: str, colour: str, action: str, rng: random.Random, *, is_plural: bool = False) -> str:
    """Write in one of many ways that somebody's clothes have a colour."""
    garments = SWIMWEAR if action == "swimming" else CLOTHES[subject]
    garment = pick(rng, garments)
    many = f"{colour} {plural(garment.split(' and ')[0])}"
    worn = many if is_plural else article(f"{colour} {garment}")
    return f"{pick(rng, ('in', 'wearing', 'dressed in'))} {pick(rng, (colour, worn, f'{colour} clothes'))}"


def place_words(scene: Scene) -> tuple[str, ...]:
    """Return words for the place of a subject, the plain ones first."""
    if is_in_water(scene):
        return PLACE_WORDS_SWIMMING[scene.place]
    if scene.subject == "boat" or (scene.relation, scene.companion) == ("riding", "surfboard"):
        return PLACE_WORDS_AFLOAT[scene.place]
    if scene.action == "flying":
        return PLACE_WORDS_FLYING[scene.place]
    moving = PLACE_WORDS_MOVING.get(scene.place, ()) if scene.action in MOVING else ()
    on_foot = PLACE_WORDS_ON_FOOT.get(scene.place, ()) if scene.subject in PEOPLE else ()
    return PLACE_WORDS[scene.place] + moving + on_foot


def time_words(scene: Scene) -> tuple[str, ...]:
    """Return words for the time that suit the weather, plain ones first."""
    return tuple(
        each for each in TIME_WORDS[scene.time] if has_clear_sky(scene) or each not in NEEDS_CLEAR_SKY
    )


def has_clear_sky(scene: Scene) -> bool:
    """Whether sun, moon or stars are seen."""
    return not scene.weather and scene.place != "forest"


def action_words(scene: Scene) -> tuple[str, ...]:
    """Return participles, the plain one first; a relation's hold a {}."""
    if scene.relation:
        return _of_relation(RELATION_WORDS, scene)
    return _of_action(ACTION_WORDS, scene) + _besides(PEOPLE_ACTION_WORDS, "playing", scene)


def finite_verbs(scene: Scene) -> tuple[str, ...]:
    """Return verbs in the third person; a relation's hold a {}."""
    if scene.relation:
        return _of_relation(FINITE_RELATIONS, scene)
    return _of_action(FINITE_VERBS, scene) + _besides(PEOPLE_FINITE_VERBS, "plays", scene)


def is_in_water(scene: Scene) -> bool:
    """Whether the subject swims, or floats in the pool."""
    return scene.action == "swimming" or (scene.place, scene.action) == ("pool", "lying")


def _of_action(words: dict[str, tuple[str, ...]], scene: Scene) -> tuple[str, ...]:
    floats = (scene.place, scene.action) in FLOATING and scene.subject in ("ball", "bird")
    return words["floating" if floats else scene.action]


def _besides(words: dict[str, tuple[str, ...]], play: str, scene: Scene) -> tuple[str, ...]:
    """Return words for people alone, and for children and dogs at play."""
    is_at_play = (scene.subject, scene.action) in AT_PLAY and scene.companion in ("", *PEOPLE)
    own = words.get(scene.action, ()) if scene.subject in PEOPLE else ()
    return (*own, play) if is_at_play else own


def _of_relation(phrases: dict[str, tuple[str, ...]], scene: Scene) -> tuple[str, ...]:
    key = f"{scene.action} {scene.companion}"
    return phrases.get(f"{scene.subject} {key}") or phrases[key]
