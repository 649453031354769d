"""Several sources in one training."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from clipgraft.config import load_recipe, named_paths, recipe_with, to_toml
from clipgraft.data.check import iter_images, num_images
from clipgraft.data.dataset import CaptionedImage, CaptionedImages
from clipgraft.data.formats import load_dataset
from clipgraft.data.mixed import MixedImages, Part
from clipgraft.errors import DataError, UserError
from clipgraft.settings import DataSettings, WeightedSource
from windowed import Windowed


def images(name: str, count: int) -> CaptionedImages:
    return CaptionedImages(
        CaptionedImage(f"{i}.jpg", Path(f"{name}/{i}.jpg"), (f"{name} {i}",), "train") for i in range(count)
    )


def mixed(*weights: float) -> MixedImages:
    sizes = (7, 12, 5)
    kinds = (images, lambda name, count: Windowed(images(name, count)), images)
    parts = zip("abc", kinds, sizes, weights, strict=False)
    return MixedImages([Part(name, kind(name, size), weight) for name, kind, size, weight in parts])


def ids(pairs) -> list[str]:
    return [image.image_id for _, image in pairs]


@pytest.mark.parametrize("weights", [(1, 1, 1), (2, 0.5, 1.4), (0.2, 3, 1)])
def test_every_image_comes_as_often_as_its_weight_says(weights):
    source = mixed(*weights)
    num_epochs = 10
    counts = Counter(name for epoch in range(num_epochs) for name in ids(source.epoch(3, epoch)))
    for part in source.parts:
        times = [counts[f"{part.name}/{number}.jpg"] for number in range(len(part.images))]
        assert sum(times) == num_epochs * part.count
        assert max(times) - min(times) <= 1
        mean = sum(times) / len(times) / num_epochs
        assert mean == pytest.approx(part.weight, abs=0.5 / len(times))


def test_epoch_of_a_mixture_can_begin_anywhere():
    source = mixed(2, 0.5, 1.4)
    whole = list(source.epoch(1, 3))
    assert len(whole) == len(source) == 14 + 6 + 7
    for start in range(len(whole) + 1):
        assert list(source.epoch(1, 3, start)) == whole[start:]
    assert ids(source.epoch(1, 4)) != ids(whole)
    assert ids(source.epoch(2, 3)) != ids(whole)


def test_no_number_comes_twice_in_an_epoch():
    source = mixed(2, 0.5, 1.4)
    for epoch in range(4):
        numbers = [number for number, _ in source.epoch(0, epoch)]
        assert len(set(numbers)) == len(source)
        assert all(0 <= number < 2**63 for number in numbers)


def test_sources_are_spread_over_the_epoch():
    source = MixedImages([Part("a", images("a", 300), 1), Part("b", images("b", 100), 3)])
    names = [name[0] for name in ids(source.epoch(0, 0))]
    # 150 of each in a half; four standard deviations of a hypergeometric count are 25.
    assert 125 < names[:300].count("a") < 175


def test_captions_and_first_images_come_in_proportion():
    source = MixedImages([Part("a", images("a", 30), 1), Part("b", images("b", 10), 1)])
    assert Counter(caption[0] for caption in islice(source.iter_captions(), 12)) == {"a": 9, "b": 3}
    assert len(list(source.iter_captions())) == 40
    assert Counter(image.image_id[0] for image in source.first(8)) == {"a": 6, "b": 2}
    assert len(source.first(40)) == 40


def test_fingerprint_follows_sources_and_weights(tmp_path):
    def fingerprint(weight: float, content: bytes) -> str:
        path = tmp_path / "0.jpg"
        path.write_bytes(content)
        part = CaptionedImages([CaptionedImage("0.jpg", path, ("a",), "train")])
        return MixedImages([Part("x", part, weight)]).fingerprint

    assert fingerprint(1, b"first") == fingerprint(1, b"first")
    assert len({fingerprint(1, b"first"), fingerprint(2, b"first"), fingerprint(1, b"other!")}) == 3


def test_weight_that_leaves_no_image_is_refused():
    with pytest.raises(DataError, match=r"a has 7 training images, and a weight of 0\.01 leaves none"):
        mixed(0.01)


@pytest.mark.parametrize("weight", [1e9, 1e300])
def test_weight_of_more_images_than_can_be_ordered_is_refused(weight):
    with pytest.raises(DataError, match=r"images, and 1,000,000,000 can be ordered; lower the weights"):
        mixed(weight)


@pytest.fixture
def recipe(tmp_path):
    for name in ("one/photos", "two/photos"):
        for split, number in (("train", 0), ("train", 1), ("val", 2), ("test", 3)):
            folder = tmp_path / name / split
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.jpg").write_bytes(name.encode())
            (folder / f"{number}.txt").write_text(f"{name} {number}")
    sources = "".join(
        f'[[data.sources]]\nsource = "{tmp_path / name}"\nweight = {weight}\n'
        for name, weight in (("one/photos", 1), ("two/photos", 2.5))
    )
    path = tmp_path / "recipe.toml"
    path.write_text(sources)
    return load_recipe(path)


def test_sources_of_a_recipe_become_one_dataset(recipe, tmp_path):
    dataset = load_dataset(recipe.data)
    assert (
        load_dataset(recipe.data) == dataset or load_dataset(recipe.data).fingerprint == dataset.fingerprint
    )
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (2 + 5, 2, 2)
    assert [image.image_id for image in dataset.val] == ["photos-2/val/2.jpg", "photos/val/2.jpg"]
    assert dataset.val[0].captions == ("two/photos 2",)
    second = f"{tmp_path}/two/photos (caption files beside images), 2 training images x 2.5"
    assert dataset.files["photos-2"] == second
    assert dataset.origin == DataSettings(sources=recipe.data.sources)


def test_check_looks_at_every_image_once_whatever_its_weight(recipe):
    dataset = load_dataset(recipe.data)
    assert num_images(dataset) == 8
    names = [image.image_id for image in iter_images(dataset)]
    assert sorted(names) == sorted(
        f"{name}/{place}.jpg"
        for name in ("photos", "photos-2")
        for place in ("train/0", "train/1", "val/2", "test/3")
    )


def test_recipe_of_several_sources_is_read_back_equal(recipe, tmp_path):
    path = tmp_path / "again.toml"
    path.write_text(to_toml(recipe))
    assert path.read_text().count("[[data.sources]]") == 2
    assert load_recipe(path) == recipe
    assert named_paths(recipe)["data.sources.1.source"] == f"{tmp_path}/two/photos"


def test_sources_are_set_on_the_command_line_too(tmp_path):
    given = recipe_with(None, ['data.sources=[{source="/a", weight=2}, {source="/b", caption_field="text"}]'])
    first, second = given.data.sources
    assert first == WeightedSource(source="/a", weight=2.0)
    assert (second.weight, second.caption_field) == (1.0, "text")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{source="/a", weight=0}]', r"data\.sources\.0\.weight': input should be greater than 0; got 0"),
        (
            '[{source="/a", wieght=1}]',
            r"unknown recipe key 'data\.sources\.0\.wieght'; did you",
        ),
        ('["/a"]', r"data\.sources\.0': "),
        ('"/a"', r"data\.sources': "),
    ],
)
def test_wrong_sources_get_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        recipe_with(None, [f"data.sources={text}"])
    assert "\n" not in str(error.value)


def test_sources_are_given_in_python_too(recipe):
    sources = [each.model_dump() for each in recipe.data.sources]
    assert load_dataset(sources=sources).fingerprint == load_dataset(recipe.data).fingerprint
    with pytest.raises(UserError, match="are both set"):
        load_dataset("/a", sources=sources)


def test_source_and_sources_together_are_refused(recipe):
    with pytest.raises(UserError, match="are both set; leave one of them out"):
        load_dataset(recipe.data.updated({"source": "/a"}))
