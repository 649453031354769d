"""Batches: their contents, their order, and that nothing but seed and epoch decides it."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPTokenizer

from clipgraft.data import loader as loader_module
from clipgraft.data.images import open_image
from clipgraft.data.loader import EpochSampler, ImageCaptionDataset, draw_caption, make_loader
from clipgraft.data.records import CaptionedImage
from clipgraft.data.transforms import clip_pixel_values, tokenize
from clipgraft.errors import DataError

NUM_IMAGES = 10


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        vocab[letter], vocab[f"{letter}</w>"] = len(vocab), len(vocab) + 1
    return CLIPTokenizer(vocab=vocab, merges=[])


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionedImage]:
    folder = tmp_path_factory.mktemp("images")
    records = []
    for index in range(NUM_IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        letter = "abcdefghij"[index]
        captions = tuple(letter * length for length in (1, 3, 5))
        records.append(CaptionedImage(path.name, path, captions, "train"))
    return records


@pytest.fixture
def options(tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil) -> dict:
    return {"tokenizer": tokenizer, "processor": processor, "batch_size": 4, "seed": 3}


def flat(loader: torch.utils.data.DataLoader) -> list[dict]:
    return [
        {key: getattr(value, "tolist", lambda v=value: v)() for key, value in batch.items()}
        for batch in loader
    ]


def test_batch_holds_each_image_with_one_of_its_own_captions(
    images: list[CaptionedImage], options: dict
) -> None:
    batch = next(iter(make_loader(images, **options)))
    picked = [images[index] for index in batch["image_index"]]
    assert batch["image_ids"] == [image.image_id for image in picked]
    assert (batch["input_ids"].dtype, batch["image_index"].dtype) == (torch.int64, torch.int64)
    expected = clip_pixel_values([open_image(image.path) for image in picked], options["processor"])
    assert torch.equal(batch["clip_pixel_values"], expected)
    length = batch["input_ids"].shape[1]
    for image, row in zip(picked, batch["input_ids"], strict=True):
        ids = tokenize(image.captions, options["tokenizer"], pad_to_context_length=True).input_ids[:, :length]
        assert row.tolist() in ids.tolist()


def test_epoch_shows_every_image_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(100, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(where.image_index for where in first) == list(range(100))
    assert {where.epoch for where in second} == {1}
    assert [where.image_index for where in first] != [where.image_index for where in second]
    assert [w.image_index for w in EpochSampler(100, seed=1)] != [w.image_index for w in first]
    assert list(EpochSampler(100, seed=0, epoch=1)) == second


def test_sampler_goes_on_where_it_is_told_and_the_next_epoch_is_whole() -> None:
    whole = list(EpochSampler(10, seed=0, epoch=2))
    sampler = EpochSampler(10, seed=0, epoch=2, start=7)
    sampler.set_epoch(2)
    assert len(sampler) == 3
    assert list(sampler) == whole[7:]
    sampler.set_epoch(3)
    assert list(sampler) == list(EpochSampler(10, seed=0, epoch=3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must not be negative; got -1"),
        ({"seed": 0, "start": 11}, "start must be between 0 and the 10 images; got 11"),
    ],
)
def test_sampler_refuses_what_has_no_meaning(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(10, **arguments)


def test_every_caption_of_an_image_comes_once_in_as_many_epochs() -> None:
    for index in range(20):
        drawn = [draw_caption(5, seed=0, epoch=epoch, index=index) for epoch in range(10)]
        assert sorted(drawn[:5]) == sorted(drawn[5:]) == list(range(5))


def test_first_captions_are_spread_evenly_over_images() -> None:
    counts = Counter(draw_caption(5, seed=0, epoch=0, index=index) for index in range(5000))
    # 1,000 expected; four standard deviations of a binomial count are 113.
    assert all(abs(count - 1000) < 113 for count in counts.values())


def test_resumed_loader_gives_the_batches_that_were_left(images: list[CaptionedImage], options: dict) -> None:
    whole = make_loader(images, drop_last=False, **options)
    whole.sampler.set_epoch(1)
    expected = flat(whole)
    resumed = make_loader(images, drop_last=False, epoch=1, start=4, **options)
    assert flat(resumed) == expected[1:]
    assert len(resumed) == 2


def test_loader_leaves_the_global_random_state_alone(images: list[CaptionedImage], options: dict) -> None:
    loader = make_loader(images, **options)
    before = torch.get_rng_state()
    flat(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_last_batch_is_dropped_unless_asked_for(images: list[CaptionedImage], options: dict) -> None:
    sizes = [len(batch["image_ids"]) for batch in make_loader(images, **options)]
    all_sizes = [len(batch["image_ids"]) for batch in make_loader(images, drop_last=False, **options)]
    assert (sizes, all_sizes) == ([4, 4], [4, 4, 2])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches_in_every_epoch(
    images: list[CaptionedImage], options: dict, context: str
) -> None:
    alone = make_loader(images, **options)
    shared = make_loader(images, num_workers=1, **options)
    shared.multiprocessing_context = context
    for epoch in range(2):
        alone.sampler.set_epoch(epoch)
        shared.sampler.set_epoch(epoch)
        assert flat(shared) == flat(alone)


def test_dataset_can_be_sent_to_a_spawned_process(images: list[CaptionedImage], options: dict) -> None:
    dataset = make_loader(images, **options).dataset
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[(0, 3)].input_ids == dataset[(0, 3)].input_ids


def test_image_that_cannot_be_read_is_named(
    images: list[CaptionedImage], options: dict, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image at all")
    broken = CaptionedImage("broken.jpg", tmp_path / "broken.jpg", ("a",), "train")
    with pytest.raises(DataError, match=r"broken.jpg: is no image of a known format"):
        flat(make_loader([*images[:3], broken], **options))


@pytest.mark.parametrize("batch_size", [0, NUM_IMAGES + 1])
def test_loader_without_a_full_batch_is_refused(
    images: list[CaptionedImage], options: dict, batch_size: int
) -> None:
    message = f"batch_size must be between 1 and the number of images, 10; got {batch_size}"
    with pytest.raises(ValueError, match=message):
        make_loader(images, **{**options, "batch_size": batch_size})


def test_each_image_is_decoded_once_and_no_more_are_kept_than_the_limit(
    images: list[CaptionedImage], options: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "CACHE_BYTES", 2 * 3 * 32 * 32)
    copies = []
    for image in images[:3]:
        path = tmp_path / image.image_id
        path.write_bytes(image.path.read_bytes())
        copies.append(CaptionedImage(image.image_id, path, image.captions, "train"))
    dataset = ImageCaptionDataset(
        copies, tokenizer=options["tokenizer"], processor=options["processor"], seed=0
    )
    first = [dataset[(0, index)].clip_crop for index in range(3)]
    for copy in copies:
        copy.path.unlink()
    assert all(np.array_equal(dataset[(1, index)].clip_crop, first[index]) for index in range(2))
    with pytest.raises(FileNotFoundError):
        dataset[(1, 2)]


def test_truncated_captions_are_counted(images: list[CaptionedImage], options: dict) -> None:
    loader = make_loader(images, context_length=6, **options)
    assert loader.dataset.num_truncated == NUM_IMAGES  # one of three captions has 5 letters, BOS and EOS
    assert all(batch["input_ids"].shape[1] <= 6 for batch in loader)
