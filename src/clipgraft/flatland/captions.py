"""Five people's captions of a scene, and its plain caption."""

import random
from collections.abc import Mapping
from types import MappingProxyType

from clipgraft.flatland.words import (
    ACTION_WORDS,
    CLOTHES,
    COLOUR_WORDS,
    COMPANY,
    FINITE_VERBS,
    PLACE_DETAILS,
    PLACE_WORDS,
    SUBJECT_WORDS,
    TIME_DETAILS,
    TIME_WORDS,
    UNKNOWN_TO_TEACHER,
    VIEWS,
)
from clipgraft.flatland.world import Scene, pick

WRITERS: tuple[tuple[str, ...], ...] = (
    ("{subject} {doing} {place} {time}", "{subject} {doing} {place} {time} ."),
    ("{subject} is {doing} {place} .", "{subject} {does} .", "{subject} {doing} {time}"),
    (
        "{time} , {subject} is {doing} {place} .",
        "{place} , {subject} {does} {time} .",
        "{time} {subject} {does} {place} and {place_detail} .",
    ),
    (
        "{uncoloured} {doing} {place} {time} .",
        "{uncoloured} {does} {place} , and {time_detail} .",
        "{uncoloured} is {doing} {time} while {time_detail} .",
    ),
    (
        "There is {subject} {place} , {doing} {time} .",
        "{subject} is {doing} {place} {time} , where {place_detail} .",
        "{time_detail} and {subject} is {doing} {place} .",
        "{subject} {place} , {doing} , {time} .",
    ),
)
"""For each person the sentences they use."""
VIEW_WRITERS: tuple[tuple[str, ...], ...] = (
    ("{view} {time}", "{view}"),
    ("{view} {time} .", "{view} ."),
    ("Nobody is {place} {time} .", "There is nobody {place} , and {time_detail} ."),
    ("{time} , {view} .", "{view} where {place_detail} ."),
    ("A quiet view {place} .", "{view} , while {time_detail} ."),
)
ADJECTIVES = ("little", "big", "lone", "single", "lovely")
ADJECTIVE_SHARE = 0.12
COLOURED_COMPANION_SHARE = 0.5


def write_captions(scene: Scene) -> tuple[str, ...]:
    """Write five captions with different grammar, synonyms and omissions."""
    rng = random.Random(scene.look + "/captions")
    writers = WRITERS if scene.subject else VIEW_WRITERS
    captions = [_write(pick(rng, sentences), scene, rng) for sentences in writers]
    # The order of the writers would tell a model which caption it reads.
    return tuple(captions.pop(int(rng.random() * len(captions))) for _ in range(len(captions)))


def plain_caption(scene: Scene, words: Mapping[str, str] = MappingProxyType({})) -> str:
    """Write the one caption of fixed grammar, in each word's plain form.

    Args:
        scene: Its colour and action are named where it has a subject.
        words: Words for some attributes in place of the plain ones.
    """
    place = words.get("place", PLACE_WORDS[scene.place][0])
    time = words.get("time", TIME_WORDS[scene.time][0])
    if not scene.subject:
        return f"{_capital(VIEWS[scene.place][0])} {time}"
    company = f" {COMPANY[0].format(_article(scene.companion))}" if scene.companion else ""
    noun, colour = words.get("subject", scene.subject), words.get("colour", scene.colour)
    subject = _coloured(scene.subject, noun, colour, clothes=0)
    return f"{_capital(subject)} {words.get('action', scene.action)}{company} {place} {time}"


def is_known_to_teacher(caption: str) -> bool:
    """Whether the base's text encoder knows every word of a caption."""
    return UNKNOWN_TO_TEACHER.isdisjoint(caption.lower().split())


def _write(sentence: str, scene: Scene, rng: random.Random) -> str:
    values = {
        "place": pick(rng, PLACE_WORDS[scene.place]),
        "time": pick(rng, TIME_WORDS[scene.time]),
        "place_detail": pick(rng, PLACE_DETAILS[scene.place]),
        "time_detail": pick(rng, TIME_DETAILS[scene.time]),
        "view": pick(rng, VIEWS[scene.place]),
    }
    if scene.subject:
        noun, colour = pick(rng, SUBJECT_WORDS[scene.subject]), pick(rng, COLOUR_WORDS[scene.colour])
        adjective = f"{pick(rng, ADJECTIVES)} " if rng.random() < ADJECTIVE_SHARE else ""
        company = _company(scene, rng)
        values |= {
            "subject": _coloured(scene.subject, noun, colour, adjective, clothes=int(rng.random() * 4)),
            "uncoloured": _article(adjective + noun),
            "doing": pick(rng, ACTION_WORDS[scene.action]) + company,
            "does": pick(rng, FINITE_VERBS[scene.action]) + company,
        }
    return _capital(sentence.format(**values))


def _coloured(subject: str, noun: str, colour: str, adjective: str = "", *, clothes: int) -> str:
    if subject in CLOTHES:
        return f"{_article(adjective + noun)} {CLOTHES[subject][clothes].format(colour, _article(colour))}"
    return _article(f"{adjective}{colour} {noun}")


def _company(scene: Scene, rng: random.Random) -> str:
    if not scene.companion:
        return ""
    noun = pick(rng, SUBJECT_WORDS[scene.companion])
    if rng.random() < COLOURED_COMPANION_SHARE:
        noun = f"{pick(rng, COLOUR_WORDS[scene.companion_colour])} {noun}"
    return " " + pick(rng, COMPANY).format(_article(noun))


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
