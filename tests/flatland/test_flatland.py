"""flatland8k: sensible scenes, honest captions, the same bytes every time."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipgraft.data.formats import load_dataset
from clipgraft.flatland import (
    Scene,
    draw_flatland8k,
    draw_scene,
    draw_scenes,
    plain_captions,
    sample_scene,
    write_captions,
)
from clipgraft.flatland.world import ATTRIBUTES
from clipgraft.flatland.writer import DRAWING_VERSION


def sums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
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
    assert DRAWING_VERSION == 2
    assert digest.hexdigest() == "9c1238c703dacc99810f3520844c40332244f9883998516cdfd3a816c354cf24"


@pytest.mark.integration
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


@pytest.mark.parametrize(
    "changed",
    [
        {"weather": "foggy"},
        {"number": "two"},
        {"size": "little"},
        {"side": "left"},
        {"companion": "dog", "companion_colour": "brown"},
    ],
)
def test_whatever_a_caption_names_changes_the_picture(changed):
    alone = Scene("beach", "day", "girl", "red", "walking", "look")
    assert draw_scene(alone).tobytes() != draw_scene(replace(alone, **changed)).tobytes()


def test_scenes_drawn_into_memory_are_the_pictures():
    scenes = [sample_scene(0, index, "train") for index in range(3)]
    pixels = draw_scenes(scenes, num_workers=2)
    for picture, scene in zip(pixels, scenes, strict=True):
        assert np.array_equal(picture.transpose(1, 2, 0), np.asarray(draw_scene(scene)))


def test_written_folder_is_read_by_the_flickr8k_reader(tmp_path):
    draw_flatland8k(tmp_path / "set", num_images=16, num_workers=1)
    source = load_dataset(tmp_path / "set")
    assert [len(source.in_split(split)) for split in ("train", "val", "test")] == [12, 2, 2]
    assert not source.excluded
    plain = plain_captions(tmp_path / "set")
    assert plain.keys() == {image.image_id for image in source.images}
    rows = [json.loads(line) for line in (tmp_path / "set" / "attributes.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"image_id", "split", *ATTRIBUTES, "held_out", "plain_caption"}


def test_folder_that_holds_files_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    with pytest.raises(ValueError, match="already holds files; name an empty or new folder with --out"):
        draw_flatland8k(tmp_path, num_images=8)


def test_set_that_was_not_drawn_has_no_plain_captions(tmp_path):
    with pytest.raises(FileNotFoundError, match="only drawn datasets have plain captions"):
        plain_captions(tmp_path)
