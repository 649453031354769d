"""Packed shards hold what the source holds, and webdataset and `datasets` read them."""

import hashlib
import json

import datasets
import pytest
import webdataset

from clipgraft.data.formats import load_dataset
from clipgraft.data.image_file import read_image_bytes
from clipgraft.data.images import open_image
from clipgraft.data.pack import pack
from clipgraft.errors import DataError, UserError
from clipgraft.settings import DataSettings
from helpers import call, files_of_at_most, refused
from shard_writers import jpeg, write_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def loose(tmp_path):
    """A folder of thirty images with two captions each and named splits."""
    folder = tmp_path / "loose"
    folder.mkdir()
    rows = []
    for number in range(30):
        (folder / f"image.{number}.jpg").write_bytes(jpeg(number))
        split = "val" if number >= 25 else "train"
        captions = [f"a photo of {number}", f"ein Foto von {number} — ä"]
        rows.append({"file_name": f"image.{number}.jpg", "captions": captions, "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def contents(dataset):
    """Split, captions and bytes of all images."""
    images = [*(image for _, image in dataset.train.epoch(0, 0)), *dataset.images]
    return {(image.split, image.captions, read_image_bytes(image.file, 10_000)) for image in images}


def test_packed_shards_hold_what_the_source_holds(loose, tmp_path):
    out = tmp_path / "out"
    counts = pack(DataSettings(source=str(loose)), out, shard_size=4)
    assert counts == {"train": 25, "val": 5, "test": 0}
    packed, source = load_dataset(out), load_dataset(loose)
    assert contents(packed) == contents(source)
    assert len(packed.train) == 25
    assert [path.name for path in sorted(out.iterdir())] == [
        "shards.json",
        *(f"train-{number:06d}.tar" for number in range(7)),
        "val-000000.tar",
        "val-000001.tar",
    ]


def test_webdataset_reads_packed_shards(loose, tmp_path):
    pack(DataSettings(source=str(loose)), tmp_path / "out", shard_size=10)
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode("pil"))
    found = {(item["json"]["split"], *item["json"]["captions"], item["jpg"].tobytes()) for item in samples}
    source = load_dataset(loose)
    images = [*(image for _, image in source.train.epoch(0, 0)), *source.images]
    assert found == {(image.split, *image.captions, open_image(image.file).tobytes()) for image in images}
    assert all(item["txt"] == item["json"]["captions"][0] for item in samples)
    assert {item["json"]["file_name"] for item in samples} == {image.image_id for image in images}


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_datasets_reads_packed_shards(loose, tmp_path):
    pack(DataSettings(source=str(loose)), tmp_path / "out")
    files = {split: str(tmp_path / "out" / f"{split}-*.tar") for split in ("train", "val")}
    found = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert (len(found["train"]), len(found["val"])) == (25, 5)
    row = found["val"][0]
    assert row["jpg"].size == (20, 16)
    assert row["txt"] == row["json"]["captions"][0]


def test_index_states_images_sizes_and_checksums(loose, tmp_path):
    out = tmp_path / "out"
    pack(DataSettings(source=str(loose)), out, shard_size=20)
    shards = json.loads((out / "shards.json").read_text())["shards"]
    assert shards.keys() == {path.name for path in out.glob("*.tar")}
    assert [shard["images"] for shard in shards.values()] == [{"train": 20}, {"train": 5}, {"val": 5}]
    assert [shard["captions"] for shard in shards.values()] == [40, 10, 10]
    for name, shard in shards.items():
        content = (out / name).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_index_spares_opening_shards_and_tells_cut_ones(loose, tmp_path):
    out = tmp_path / "out"
    pack(DataSettings(source=str(loose)), out, shard_size=3)
    (out / "train-000004.tar").write_bytes((out / "train-000004.tar").read_bytes()[:-1024])
    with pytest.raises(
        DataError, match=r"train-000004\.tar has [\d,]+ bytes, but shards\.json beside it says \d+"
    ):
        load_dataset(out)


@pytest.mark.parametrize(
    "row",
    [
        3,
        {"bytes": 1},
        {"images": {"train": 1}},
        {"bytes": 1, "images": [1]},
        {"bytes": 1, "images": {"train": "2"}},
    ],
)
def test_index_of_another_tool_is_left_unread(loose, tmp_path, row):
    out = tmp_path / "out"
    pack(DataSettings(source=str(loose)), out, shard_size=10)
    index = {"shards": {path.name: row for path in out.glob("*.tar")}}
    (out / "shards.json").write_text(json.dumps(index))
    assert contents(load_dataset(out)) == contents(load_dataset(loose))


def test_equal_sources_give_equal_bytes_in_any_order(loose, tmp_path):
    for name in ("one", "two"):
        pack(DataSettings(source=str(loose)), tmp_path / name, shard_size=10)
    first, second = ((tmp_path / name / "train-000001.tar").read_bytes() for name in ("one", "two"))
    assert first == second
    order = [image.captions[0] for image in load_dataset(tmp_path / "one").train.first(25)]
    assert order != sorted(order, key=lambda caption: int(caption.split()[-1]))


def test_shards_are_packed_again_in_other_sizes(tmp_path):
    source = write_shards(tmp_path / "source", 60, 10)
    pack(DataSettings(source=str(source)), tmp_path / "out", shard_size=7)
    assert contents(load_dataset(tmp_path / "out")) == contents(load_dataset(source))


def test_a_full_disk_names_the_shards_and_leaves_none(loose, tmp_path, capsys):
    with files_of_at_most(20_000):
        line = refused(capsys, "data", "pack", loose, tmp_path / "shards")
    assert line == f"error: no space left on the disk ({tmp_path}/shards); free some and run again"
    assert [path.name for path in tmp_path.iterdir()] == ["loose"]


def test_shard_is_full_at_its_megabytes(tmp_path, loose):
    big = jpeg(1) + bytes(400_000)  # behind the end of a JPEG, which is left unread
    for path in loose.glob("image.1*.jpg"):
        path.write_bytes(big)
    pack(DataSettings(source=str(loose)), tmp_path / "out", max_mb=1)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("train-*.tar")]
    assert len(sizes) > 2
    assert max(sizes) < 1_000_000 + 500_000


def test_folder_that_is_there_or_in_the_source_is_refused(loose, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match=r"there is there already; name a new folder, or delete it"):
        pack(DataSettings(source=str(loose)), tmp_path / "there")
    assert "lies in data.source" in refused(capsys, "data", "pack", loose, loose / "out")
    with pytest.raises(UserError, match=r"lies in data\.sources\.0\.source"):
        pack(DataSettings.build({"sources": [{"source": str(loose)}]}), loose / "out")


def test_failed_packing_leaves_nothing(loose, tmp_path):
    (loose / "image.3.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image\.3\.jpg: is no image of a known format"):
        pack(DataSettings(source=str(loose)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["loose"]
    counts = pack(DataSettings(source=str(loose), on_damaged="skip"), tmp_path / "out")
    assert counts["train"] == 24


def test_limits_of_settings_hold_when_packing(loose, tmp_path, capsys):
    limits = ["--set", "data.max_train_images=6", "--set", "data.max_val_images=2"]
    assert call("data", "pack", loose, tmp_path / "out", *limits) == 0
    assert "6 train, 2 val, 0 test images in 2 shards" in " ".join(capsys.readouterr().out.split())
