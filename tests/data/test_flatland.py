"""flatland8k: sensible scenes, honest captions, the same bytes every time."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from clipgraft.data.flatland import (
    HELD_OUT_PAIRS,
    HELD_OUT_TRIPLES,
    Scene,
    draw_flatland8k,
    draw_scene,
    plain_caption,
    plain_captions,
    sample_scene,
    write_captions,
)
from clipgraft.data.flatland.captions import VIEWS
from clipgraft.data.flatland.world import COLOURS, PLACES, SUBJECT_WORDS, SUBJECTS, TIMES
from clipgraft.data.readers import read_source


def sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        draw_flatland8k(tmp_path / name, num_images=16, num_workers=workers)
    assert sums(tmp_path / "one") == sums(tmp_path / "two")


def test_other_seed_gives_other_pictures():
    first, second = (draw_scene(sample_scene(seed, 0, "train")) for seed in (0, 1))
    assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_pictures_of_one_description_differ():
    scenes = [Scene("beach", "day", "dog", "brown", "running", look=f"look {number}") for number in range(4)]
    pictures = {draw_scene(scene).tobytes() for scene in scenes}
    assert len(pictures) == 4


def test_held_out_combinations_are_never_in_train_and_are_in_test():
    train = [sample_scene(0, index, "train") for index in range(6000)]
    test = [sample_scene(0, index, "test") for index in range(7000, 8000)]
    assert ("dog", "beach", "sunset") in HELD_OUT_TRIPLES
    for scene in train:
        assert (scene.subject, scene.place, scene.time) not in HELD_OUT_TRIPLES
        assert (scene.subject, scene.colour) not in HELD_OUT_PAIRS
    assert sum(scene.is_held_out for scene in test) > 200


def test_every_word_of_the_world_comes_up():
    scenes = [sample_scene(0, index, "train") for index in range(6000)]
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.time for scene in scenes} == set(TIMES)
    assert {scene.subject for scene in scenes} == {*SUBJECTS, ""}
    assert {scene.colour for scene in scenes} == {*COLOURS, ""}
    shown = {(scene.subject, scene.action) for scene in scenes if scene.subject}
    assert shown == {(name, action) for name, kind in SUBJECTS.items() for action in kind.actions}


def test_boats_float_and_cars_do_not():
    scenes = [sample_scene(0, index, "train") for index in range(3000)]
    assert {scene.place for scene in scenes if scene.subject == "boat"} == {"beach", "lake"}
    assert "lake" not in {scene.place for scene in scenes if scene.subject == "car"}


@pytest.mark.parametrize("index", range(0, 200, 10))
def test_captions_are_five_different_sentences_about_the_subject(index):
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
    source = read_source(tmp_path / "set")
    assert [len(source.in_split(split)) for split in ("train", "val", "test")] == [12, 2, 2]
    assert not source.left_out
    plain = plain_captions(tmp_path / "set")
    assert plain.keys() == {image.image_id for image in source.images}
    rows = [json.loads(line) for line in (tmp_path / "set" / "attributes.jsonl").read_text().splitlines()]
    assert {"place", "time", "subject", "colour", "action", "held_out"} <= rows[0].keys()


def test_folder_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(ValueError, match="already holds files; name an empty or new folder with --out"):
        draw_flatland8k(tmp_path, num_images=8)


def test_set_that_was_not_drawn_has_no_plain_captions(tmp_path):
    with pytest.raises(FileNotFoundError, match="plain captions exist for drawn sets alone"):
        plain_captions(tmp_path)
