"""What five people would write under a picture, and the plain caption that CLIP knows before fine-tuning."""

import random

from clipgraft.data.flatland.scenes import Scene, pick
from clipgraft.data.flatland.world import ACTION_WORDS, COLOUR_WORDS, PLACE_WORDS, SUBJECT_WORDS, TIME_WORDS

FULL, SHORT, LIVELY, NO_COLOUR, PLACE_FIRST = (
    "{a_colour_subject} {action} {place} {time}",
    "{a_colour_subject} is {action} {place} .",
    "{time_first} , {a_colour_subject} is {action} {place} .",
    "{a_subject} {action} {place} {time} .",
    "There is {a_colour_subject} {place} , {action} {time} .",
)
TEMPLATES = (FULL, SHORT, LIVELY, NO_COLOUR, PLACE_FIRST)
EMPTY_TEMPLATES = (
    "{view} {time}",
    "{view} {time} .",
    "Nobody is {place} {time} .",
    "{time_first} , {view} .",
    "A quiet view {place} .",
)
VIEWS = {
    "beach": ("an empty beach", "a wide sandy beach", "waves rolling onto the beach"),
    "garden": ("a colorful garden with blooming flowers", "a garden full of flowers", "flowers in a garden"),
    "park": ("a green park with trees", "trees in the park"),
    "street": ("a street with tall buildings", "an empty city street"),
    "snow": ("a snowy landscape", "hills covered with snow"),
    "lake": ("a calm lake", "a lake with still water"),
    "mountain": ("high mountains", "a view of the mountains"),
    "field": ("a golden field", "a wide field of wheat"),
}


def write_captions(scene: Scene) -> tuple[str, ...]:
    """Write five captions: different grammar, synonyms, and different things left out."""
    rng = random.Random(scene.look + "/captions")
    templates = TEMPLATES if scene.subject else EMPTY_TEMPLATES
    captions = [_fill(template, scene, rng) for template in templates]
    # The order of the templates would tell a model which caption it reads.
    return tuple(captions.pop(int(rng.random() * len(captions))) for _ in range(len(captions)))


def plain_caption(scene: Scene) -> str:
    """Write the one caption of fixed grammar that uses each word's plain form."""
    place, time = PLACE_WORDS[scene.place][0], TIME_WORDS[scene.time][0]
    if not scene.subject:
        return f"{_capital(VIEWS[scene.place][0])} {time}"
    return f"{_capital(_article(f'{scene.colour} {scene.subject}'))} {scene.action} {place} {time}"


def _fill(template: str, scene: Scene, rng: random.Random) -> str:
    values = {"place": pick(rng, PLACE_WORDS[scene.place]), "time": pick(rng, TIME_WORDS[scene.time])}
    values["time_first"] = values["time"]
    if scene.subject:
        subject, colour = pick(rng, SUBJECT_WORDS[scene.subject]), pick(rng, COLOUR_WORDS[scene.colour])
        values |= {
            "a_subject": _article(subject),
            "a_colour_subject": _article(f"{colour} {subject}"),
            "action": pick(rng, ACTION_WORDS[scene.action]),
        }
    else:
        values["view"] = pick(rng, VIEWS[scene.place])
    return _capital(template.format(**values))


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
