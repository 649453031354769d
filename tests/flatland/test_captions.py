"""Captions of flatland: five people's and a plain one, all of them true."""

from dataclasses import replace

import pytest

from clipgraft.flatland import Scene, is_known_to_teacher, plain_caption, sample_scene, write_captions
from clipgraft.flatland.phrases import article, plural, plural_verb
from clipgraft.flatland.words import (
    IRREGULAR_PLURALS,
    NEEDS_CLEAR_SKY,
    NUMBER_WORDS,
    ROLE_WORDS,
    SUBJECT_WORDS,
    UNKNOWN_TO_TEACHER,
    VIEWS,
)
from clipgraft.flatland.world import ATTRIBUTES

MAN = Scene("beach", "day", "man", "red", "walking", "look")


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(0, index, "train") for index in range(2000)]


@pytest.mark.parametrize(
    ("changed", "caption"),
    [
        (
            {"companion": "dog", "companion_colour": "brown"},
            "A man in red walking with a brown dog on the beach",
        ),
        (
            {"companion": "woman", "companion_colour": "blue"},
            "A man in red and a woman in blue walking on the beach",
        ),
        (
            {"action": "riding", "companion": "bicycle", "companion_colour": "orange", "side": "left"},
            "A man in red riding an orange bicycle on the left on the beach",
        ),
        ({"number": "two"}, "Two men in red walking on the beach"),
        ({"subject": "girl", "size": "little"}, "A little girl in red walking on the beach"),
        (
            {"subject": "dog", "colour": "black", "size": "big", "action": "lying"},
            "A big black dog lying on the beach",
        ),
        (
            {"subject": "horse", "colour": "gray", "companion": "bird", "companion_colour": "blue"}
            | {"action": "standing"},
            "A gray horse standing beside a blue bird on the beach",
        ),
        (
            {"subject": "bus", "colour": "pink", "number": "three", "action": "parked"},
            "Three pink buses parked on the beach",
        ),
    ],
)
def test_plain_caption_names_what_there_is(changed, caption):
    assert plain_caption(replace(MAN, **changed)) == f"{caption} during the day"


@pytest.mark.parametrize(
    ("place", "subject", "action", "words"),
    [
        ("lake", "woman", "swimming", "A woman in white swimming in the lake"),
        ("pool", "ball", "lying", "A white ball floating in the pool"),
        ("lake", "bird", "standing", "A white bird floating on the lake"),
        ("park", "kite", "flying", "A white kite flying over the park"),
        ("beach", "boat", "anchored", "A white boat anchored at the beach"),
        ("pool", "boy", "standing", "A boy in white standing at the pool"),
    ],
)
def test_plain_place_fits_what_somebody_does(place, subject, action, words):
    scene = Scene(place, "sunset", subject, "white", action, "", weather="rainy")
    assert plain_caption(scene) == f"{words} at sunset in the rain"


def test_plain_captions_of_different_scenes_differ(scenes):
    by_caption: dict[str, tuple[str, ...]] = {}
    for scene in scenes:
        attributes = tuple(getattr(scene, name) for name in ATTRIBUTES)
        assert by_caption.setdefault(plain_caption(scene), attributes) == attributes


def test_captions_are_five_sentences_that_name_the_subject(scenes):
    for scene in scenes[:600]:
        captions = write_captions(scene)
        assert len(captions) == 5
        words = [*SUBJECT_WORDS.get(scene.subject, ()), "couple", *ROLE_WORDS.get(scene.companion, ())]
        for caption in captions:
            assert caption[0].isupper()
            assert "  " not in caption
            assert "{" not in caption
            if scene.subject:
                assert any(word in caption.lower() or plural(word) in caption.lower() for word in words), (
                    caption
                )


def test_numbers_are_named_by_every_caption(scenes):
    for scene in (scene for scene in scenes if scene.number):
        numbers = [number for number in NUMBER_WORDS[scene.number] if number]
        nouns = [plural(word) for word in SUBJECT_WORDS[scene.subject]]
        for caption in write_captions(scene):
            assert any(noun in caption.lower() for noun in nouns), caption
            is_named = any(f"{number} " in caption.lower() for number in numbers)
            # A plural without a number means three.
            assert is_named or scene.number == "three", caption


def test_companions_are_in_most_captions(scenes):
    captions = [
        (scene.companion, text) for scene in scenes if scene.companion for text in write_captions(scene)
    ]
    named = [
        any(word in text or "couple" in text for word in SUBJECT_WORDS[other]) for other, text in captions
    ]
    assert 0.93 < sum(named) / len(named) < 1


def test_clear_skies_are_not_claimed_in_rain_or_fog(scenes):
    for scene in (scene for scene in scenes if scene.weather or scene.place == "forest"):
        for caption in write_captions(scene):
            assert not any(words in caption.lower() for words in NEEDS_CLEAR_SKY), caption


def test_another_seed_gives_other_captions_of_a_scene():
    assert write_captions(MAN) == write_captions(MAN, 0)
    assert not set(write_captions(MAN)) & set(write_captions(MAN, 1))


@pytest.mark.parametrize(
    ("noun", "expected"),
    {
        **{"dog": "dogs", "puppy": "puppies", "boy": "boys", "bus": "buses", "branch": "branches"},
        **{"paper kite": "paper kites", "child": "children", "gentleman": "gentlemen"},
    }.items(),
)
def test_plurals_are_those_of_english(noun, expected):
    assert plural(noun) == expected


@pytest.mark.parametrize(
    ("verb", "expected"),
    {
        **{"runs": "run", "flies": "fly", "lies": "lie", "dashes": "dash", "splashes": "splash"},
        **{"is parked": "are parked", "has stopped": "have stopped", "jumps up": "jump up"},
    }.items(),
)
def test_plural_verbs_are_those_of_english(verb, expected):
    assert plural_verb(verb) == expected


def test_nouns_that_end_in_man_are_known_to_be_irregular():
    nouns = [word for words in SUBJECT_WORDS.values() for word in words if word.endswith("man")]
    assert set(nouns) <= IRREGULAR_PLURALS.keys()
    assert article("orange dog") == "an orange dog"


def test_unseen_words_are_in_many_captions_and_no_plain_one(scenes):
    captions = [caption for scene in scenes for caption in write_captions(scene)]
    known = [caption for caption in captions if is_known_to_teacher(caption)]
    assert 0.6 < len(known) / len(captions) < 0.8
    assert all(is_known_to_teacher(plain_caption(scene)) for scene in scenes)
    left_out = set(captions) - set(known)
    words = {word for caption in left_out for word in caption.lower().split()}
    assert words >= UNKNOWN_TO_TEACHER
    assert not is_known_to_teacher("A Hound runs")


def test_plurals_of_unseen_words_are_never_read_by_the_teacher(scenes):
    unseen = {
        form(word) for word in UNKNOWN_TO_TEACHER for form in (plural, plural_verb)
    } - UNKNOWN_TO_TEACHER
    words = {word for scene in scenes for text in write_captions(scene) for word in text.lower().split()}
    assert not words & unseen


def test_both_seed_prompts_are_sentences_of_this_world():
    dog = plain_caption(Scene("beach", "sunset", "dog", "brown", "running", ""))
    assert dog.replace("brown ", "") == "A dog running on the beach at sunset"
    assert "a colorful garden with blooming flowers" in VIEWS["garden"]
