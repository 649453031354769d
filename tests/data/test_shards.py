"""Training images of shards come in an order of each epoch, which can begin anywhere."""

import itertools
import shutil

import pytest
import webdataset

from clipgraft.data.formats import load_dataset
from clipgraft.data.image_file import read_image_bytes
from clipgraft.data.raw import hash_split
from clipgraft.data.shard import Shard
from clipgraft.data.shards import WINDOW_SHARDS
from clipgraft.errors import DataError, MissingFileError
from clipgraft.settings import DataSettings
from shard_writers import jpeg, write_shards, write_tar


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def opened(monkeypatch):
    """Names of the shards opened so far."""
    names, open_shard = [], Shard.open

    def noting(shard):
        names.append(shard.file.name)
        return open_shard(shard)

    monkeypatch.setattr(Shard, "open", noting)
    return names


def stated(folder, successes=20):
    """Write img2dataset's statements beside shards."""
    for path in folder.glob("*.tar"):
        path.with_name(f"{path.stem}_stats.json").write_text(f'{{"count": 25, "successes": {successes}}}')
    return folder


def test_every_sample_is_in_the_split_of_its_key(tmp_path):
    dataset = load_dataset(write_shards(tmp_path / "set", 90, 15))
    samples = list(webdataset.WebDataset(f"{tmp_path}/set/{{00000..00005}}.tar", shardshuffle=False))
    expected = {split: set() for split in ("train", "val", "test")}
    for sample in samples:
        expected[hash_split(sample["__key__"])].add((sample["txt"].decode(), sample["jpg"]))
    train = [image for _, image in dataset.train.epoch(0, 0)]
    for split, images in (("train", train), ("val", dataset.val), ("test", dataset.test)):
        found = {(image.captions[0], read_image_bytes(image.file, 10_000)) for image in images}
        assert found == expected[split]
        assert len(images) == len(found)
        assert {image.split for image in images} == {split}
    assert len(dataset.train) == len(train)
    assert sorted(dataset.train.iter_captions()) == sorted(image.captions[0] for image in train)
    assert dataset.format == "webdataset shards"
    assert dataset.files == {"shards": "6, 00000.tar to 00005.tar"}


@pytest.mark.integration
def test_epoch_begun_anywhere_goes_on_as_the_whole_one(tmp_path):
    train = load_dataset(write_shards(tmp_path, 120, 12)).train
    whole = list(train.epoch(3, 5))
    for start in (0, 1, 17, 60, len(whole) - 1, len(whole)):
        assert list(train.epoch(3, 5, start)) == whole[start:]
    numbers = [number for number, _ in whole]
    assert len(set(numbers)) == len(numbers) == len(train)
    for seed, epoch in ((3, 6), (4, 5)):
        other = list(train.epoch(seed, epoch))
        assert other != whole
        assert sorted(number for number, _ in other) == sorted(numbers)
        assert dict(other) == dict(whole)


def test_only_shards_from_the_position_on_are_opened(tmp_path, opened):
    train = load_dataset(write_shards(tmp_path, 240, 12)).train
    opened.clear()
    assert next(train.epoch(0, 0))
    assert len(set(opened)) <= 2 * WINDOW_SHARDS
    opened.clear()
    last = list(train.epoch(0, 0, len(train) - 5))
    assert len(last) == 5
    assert len(set(opened)) == WINDOW_SHARDS


def test_samples_of_a_window_are_mixed(tmp_path):
    train = load_dataset(write_shards(tmp_path, 200, 50)).train
    shards = [image.image_id.partition("/")[0] for _, image in train.epoch(0, 0)]
    runs = [len(list(run)) for _, run in itertools.groupby(shards)]
    assert max(runs) < 15  # unmixed they would be 40


def test_counts_beside_shards_spare_their_indexing(tmp_path, opened):
    folder = stated(write_shards(tmp_path, 200, 20))
    dataset = load_dataset(folder, max_val_images=3, max_test_images=2)
    assert len(dataset.train) == 10 * int(20 * 0.8)
    assert (len(dataset.val), len(dataset.test)) == (3, 2)
    assert len(set(opened)) <= 2
    assert "by what is stated beside the shards" in dataset.notes[0]
    whole = list(dataset.train.epoch(0, 0))
    assert len(whole) == len(dataset.train)
    assert list(dataset.train.epoch(0, 0, 100)) == whole[100:]


def test_epoch_longer_than_the_shards_takes_another_pass(tmp_path):
    folder = stated(write_shards(tmp_path, 100, 20), successes=40)
    train = load_dataset(folder).train
    whole = list(train.epoch(0, 0))
    images = {image.image_id for _, image in whole}
    assert len(whole) == len(train) == 5 * 32
    assert len(images) < 100
    assert len({number for number, _ in whole}) == len(whole)
    assert list(train.epoch(0, 0, 130)) == whole[130:]


def test_stated_number_of_images_is_an_epoch(tmp_path):
    folder = write_shards(tmp_path, 100, 10)
    assert len(load_dataset(DataSettings(source=str(folder), num_train_images=37)).train) == 37
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "a.jpg").write_bytes(jpeg(1))
    with pytest.raises(DataError, match=r"holds no shards, so data\.num_train_images says nothing"):
        load_dataset(DataSettings(source=str(tmp_path / "loose"), num_train_images=37))


def test_names_of_shards_tell_splits(tmp_path):
    for split, num_images in (("train", 40), ("val", 8), ("test", 6)):
        write_shards(tmp_path, num_images, 10, f"{split}-%05d.tar")
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (40, 8, 6)
    assert dataset.split_rule == "names of shards or of their folders"
    assert all(image.image_id.startswith("val-00000.tar/") for image in dataset.val)


def test_split_in_the_json_comes_before_the_name(tmp_path):
    write_shards(tmp_path, 5, 5, "train-%05d.tar", split="validation")
    write_shards(tmp_path, 5, 5, "test-%05d.tar")
    dataset = load_dataset(tmp_path)
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (0, 5, 5)
    assert dataset.split_rule == "a split column or field"


def test_one_name_alone_tells_no_split(tmp_path):
    dataset = load_dataset(write_shards(tmp_path, 60, 20, "train-%05d.tar"))
    assert len(dataset.train) < 60
    assert len(dataset.val) > 0
    assert "hash" in dataset.split_rule


def test_same_key_in_two_shards_is_in_one_split(tmp_path):
    for number in range(3):
        members = [
            (f"{key}.{end}", jpeg(key) if end == "jpg" else f"dog {key}")
            for key in range(40)
            for end in ("jpg", "txt")
        ]
        write_tar(tmp_path / f"{number}.tar", members)
    dataset = load_dataset(tmp_path)
    train = [image for _, image in dataset.train.epoch(0, 0)]
    keys = {
        split: {image.file.name for image in images}
        for split, images in (("train", train), ("val", dataset.val))
    }
    assert len(train) == 3 * len(keys["train"])
    assert not keys["train"] & keys["val"]
    assert len({image.image_id for image in train}) == len(train)


def test_fingerprint_tells_names_sizes_and_counts(tmp_path):
    folder = write_shards(tmp_path / "a", 40, 10)
    first = load_dataset(folder).train.fingerprint
    shutil.copytree(folder, tmp_path / "b")
    assert load_dataset(tmp_path / "b").train.fingerprint == first
    (tmp_path / "b" / "00003.tar").unlink()
    assert load_dataset(tmp_path / "b").train.fingerprint != first


def test_left_out_samples_are_excluded_by_name(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [("1.jpg", jpeg(1)), ("1.txt", "a dog"), ("2.jpg", jpeg(2)), ("3.txt", "no image")],
    )
    dataset = load_dataset(tmp_path)
    assert {(item.name, item.reason) for item in dataset.excluded} == {
        ("a.tar/2.jpg", "sample without caption"),
        ("a.tar/3.txt", "sample without image"),
    }


@pytest.mark.parametrize("members", [[], [("1.jpg", jpeg(1))]])
def test_shards_without_a_captioned_image_are_refused(tmp_path, members):
    write_tar(tmp_path / "a.tar", members)
    reason = "1: sample without caption" if members else "no sample at all"
    with pytest.raises(
        DataError, match=rf"no image with a caption remains in 1 shard\(s\)\. Excluded: {reason}"
    ):
        load_dataset(tmp_path)


def test_source_without_training_images_has_an_empty_epoch(tmp_path):
    write_shards(tmp_path, 5, 5, split="test")
    dataset = load_dataset(tmp_path)
    assert (list(dataset.train.epoch(0, 0)), len(dataset.train), len(dataset.test)) == ([], 0, 5)


def test_empty_shard_among_others_is_passed_over(tmp_path):
    write_shards(tmp_path, 30, 10)
    write_tar(tmp_path / "00009.tar", [])
    dataset = load_dataset(tmp_path)
    assert len(list(dataset.train.epoch(0, 0))) + len(dataset.images) == 30


def test_cut_shard_is_named(tmp_path):
    path = write_shards(tmp_path, 30, 10) / "00001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"00001\.tar is cut: it lacks a tar's end; copy or download it anew"):
        load_dataset(tmp_path)


def test_shard_that_changes_or_goes_under_a_run_is_named(tmp_path):
    folder = write_shards(tmp_path, 60, 10)
    train = load_dataset(folder).train
    content = (folder / "00002.tar").read_bytes()
    (folder / "00002.tar").write_bytes(content + bytes(512))
    with pytest.raises(DataError, match=r"00002\.tar has changed since this run began; run it again"):
        list(train.epoch(0, 0))
    (folder / "00002.tar").unlink()
    with pytest.raises(MissingFileError, match=r"00002\.tar: no such shard any more; put it back"):
        list(train.epoch(0, 0))
