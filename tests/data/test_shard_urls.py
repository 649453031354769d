"""Shards at URLs are fetched whole into the cache, and what goes wrong on the way is named."""

import shutil

import fsspec
import pytest

from clipgraft.cache import bound_cache
from clipgraft.data import shard_fetch
from clipgraft.data.formats import load_dataset
from clipgraft.data.image_file import read_image_bytes
from clipgraft.data.shards import WINDOW_SHARDS
from clipgraft.errors import DataError, MissingFileError
from clipgraft.settings import DataSettings
from file_server import serve
from shard_writers import write_shards

pytestmark = [pytest.mark.enable_socket, pytest.mark.allow_hosts(["127.0.0.1"])]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(shard_fetch, "PAUSE_SECONDS", 0)
    return cache / "clipgraft" / "shards"


@pytest.fixture
def server(tmp_path):
    """Six shards of ten images, served."""
    with serve(write_shards(tmp_path / "served", 60, 10)) as files:
        yield files


@pytest.fixture
def in_memory(tmp_path):
    """URL of a folder with the same shards in fsspec's memory."""
    fs = fsspec.filesystem("memory")
    for path in write_shards(tmp_path / "local", 60, 10).iterdir():
        fs.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    yield "memory://bucket/set"
    fs.store.clear()


def load(source, **settings):
    return load_dataset(DataSettings(source=source, **{"num_train_images": 40, **settings}))


def epoch(dataset):
    """Captions and bytes in the order of an epoch."""
    return [(image.captions, read_image_bytes(image.file, 10_000)) for _, image in dataset.train.epoch(0, 0)]


def test_shards_at_a_url_are_those_of_the_folder(server, in_memory):
    local = load(str(server.folder))
    for source in (f"{server.url}/{{00000..00005}}.tar", in_memory, f"{in_memory}/*.tar"):
        remote = load(source)
        assert epoch(remote) == epoch(local)
        assert [image.image_id for image in remote.images] == [image.image_id for image in local.images]
        assert remote.root == source


def test_shard_is_fetched_once(server):
    source = f"{server.url}/{{00000..00003}}.tar"
    assert len(epoch(load(source, num_train_images=0))) > 0
    assert [server.sent(f"{number:05d}.tar") for number in range(4)] == [1] * 4
    assert len(epoch(load(source, num_train_images=0))) > 0
    assert [server.sent(f"{number:05d}.tar") for number in range(4)] == [1] * 4


def test_single_file_at_a_url_is_a_source(server):
    dataset = load(f"{server.url}/00002.tar", num_train_images=0)
    assert len(dataset.train) + len(dataset.images) == 10


def test_transfer_that_ends_early_is_tried_again(server):
    server.cut = {"00001.tar": 2}
    assert len(load(f"{server.url}/{{00000..00001}}.tar", num_train_images=0).train) > 0
    assert server.sent("00001.tar") == 3


def test_transfer_that_always_ends_early_is_named(server, own_cache):
    server.cut = {"00001.tar": 99}
    with pytest.raises(DataError, match=r"/00001\.tar: cannot be fetched, tried 3 times: \w+"):
        load(f"{server.url}/{{00000..00001}}.tar", num_train_images=0)
    assert server.sent("00001.tar") == 3
    assert not list(own_cache.glob(".*"))


def test_damaged_shard_is_named_and_fetched_anew(server, own_cache):
    content = (server.folder / "00001.tar").read_bytes()
    (server.folder / "00001.tar").write_bytes(content[:-20_000])
    source = f"{server.url}/{{00000..00001}}.tar"
    with pytest.raises(DataError, match=r"http://.*/00001\.tar is cut"):
        load(source, num_train_images=0)
    (server.folder / "00001.tar").write_bytes(content)
    assert len(epoch(load(source, num_train_images=0))) > 0


def test_url_with_a_query_is_a_source(server):
    dataset = load(f"{server.url}/00002.tar?signature=a*b", num_train_images=0)
    assert len(dataset.train) + len(dataset.images) == 10
    assert all(image.image_id.startswith("00002.tar/") for image in dataset.images)


def test_number_of_images_has_to_be_stated_for_urls(server):
    source = f"{server.url}/{{00000..00005}}.tar"
    with pytest.raises(
        DataError, match=r"how many images its 6 shards hold is stated nowhere .* set data\.num"
    ):
        load(source, num_train_images=0)
    for number in range(6):
        (server.folder / f"{number:05d}_stats.json").write_text('{"successes": 10}')
    assert len(load(source, num_train_images=0).train) == 6 * 8


def test_what_is_not_at_a_url_is_named(server):
    for source in (f"{server.url}/{{00005..00006}}.tar", f"{server.url}/00006.tar", "memory://nowhere/set"):
        with pytest.raises(MissingFileError, match=r"no such shard or folder|no shard there"):
            load(source)
    with pytest.raises(DataError, match=r"nothing://set/a\.tar: cannot be read \(.*nothing"):
        load("nothing://set/a.tar")


def test_shard_that_changes_on_the_server_is_named(server, own_cache):
    dataset = load(f"{server.url}/{{00000..00005}}.tar")
    shutil.rmtree(own_cache)
    (server.folder / "00004.tar").write_bytes((server.folder / "00005.tar").read_bytes())
    with pytest.raises(DataError, match=r"/00004\.tar has changed since this run began; run it again"):
        epoch(dataset)
    (server.folder / "00004.tar").unlink()
    with pytest.raises(MissingFileError, match=r"/00004\.tar: no such shard any more"):
        epoch(dataset)


@pytest.mark.integration
def test_only_shards_in_use_stay_in_a_full_cache(tmp_path, own_cache):
    with serve(write_shards(tmp_path / "many", 96, 4)) as server:
        limits = {"num_train_images": 70, "max_val_images": 1, "max_test_images": 1}
        try:
            dataset = load(f"{server.url}/{{00000..00023}}.tar", cache_gb=0.0, **limits)
            images = epoch(dataset)
            num_kept = len(list(own_cache.glob("*.tar")))
            assert epoch(dataset) == images
        finally:
            bound_cache(DataSettings().cache_gb)
    num_of_val_and_test = len(dataset.train.held)
    assert num_kept <= 3 * WINDOW_SHARDS + num_of_val_and_test < 24
    assert max(server.sent(f"{number:05d}.tar") for number in range(24)) > 1
