"""Batches: their contents, their order, and that nothing but seed and epoch decides it."""

import pickle
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPTokenizer

import tiny
from clipgraft.data.batch_reader import Share, draw_captions
from clipgraft.data.crop_reader import KeptCrops, NoCrops
from clipgraft.data.dataset import CaptionedImage, CaptionedImages
from clipgraft.data.images import open_image
from clipgraft.data.loader import CaptionedBatches, EpochSampler
from clipgraft.data.transforms import clip_pixel_values, load_crops, tokenize

NUM_IMAGES = 10


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return tiny.build_spelling_tokenizer()


@pytest.fixture(scope="module")
def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CaptionedImages:
    folder = tmp_path_factory.mktemp("images")
    records = []
    for index in range(NUM_IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        path = folder / f"{index}.png"
        Image.fromarray(pixels).save(path)
        letter = "abcdefghij"[index]
        captions = tuple(letter * length for length in (1, 3, 5))
        records.append(CaptionedImage(path.name, path, captions, "train"))
    return CaptionedImages(records)


@pytest.fixture(scope="module")
def many() -> CaptionedImages:
    """A hundred images without files, for orders alone."""
    return CaptionedImages(CaptionedImage(f"{i}.png", Path(f"{i}.png"), ("a",), "train") for i in range(100))


@pytest.fixture
def options(tokenizer: CLIPTokenizer, processor: CLIPImageProcessorPil) -> dict:
    return {"tokenizer": tokenizer, "processor": processor, "batch_size": 4, "seed": 3}


def batches_of(images: CaptionedImages, **options) -> CaptionedBatches:
    return CaptionedBatches(images, KeptCrops(images, load_crops(images, options["processor"])), **options)


def flat(batches: Iterable[dict]) -> list[dict]:
    return [
        {key: getattr(value, "tolist", lambda v=value: v)() for key, value in batch.items()}
        for batch in batches
    ]


def image_order(sampler: EpochSampler) -> list[list[int]]:
    return [[number for number, _ in share.images] for share in sampler]


def test_batch_holds_each_image_with_one_of_its_own_captions(images: CaptionedImages, options: dict) -> None:
    batch = next(iter(batches_of(images, **options).epoch(0, 0)))
    picked = [images[index] for index in batch["image_index"]]
    assert batch["image_ids"] == [image.image_id for image in picked]
    assert (batch["input_ids"].dtype, batch["image_index"].dtype) == (torch.int64, torch.int64)
    assert torch.equal(batch["caption_image"], batch["image_index"])
    expected = clip_pixel_values([open_image(image.file) for image in picked], options["processor"])
    assert torch.equal(batch["clip_pixel_values"], expected)
    length = batch["input_ids"].shape[1]
    for image, row in zip(picked, batch["input_ids"], strict=True):
        ids = tokenize(image.captions, options["tokenizer"], pad_to_context_length=True)[:, :length]
        assert row.tolist() in ids.tolist()


def test_image_with_all_of_its_captions_is_in_the_batch_once(images: CaptionedImages, options: dict) -> None:
    batch = next(iter(batches_of(images, captions_per_image=3, **options).epoch(0, 0)))
    assert batch["clip_pixel_values"].shape[0] == 4
    assert batch["caption_image"].tolist() == [i for i in batch["image_index"].tolist() for _ in range(3)]
    tokenizer = options["tokenizer"]
    for place, index in enumerate(batch["image_index"].tolist()):
        rows = batch["input_ids"][3 * place : 3 * place + 3]
        words = sorted(tokenizer.decode(row, skip_special_tokens=True) for row in rows)
        assert words == sorted(images[index].captions)


def test_captions_are_padded_to_the_longest_or_a_multiple(images: CaptionedImages, options: dict) -> None:
    longest = next(iter(batches_of(images, captions_per_image=3, **options).epoch(0, 0)))
    whole = next(iter(batches_of(images, length_multiple=77, **options).epoch(0, 0)))
    assert longest["input_ids"].shape == (12, 7)  # BOS, five letters, EOS
    assert whole["input_ids"].shape == (4, 77)
    eighths = next(iter(batches_of(images, length_multiple=8, captions_per_image=3, **options).epoch(0, 0)))
    assert eighths["input_ids"].shape == (12, 8)
    assert torch.equal(eighths["input_ids"][:, :7], longest["input_ids"])


@pytest.mark.parametrize("has_crops", [True, False])
def test_batch_tells_which_of_its_images_are_equal_files(
    images: CaptionedImages, options: dict, tmp_path: Path, has_crops: bool
) -> None:
    copy = tmp_path / "copy.png"
    copy.write_bytes(images[1].file.read_bytes())
    twin = CaptionedImage("copy.png", copy, ("a",), "train")
    four = CaptionedImages([*images[:3], twin])
    batches = batches_of(four, **options) if has_crops else CaptionedBatches(four, NoCrops(), **options)
    batch = next(iter(batches.epoch(0, 0)))
    content = dict(zip(batch["image_index"].tolist(), batch["duplicate_id"].tolist(), strict=True))
    assert content[3] == content[1]
    assert len(set(content.values())) == 3


def test_epoch_shows_every_image_once_in_an_order_of_its_own(many: CaptionedImages) -> None:
    sampler = EpochSampler(many, 10, seed=0)
    first = image_order(sampler)
    sampler.resume(1, 0)
    second = image_order(sampler)
    assert sorted(index for batch in first for index in batch) == list(range(100))
    assert {share.epoch for share in sampler} == {1}
    assert first != second
    assert image_order(EpochSampler(many, 10, seed=1)) != first


def test_sampler_goes_on_where_it_is_told(many: CaptionedImages) -> None:
    sampler = EpochSampler(many.first(10), 2, seed=0)
    sampler.resume(2, 0)
    whole = image_order(sampler)
    sampler.resume(2, 3)
    assert len(sampler) == 2
    assert image_order(sampler) == whole[3:]


@pytest.mark.parametrize("num_processes", [2, 4])
def test_shares_of_the_processes_put_together_are_the_batch(
    many: CaptionedImages, num_processes: int
) -> None:
    whole = image_order(EpochSampler(many, 8, seed=5))
    shares = [
        image_order(EpochSampler(many, 8, seed=5, process_index=index, num_processes=num_processes))
        for index in range(num_processes)
    ]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed must not be negative; got -1"),
        (
            {"seed": 0, "num_processes": 4},
            "batch_size must be a multiple of the number of processes, 4; got 5",
        ),
    ],
)
def test_sampler_refuses_what_has_no_meaning(many: CaptionedImages, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpochSampler(many, 5, **arguments)


def test_start_behind_the_epochs_end_is_refused(many: CaptionedImages) -> None:
    with pytest.raises(ValueError, match="start must be between 0 and the 5 batches; got 6"):
        EpochSampler(many.first(10), 2, seed=0).resume(0, 6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_caption_of_an_image_comes_as_often_as_the_others(count: int) -> None:
    for index in range(20):
        epochs = [draw_captions(5, count, seed=0, epoch=epoch, index=index) for epoch in range(5)]
        drawn = [caption for captions in epochs for caption in captions]
        assert all(sorted(drawn[k : k + 5]) == list(range(5)) for k in range(0, len(drawn), 5))


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("num_captions", [*range(1, 8), 11])
def test_captions_of_an_epoch_are_shown_equally_often(num_captions, count) -> None:
    for index in range(10):
        for epoch in range(12):
            drawn = draw_captions(num_captions, count, seed=0, epoch=epoch, index=index)
            times = [drawn.count(caption) for caption in range(num_captions)]
            assert (len(drawn), max(times) - min(times) <= 1) == (count, True)


def test_single_captions_come_in_the_rounds_orders() -> None:
    for index in range(5):
        rounds = [np.random.default_rng([3, index, number]).permutation(5).tolist() for number in range(4)]
        drawn = [draw_captions(5, 1, seed=3, epoch=epoch, index=index) for epoch in range(20)]
        assert list(chain(*drawn)) == list(chain(*rounds))


def test_image_with_too_few_captions_shows_some_twice() -> None:
    assert sorted(draw_captions(2, 5, seed=0, epoch=0, index=7))[1:-1] in ([0, 0, 1], [0, 1, 1])
    assert draw_captions(1, 3, seed=0, epoch=4, index=7) == [0, 0, 0]


def test_first_captions_are_spread_evenly_over_images() -> None:
    counts = Counter(draw_captions(5, 1, seed=0, epoch=0, index=index)[0] for index in range(5000))
    # 1,000 expected; four standard deviations of a binomial count are 113.
    assert all(abs(count - 1000) < 113 for count in counts.values())


def test_resumed_epoch_gives_the_batches_that_were_left(images: CaptionedImages, options: dict) -> None:
    expected = flat(batches_of(images, **options).epoch(1, 0))
    assert flat(batches_of(images, **options).epoch(1, 1)) == expected[1:]


def test_loader_leaves_the_global_random_state_alone(images: CaptionedImages, options: dict) -> None:
    batches = batches_of(images, **options)
    before = torch.get_rng_state()
    flat(batches.epoch(0, 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_last_batch_that_is_not_full_is_dropped(images: CaptionedImages, options: dict) -> None:
    assert [len(batch["image_ids"]) for batch in batches_of(images, **options).epoch(0, 0)] == [4, 4]


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_the_same_batches_in_every_epoch(
    images: CaptionedImages, options: dict, context: str
) -> None:
    alone = batches_of(images, **options)
    shared = batches_of(images, num_workers=1, **options)
    shared.loader.multiprocessing_context = context
    for epoch in range(2):
        assert flat(shared.epoch(epoch, 0)) == flat(alone.epoch(epoch, 0))


def test_dataset_can_be_sent_to_a_spawned_process(images: CaptionedImages, options: dict) -> None:
    reader = batches_of(images, **options).reader
    share = Share(0, [(3, images[3])])
    (copied,), (own,) = (found.items(share) for found in (pickle.loads(pickle.dumps(reader)), reader))
    assert copied.input_ids == own.input_ids
    assert (copied.clip_crop == own.clip_crop).all()


@pytest.mark.parametrize("batch_size", [0, NUM_IMAGES + 1])
def test_loader_without_a_full_batch_is_refused(
    images: CaptionedImages, options: dict, batch_size: int
) -> None:
    message = f"batch_size must be between 1 and the number of images, 10; got {batch_size}"
    with pytest.raises(ValueError, match=message):
        batches_of(images, **{**options, "batch_size": batch_size})


def test_captions_come_alone_where_no_crops_are_given(images: CaptionedImages, options: dict) -> None:
    batch = next(iter(CaptionedBatches(images, NoCrops(), **options).epoch(0, 0)))
    assert "clip_pixel_values" not in batch
    assert len(batch["input_ids"]) == len(batch["image_index"]) == 4


def test_truncated_captions_keep_their_eos(images: CaptionedImages, options: dict) -> None:
    long = CaptionedImage("0.png", images[0].file, ("a b c " * 30, "a"), "train")
    reader = CaptionedBatches(images, NoCrops(), captions_per_image=2, **options).reader
    (item,) = reader.items(Share(0, [(0, long)]))
    longest = max(item.input_ids, key=len)
    assert len(longest) == 77
    assert longest[-1] == options["tokenizer"].eos_token_id
