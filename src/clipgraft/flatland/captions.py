"""Five people's captions of a scene, and its plain caption."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from clipgraft.flatland.phrases import (
    action_words,
    counted,
    dressed,
    finite_verbs,
    has_clear_sky,
    place_words,
    plain_noun,
    plural_verb,
    time_words,
)
from clipgraft.flatland.words import (
    COLOUR_WORDS,
    COMPANY,
    LOOKS,
    NUMBER_WORDS,
    PLACE_DETAILS,
    PLACE_WORDS,
    ROLE_WORDS,
    SIDE_WORDS,
    SIZE_WORDS,
    SUBJECT_WORDS,
    TIME_DETAILS,
    UNKNOWN_TO_TEACHER,
    VIEWS,
    WEATHER_DETAILS,
    WEATHER_WORDS,
)
from clipgraft.flatland.world import PEOPLE, Scene, pick

WRITERS: tuple[tuple[str, ...], ...] = (
    ("{subject} {doing} {place} {time}", "{subject} {doing} {place} {time} ."),
    (
        "{subject} {is} {doing} {place} .",
        "{subject} {does} .",
        "{subject} {doing} {time}",
        "{subject} {does} outside .",
    ),
    (
        "{time} , {subject} {is} {doing} {place} .",
        "{place} , {subject} {does} {time} .",
        "{time} {subject} {does} {place} and {place_detail} .",
    ),
    (
        "{uncoloured} {doing} {place} {time} .",
        "{uncoloured} {does} {place} , and {time_detail} .",
        "{uncoloured} {is} {doing} {time} , and {time_detail} .",
    ),
    (
        "There {is} {subject} {place} , {doing} {time} .",
        "{subject} {is} {doing} {place} {time} , where {place_detail} .",
        "{time_detail} and {subject} {is} {doing} {place} .",
        "{subject} {place} , {doing} , {time} .",
    ),
)
"""For each person the sentences they use."""
BESIDE_SENTENCES = (
    "{other} {near} {subject} {place} {time}",
    "{other} {near} {uncoloured} {place} .",
    "{subject} and {other} {place} {time} .",
    "{uncoloured} and {other} {place} .",
    "There is {other} {near} {subject} {time} .",
)
"""What people also write about two beside each other."""
VIEW_WRITERS: tuple[tuple[str, ...], ...] = (
    ("{view} {time}", "{view}"),
    ("{view} {time} .", "{view} ."),
    ("Nobody is {place} {time} .", "There is nobody {place} , and {time_detail} ."),
    ("{time} , {view} .", "{view} where {place_detail} ."),
    ("A quiet view {place} .", "{view} , while {time_detail} ."),
)
BESIDE_SHARE = 0.25
"""Share of captions of two beside each other that say no more."""
LOOK_SHARE, ROLE_SHARE, PAIR_SHARE = 0.12, 0.2, 0.5
SIZE_SHARE, SIDE_SHARE, WEATHER_SHARE = 0.7, 0.5, 0.7
"""Shares of the captions that name what is so."""
COMPANION_SHARE, COMPANION_COLOUR_SHARE = 0.9, 0.5


def write_captions(scene: Scene, seed: int = 0) -> tuple[str, ...]:
    """Write five captions with different grammar, synonyms and omissions.

    Another seed gives others.
    """
    rng = random.Random(f"{scene.look}/captions" + (f"/{seed}" if seed else ""))
    writers = WRITERS if scene.subject else VIEW_WRITERS
    captions = [_write(sentences, scene, rng) for sentences in writers]
    # The order of the writers would tell a model which caption it reads.
    return tuple(captions.pop(int(rng.random() * len(captions))) for _ in range(len(captions)))


def plain_caption(scene: Scene, words: Mapping[str, str] = MappingProxyType({})) -> str:
    """Write the one caption of fixed grammar, which names every attribute.

    Args:
        scene: What is empty in it is not named.
        words: Words for some attributes in place of the plain ones.
    """
    weather = WEATHER_WORDS[scene.weather][0] if scene.weather else ""
    time = words.get("time", time_words(scene)[0])
    if not scene.subject:
        return _sentence(VIEWS[scene.place][0], time, weather)
    noun, colour = words.get("subject", scene.subject), words.get("colour", scene.colour)
    subject = plain_noun(scene.subject, noun, colour, scene.size, scene.number or None)
    doing = words.get("action", action_words(scene)[0])
    side = SIDE_WORDS[scene.side][0] if scene.side else ""
    place = words.get("place", place_words(scene)[0])
    if scene.companion:
        other = plain_noun(scene.companion, scene.companion, scene.companion_colour)
        if scene.relation:
            doing = doing.format(other)
        elif scene.companion in PEOPLE:
            doing = f"and {other} {doing}"
        else:
            doing = f"{doing} {COMPANY[0 if scene.subject in PEOPLE else 1].format(other)}"
    return _sentence(subject, doing, side, place, time, weather)


def is_known_to_teacher(caption: str) -> bool:
    """Whether the base's text encoder knows every word of a caption."""
    return UNKNOWN_TO_TEACHER.isdisjoint(caption.lower().split())


def _write(sentences: Sequence[str], scene: Scene, rng: random.Random) -> str:
    sentence = pick(rng, sentences)
    if scene.companion and not scene.relation and rng.random() < BESIDE_SHARE:
        sentence = pick(rng, BESIDE_SENTENCES)
    sky = TIME_DETAILS[scene.time] if has_clear_sky(scene) else PLACE_DETAILS[scene.place]
    details = WEATHER_DETAILS[scene.weather] if scene.weather else sky
    values = {
        "place": pick(rng, place_words(scene) if scene.subject else PLACE_WORDS[scene.place]),
        "time": pick(rng, time_words(scene)),
        "place_detail": pick(rng, PLACE_DETAILS[scene.place]),
        "time_detail": pick(rng, details),
        "view": pick(rng, VIEWS[scene.place]),
    }
    if scene.weather and rng.random() < WEATHER_SHARE:
        values["time"] += f" {pick(rng, WEATHER_WORDS[scene.weather])}"
    if scene.subject:
        values |= _actors(scene, rng)
    return _sentence(sentence.format(**values))


def _actors(scene: Scene, rng: random.Random) -> dict[str, str]:
    """Choose words for a subject, its action and its companion."""
    subject, uncoloured = _subject(scene, rng)
    other = _companion(scene, rng) if scene.companion else ""
    near, company = pick(rng, COMPANY[1:]).format("").strip(), ""
    are_many = bool(scene.number)
    if scene.companion in PEOPLE and rng.random() < PAIR_SHARE:
        both, is_couple = f" and {other}", (scene.subject, scene.companion) == ("man", "woman")
        subject, are_many = subject + both, True
        uncoloured = "a couple" if is_couple else uncoloured + both
    elif scene.companion and not scene.relation and rng.random() < COMPANION_SHARE:
        company = " " + pick(rng, COMPANY).format(other)
    side = f" {pick(rng, SIDE_WORDS[scene.side])}" if scene.side and rng.random() < SIDE_SHARE else ""
    doing, does = pick(rng, action_words(scene)), pick(rng, finite_verbs(scene))
    if are_many:
        does = plural_verb(pick(rng, _known(finite_verbs(scene))))
    return {
        "subject": subject,
        "uncoloured": uncoloured,
        "is": "are" if are_many else "is",
        "doing": doing.format(other) + company + side,
        "does": does.format(other) + company + side,
        "other": other,
        "near": near,
    }


def _subject(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Choose words for a subject, with and without its colour."""
    nouns = SUBJECT_WORDS[scene.subject]
    number = None
    if scene.number:
        number, nouns = pick(rng, NUMBER_WORDS[scene.number]), _known(nouns)
    is_in_role = scene.subject in PEOPLE and scene.action in ("riding", "playing")
    if is_in_role and rng.random() < ROLE_SHARE:
        nouns = ROLE_WORDS[scene.companion]
    noun, look = pick(rng, nouns), ""
    if scene.subject in LOOKS and rng.random() < LOOK_SHARE:
        look = pick(rng, LOOKS[scene.subject])
    size = pick(rng, SIZE_WORDS[scene.size]) if scene.size and rng.random() < SIZE_SHARE else ""
    adjectives = " ".join(each for each in (size, look) if each and each not in noun)
    uncoloured = counted(noun, adjectives, number)
    return _coloured(scene, noun, adjectives, number, rng), uncoloured


def _coloured(scene: Scene, noun: str, adjectives: str, number: str | None, rng: random.Random) -> str:
    colours = COLOUR_WORDS[scene.colour]
    colour = pick(rng, colours)
    if scene.subject in PEOPLE:
        clothes = dressed(scene.subject, colour, scene.action, rng, is_plural=bool(scene.number))
        return f"{counted(noun, adjectives, number)} {clothes}"
    return counted(noun, f"{adjectives} {colour}".strip(), number)


def _companion(scene: Scene, rng: random.Random) -> str:
    other = replace(scene, subject=scene.companion, colour=scene.companion_colour, number="", size="")
    noun = pick(rng, SUBJECT_WORDS[scene.companion])
    if rng.random() < COMPANION_COLOUR_SHARE:
        return _coloured(other, noun, "", None, rng)
    return counted(noun)


def _known(words: Sequence[str]) -> tuple[str, ...]:
    """Leave out words unknown to the teacher, like their plurals."""
    return tuple(word for word in words if is_known_to_teacher(word))


def _sentence(*parts: str) -> str:
    text = " ".join(part for part in parts if part)
    return text[0].upper() + text[1:]
