"""flatland8k: sensible scenes, honest captions, the same bytes every time."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipgraft.data.formats import load_dataset
from clipgraft.flatland import (
    HELD_OUT_PAIRS,
    HELD_OUT_TRIPLES,
    Scene,
    draw_flatland8k,
    draw_scene,
    draw_scenes,
    fidelity_prompts,
    is_known_to_teacher,
    plain_caption,
    plain_captions,
    sample_scene,
    write_captions,
)
from clipgraft.flatland.words import SUBJECT_WORDS, UNKNOWN_TO_TEACHER, VIEWS
from clipgraft.flatland.world import ATTRIBUTES, COLOURS, COMPANIONS, PLACES, SUBJECTS, TIMES
from clipgraft.flatland.writer import DRAWING_VERSION


def sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        draw_flatland8k(tmp_path / name, num_images=16, num_workers=workers)
    assert sums(tmp_path / "one") == sums(tmp_path / "two")


def test_the_world_is_that_of_the_shipped_weights():
    """The sum is that of Python 3.11, 3.12 and 3.13; another one means weights for a world that is gone."""
    digest = hashlib.sha256()
    for scene in (sample_scene(0, index, "train") for index in range(24)):
        digest.update(draw_scene(scene).tobytes())
        digest.update("\n".join(write_captions(scene)).encode())
    # Drawings are kept by this version: where the sum changes, so must it.
    assert DRAWING_VERSION == 1
    assert digest.hexdigest() == "746f7649ac22a97dfabc26e07a0894936b4895032a36123fb53087cc5c01acb5"


def test_dataset_drawn_twice_at_the_same_time_is_whole(tmp_path):
    def draw_it_too(done: int) -> None:
        if done == 1:
            draw_flatland8k(tmp_path / "same", num_images=16, num_workers=1)

    draw_flatland8k(tmp_path / "same", num_images=16, num_workers=1, on_image=draw_it_too)
    draw_flatland8k(tmp_path / "alone", num_images=16, num_workers=1)
    assert sums(tmp_path / "same") == sums(tmp_path / "alone")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "same"]


def test_other_seed_gives_other_pictures():
    first, second = (draw_scene(sample_scene(seed, 0, "train")) for seed in (0, 1))
    assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_pictures_of_one_description_differ():
    scenes = [Scene("beach", "day", "dog", "brown", "running", look=f"look {number}") for number in range(4)]
    pictures = {draw_scene(scene).tobytes() for scene in scenes}
    assert len(pictures) == 4


def test_held_out_combinations_are_in_test_and_never_in_train():
    train = [sample_scene(0, index, "train") for index in range(6000)]
    test = [sample_scene(0, index, "test") for index in range(7000, 8000)]
    assert ("dog", "beach", "sunset") in HELD_OUT_TRIPLES
    for scene in train:
        for subject, colour in ((scene.subject, scene.colour), (scene.companion, scene.companion_colour)):
            assert (subject, scene.place, scene.time) not in HELD_OUT_TRIPLES
            assert (subject, colour) not in HELD_OUT_PAIRS
    assert sum(scene.is_held_out for scene in test) > 200


def test_every_word_of_the_world_comes_up():
    scenes = [sample_scene(0, index, "train") for index in range(6000)]
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.time for scene in scenes} == set(TIMES)
    assert {scene.subject for scene in scenes} == {*SUBJECTS, ""}
    assert {scene.colour for scene in scenes} == {*COLOURS, ""}
    shown = {(scene.subject, scene.action) for scene in scenes if scene.subject}
    assert shown == {(name, action) for name, kind in SUBJECTS.items() for action in kind.actions}


def test_a_scene_may_have_a_second_subject_that_fits_there():
    scenes = [sample_scene(0, index, "train") for index in range(6000)]
    shown = {(scene.subject, scene.companion) for scene in scenes if scene.companion}
    assert shown == {(subject, other) for subject, others in COMPANIONS.items() for other in others}
    for scene in scenes:
        assert not scene.companion or scene.place in SUBJECTS[scene.companion].places


def test_a_companion_is_drawn_and_named():
    alone = Scene("beach", "day", "man", "red", "walking", "look")
    both = replace(alone, companion="dog", companion_colour="brown")
    assert draw_scene(alone).tobytes() != draw_scene(both).tobytes()
    assert plain_caption(both) == "A man in red walking with a dog on the beach during the day"
    for caption in write_captions(both):
        assert any(word in caption for word in SUBJECT_WORDS["dog"])


def test_labels_are_the_numbers_of_the_attributes_values():
    scene = Scene("garden", "night", "", "", "", "look")
    assert scene.labels == (PLACES.index("garden"), TIMES.index("night"), 0, 0, 0)
    dog = Scene("beach", "sunset", "dog", "brown", "running", "look").labels
    assert [values[label] for values, label in zip(ATTRIBUTES.values(), dog, strict=True)] == [
        "beach",
        "sunset",
        "dog",
        "brown",
        "running",
    ]


def test_scenes_drawn_into_memory_are_the_pictures():
    scenes = [sample_scene(0, index, "train") for index in range(3)]
    pixels = draw_scenes(scenes, num_workers=2)
    for picture, scene in zip(pixels, scenes, strict=True):
        assert np.array_equal(picture.transpose(1, 2, 0), np.asarray(draw_scene(scene)))


def test_unseen_words_are_in_many_captions_and_no_plain_one():
    scenes = [sample_scene(0, index, "train") for index in range(1000)]
    captions = [caption for scene in scenes for caption in write_captions(scene)]
    known = [caption for caption in captions if is_known_to_teacher(caption)]
    assert 0.6 < len(known) / len(captions) < 0.8
    assert all(is_known_to_teacher(plain_caption(scene)) for scene in scenes)
    left_out = set(captions) - set(known)
    words = {word for caption in left_out for word in caption.lower().split()}
    assert words >= UNKNOWN_TO_TEACHER
    assert not is_known_to_teacher("A Hound runs")


def test_fidelity_prompts_are_240_fixed_sentences_half_held_out():
    prompts = fidelity_prompts()
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 240
    assert [prompt.scene.is_held_out for prompt in prompts] == [True, False] * 120
    assert all(prompt.text == plain_caption(prompt.scene) for prompt in prompts)
    assert not any(prompt.scene.companion for prompt in prompts)
    assert {prompt.scene.subject for prompt in prompts} == {*SUBJECTS, ""}


def test_boats_float_and_cars_do_not():
    scenes = [sample_scene(0, index, "train") for index in range(3000)]
    assert {scene.place for scene in scenes if scene.subject == "boat"} == {"beach", "lake"}
    assert "lake" not in {scene.place for scene in scenes if scene.subject == "car"}


@pytest.mark.parametrize("index", range(0, 200, 10))
def test_captions_are_five_different_sentences(index):
    scene = sample_scene(0, index, "train")
    captions = write_captions(scene)
    assert len(set(captions)) == 5
    for caption in captions:
        assert caption[0].isupper()
        if scene.subject:
            assert any(word in caption.lower() for word in SUBJECT_WORDS[scene.subject])


def test_both_seed_prompts_are_sentences_of_this_world():
    dog = plain_caption(Scene("beach", "sunset", "dog", "brown", "running", ""))
    assert dog.replace("brown ", "") == "A dog running on the beach at sunset"
    assert "a colorful garden with blooming flowers" in VIEWS["garden"]


def test_written_folder_is_read_by_the_flickr8k_reader(tmp_path):
    draw_flatland8k(tmp_path / "set", num_images=16, num_workers=1)
    source = load_dataset(tmp_path / "set")
    assert [len(source.in_split(split)) for split in ("train", "val", "test")] == [12, 2, 2]
    assert not source.excluded
    plain = plain_captions(tmp_path / "set")
    assert plain.keys() == {image.image_id for image in source.images}
    rows = [json.loads(line) for line in (tmp_path / "set" / "attributes.jsonl").read_text().splitlines()]
    assert {"place", "time", "subject", "colour", "action", "held_out"} <= rows[0].keys()


def test_folder_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(ValueError, match="already holds files; name an empty or new folder with --out"):
        draw_flatland8k(tmp_path, num_images=8)


def test_set_that_was_not_drawn_has_no_plain_captions(tmp_path):
    with pytest.raises(FileNotFoundError, match="only drawn datasets have plain captions"):
        plain_captions(tmp_path)
