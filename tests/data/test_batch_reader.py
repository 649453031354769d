"""Images that are decoded while training: the same batches, and what happens at damaged ones."""

import os
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_loader import flat
from transformers import CLIPImageProcessorPil

import tiny
from clipgraft.data.crop_reader import CropReader, KeptCrops, NoCrops
from clipgraft.data.dataset import CaptionedImage, CaptionedImages
from clipgraft.data.image_file import Member
from clipgraft.data.loader import CaptionedBatches, choose_num_workers, clear_worker_errors
from clipgraft.data.transforms import load_crops
from clipgraft.errors import DataError, MissingFileError, UserError
from windowed import Windowed


@pytest.fixture(scope="module")
def options() -> dict:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return {"tokenizer": tiny.build_tokenizer(), "processor": processor, "batch_size": 4, "seed": 3}


@pytest.fixture
def images(tmp_path: Path) -> CaptionedImages:
    records = []
    for index in range(16):
        path = tmp_path / f"{index:02}.png"
        Image.new("RGB", (40, 36), (15 * index, 0, 0)).save(path)
        records.append(CaptionedImage(path.name, path, (f"dog {index}", "a cat"), "train"))
    return CaptionedImages(records)


def read_batches(images: CaptionedImages, options: dict, **others) -> CaptionedBatches:
    return CaptionedBatches(Windowed(images), CropReader(options["processor"]), **options, **others)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_decoded_crops_are_the_cached_ones(images, options, num_workers):
    kept = CaptionedBatches(
        Windowed(images), KeptCrops(images, load_crops(images, options["processor"])), **options
    )
    read = read_batches(images, options, num_workers=num_workers)
    assert flat(read.epoch(1, 1)) == flat(kept.epoch(1, 1))


def test_damaged_image_is_one_line_also_from_a_worker(images, options):
    images[5].file.write_bytes(b"")
    for num_workers in (0, 2):
        with pytest.raises(DataError, match=r"^\S+/05\.png: is empty \(0 bytes\)$"):
            list(read_batches(images, options, num_workers=num_workers).epoch(0, 0))


@pytest.mark.parametrize("num_processes", [1, 2])
def test_next_image_of_the_batch_stands_in(images, options, num_processes, capsys):
    whole = [batch["image_ids"] for batch in read_batches(images, options).epoch(0, 0)]
    first, second, third, _ = whole[0]
    last = whole[2][-1]
    for name in (second, third, last):
        (images[0].file.parent / name).write_bytes(b"no image")
    shares = [
        read_batches(
            images,
            options,
            skips_damaged=True,
            num_workers=1,
            process_index=index,
            num_processes=num_processes,
        )
        for index in range(num_processes)
    ]
    found = [list(share.epoch(0, 0)) for share in shares]
    ids = [list(chain(*(part["image_ids"] for part in parts))) for parts in zip(*found, strict=True)]
    assert ids[0] == [first, whole[0][3], whole[0][3], whole[0][3]]
    assert ids[2] == [*whole[2][:3], whole[2][0]]
    assert (ids[1], ids[3]) == (whole[1], whole[3])
    numbers = [number for part in found for number in part[0]["image_index"].tolist()]
    assert len(set(numbers)) == 4  # the loss needs a number of its own for each place
    assert {name for share in shares for name in share.damaged} == {second, third, last}
    assert f"note: {second} is skipped (is no image" in capsys.readouterr().err


def test_equal_images_of_a_batch_have_one_duplicate_id(images, options):
    whole = next(iter(read_batches(images, options).epoch(0, 0)))["image_ids"]
    (images[0].file.parent / whole[1]).write_bytes(b"")
    batch = next(iter(read_batches(images, options, skips_damaged=True).epoch(0, 0)))
    _, second, third, _ = batch["duplicate_id"].tolist()
    assert second == third
    assert torch.equal(batch["clip_pixel_values"][1], batch["clip_pixel_values"][2])


def test_missing_file_is_skipped_like_a_damaged_one(images, options):
    images[7].file.unlink()
    batches = read_batches(images, options, skips_damaged=True)
    assert len(list(batches.epoch(0, 0))) == 4
    assert list(batches.damaged) == ["07.png"]


def test_batch_of_damaged_images_alone_ends_the_training(images, options):
    for image in images:
        image.file.write_bytes(b"")
    with pytest.raises(DataError, match="all 4 images of a batch are damaged: "):
        list(read_batches(images, options, skips_damaged=True, num_workers=1).epoch(0, 0))


def test_shard_that_is_gone_is_never_skipped(images, options, tmp_path):
    lost = CaptionedImage("x.png", Member(tmp_path / "gone.tar", 0, 9, "x.png"), ("a dog",), "train")
    with pytest.raises(MissingFileError, match="no such shard any more"):
        list(read_batches(CaptionedImages([lost] * 4), options, skips_damaged=True).epoch(0, 0))


def test_source_shorter_than_it_says_is_named(images, options):
    short = Windowed(images)
    short.epoch = lambda seed, epoch, start: iter(list(enumerate(images))[start:10])
    batches = CaptionedBatches(short, CropReader(options["processor"]), **options)
    with pytest.raises(DataError, match="has 10 training images and was to have 16"):
        list(batches.epoch(0, 1))


@pytest.mark.parametrize("told", ["(pid 7) is killed by signal: Bus error. ", "(pid(s) 7) exited"])
def test_killed_worker_is_one_line(told):
    message = r"^a process that reads images ended .*/dev/shm.*num_workers$"
    with pytest.raises(UserError, match=message), clear_worker_errors():
        raise RuntimeError(f"DataLoader worker {told}")


def test_bug_in_a_worker_stays_a_bug():
    with pytest.raises(RuntimeError, match="Caught") as error, clear_worker_errors():
        raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.")
    assert not isinstance(error.value, UserError)


def test_workers_are_started_for_crops_that_are_not_kept(options, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    reader = CropReader(options["processor"])
    assert [choose_num_workers(-1, reader, processes) for processes in (1, 2, 16)] == [8, 4, 1]
    assert choose_num_workers(-1, NoCrops(), 1) == 0
    assert [choose_num_workers(set_, reader, 1) for set_ in (0, 3)] == [0, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_num_workers(-1, reader, 16) == 4
