"""Batches in memory or a file: decided by seed, epoch and position alone."""

import shutil

import numpy as np
import pytest
import torch

import tiny
from clipgraft.data.batches import (
    WHOLE_EVERY,
    CaptionBatches,
    LatentBatches,
    StateBatches,
    TokenStates,
    from_uint8,
    load_pixels,
    to_uint8,
)
from clipgraft.data.formats import load_dataset
from clipgraft.errors import UserError, one_line
from helpers import files_of_at_most

BOS, WORD, EOS, PADDING = range(4)
LENGTHS = [7, 6, 6, 5, 5, 4, 4, 4, 3, 3]


def latent_batches():
    latents = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 4, 2, 2)
    input_ids = [[[1, index, 2], [1, index, index, 2]] for index in range(10, 20)]
    return LatentBatches(latents, input_ids, eos_token_id=2, context_length=6, batch_size=3, seed=4)


def test_epoch_from_a_position_equals_the_unbroken_epoch():
    batches = latent_batches()
    whole, rest = list(batches.epoch(2, 0)), list(batches.epoch(2, 1))
    assert len(whole) == len(batches) == 3
    for one, other in zip(whole[1:], rest, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name])


def test_epochs_differ():
    batches = latent_batches()
    first, second = next(iter(batches.epoch(0, 0))), next(iter(batches.epoch(1, 0)))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_caption_stays_with_its_latents_and_is_padded_with_eos():
    for batch in latent_batches().epoch(0, 0):
        for latents, ids in zip(batch["latents"], batch["input_ids"], strict=True):
            assert ids[1] == latents[0, 0, 0] + 10
            assert ids[-1] == 2
            assert len(ids) == 6


def test_pixels_come_back_through_uint8():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(values)), values)


def test_images_are_decoded_to_the_size_asked_for(tmp_path):
    dataset = load_dataset(tiny.write_flickr8k(tmp_path / "data", num_images=6))
    pixels = load_pixels(dataset.images, 24)
    assert pixels.shape == (6, 3, 24, 24)
    assert pixels.dtype == torch.uint8


@pytest.fixture
def states(tmp_path):
    """Ten captions in two parts, the longest first; a state is (caption, position), the teacher's tenfold."""
    kept = TokenStates(tmp_path / "states.bin", torch.tensor(LENGTHS) + 1, (2, 2))
    for captions in (range(4), range(4, 10)):
        lengths = torch.tensor([LENGTHS[caption] for caption in captions])[:, None]
        place = torch.arange(10).expand(len(lengths), -1)
        student = torch.stack([torch.tensor(captions)[:, None].expand_as(place), place], -1).float()
        classes = torch.where(place < lengths, WORD, PADDING)
        classes[:, 0] = BOS
        classes[place == lengths - 1] = EOS
        kept.add(student, 10 * student, classes, (place < lengths) | (place == 9))
    return kept


def batches(states, **options):
    return StateBatches(states, padding=PADDING, bos=BOS, **{"batch_size": 3, "seed": 4, **options})


def test_states_come_back_with_their_place_and_class(states):
    seen = []
    for batch in batches(states, batch_size=1).epoch(0, 0):
        caption = int(batch["student"][0, 0, 0])
        seen.append(caption)
        place = [*range(LENGTHS[caption]), 9]
        assert batch["positions"][0].tolist() == place
        assert batch["student"][0].tolist() == [[caption, where] for where in place]
        assert torch.equal(batch["teacher"], 10 * batch["student"])
        assert batch["classes"][0].tolist() == [BOS, *[WORD] * (LENGTHS[caption] - 2), EOS, PADDING]
        assert batch["weights"][0].tolist() == [0] + [1] * LENGTHS[caption]
    assert sorted(seen) == list(range(10))


def test_a_shorter_caption_is_filled_up_with_weightless_padding(states):
    for batch in batches(states, batch_size=10).epoch(0, 0):
        captions = batch["student"][:, 0, 0].long().tolist()
        assert batch["weights"].sum(1).tolist() == [LENGTHS[caption] for caption in captions]
        for row, caption in enumerate(captions):
            assert batch["classes"][row, LENGTHS[caption] :].unique().tolist() == [PADDING]


def test_states_from_a_position_equal_the_unbroken_epoch(states):
    every = batches(states)
    whole, rest = list(every.epoch(2, 0)), list(every.epoch(2, 1))
    assert len(whole) == len(every) == 3
    for one, other in zip(whole[1:], rest, strict=True):
        for name in one:
            assert torch.equal(one[name], other[name])


def test_captions_of_one_length_come_together_and_epochs_differ(states):
    epochs = [list(batches(states).epoch(epoch, 0)) for epoch in (0, 1)]
    for batch in epochs[0]:
        lengths = [LENGTHS[int(caption)] for caption in batch["student"][:, 0, 0]]
        assert max(lengths) - min(lengths) <= 2
    assert any(not torch.equal(a["student"], b["student"]) for a, b in zip(*epochs, strict=True))


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match=r"states of 1 captions take 0\.0 GB and .* give fewer captions"):
        TokenStates(tmp_path / "states.bin", torch.tensor([5]), (2, 2))
    assert not (tmp_path / "states.bin").exists()


def test_a_disk_that_is_full_meanwhile_names_the_file(tmp_path):
    path = tmp_path / "states.bin"
    with files_of_at_most(1000), pytest.raises(OSError, match="File too large") as caught:
        TokenStates(path, torch.tensor([100_000]), (2, 2))
    assert one_line(caught.value) == f"no space left on the disk ({path}); free some and run again"


def test_room_on_the_disk_is_taken_at_once(tmp_path):
    TokenStates(tmp_path / "states.bin", torch.tensor([100_000]), (2, 2))
    assert (tmp_path / "states.bin").stat().st_blocks * 512 >= 100_000 * 4 * 2


def bucketed():
    """Ten latents in three sizes, their values and captions numbered from 0 and 10."""
    sizes = [(2, 2), (1, 4), (2, 2), (2, 2), (4, 1), (2, 2), (1, 4), (2, 2), (1, 4), (1, 4)]
    latents = [torch.full((4, *size), float(index)) for index, size in enumerate(sizes)]
    input_ids = [[[1, index, 2], [1, index, index, 2]] for index in range(10, 20)]
    bucket_of = np.array([{(2, 2): 0, (1, 4): 1, (4, 1): 2}[size] for size in sizes], np.uint8)
    sizes = {"eos_token_id": 2, "context_length": 6, "batch_size": 3, "seed": 4, "num_epochs": 2}
    return LatentBatches(latents, input_ids, **sizes, bucket_of=bucket_of)


def test_batches_hold_one_bucket_and_epochs_every_image():
    batches = bucketed()
    for epoch in (0, 1):
        seen = list(batches.epoch(epoch, 0))
        assert len(seen) == len(batches) == 2 + 2 + 1
        items = torch.cat([batch["latents"][:, 0, 0, 0] for batch in seen])
        assert sorted(items.tolist()) == list(range(10))
        for index, batch in enumerate(seen):
            assert batch["input_ids"][:, 1].tolist() == (batch["latents"][:, 0, 0, 0] + 10).tolist()
            assert batch["progress"].item() == pytest.approx((epoch + index / 5) / 2)


def test_buckets_from_a_position_equal_the_unbroken_epoch():
    batches = bucketed()
    whole = list(batches.epoch(1, 0))
    for start in range(len(whole)):
        for one, other in zip(whole[start:], batches.epoch(1, start), strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)


def marked_captions(num_captions=60, length=20):
    """Captions of 3 to 8 positions, BOS 1 and EOS 2, every third with a new word; ids tell them apart."""
    input_ids = torch.full((num_captions, length), 2, dtype=torch.int32)
    for index in range(num_captions):
        input_ids[index, : 2 + index % 6] = 1
        input_ids[index, 1 : 2 + index % 6] = 10 + index
    has_new_word = torch.arange(num_captions) % 3 == 0
    return CaptionBatches(input_ids, has_new_word, eos_token_id=2, batch_size=4, seed=4)


def test_one_batch_of_captions_in_four_has_padding():
    found = list(marked_captions().epoch(0, 0))
    assert [batch["input_ids"].shape[1] == 20 for batch in found] == [
        index % WHOLE_EVERY == 0 for index in range(len(found))
    ]
    for batch in found:
        is_whole = batch["input_ids"].shape[1] == 20
        assert batch["padding_scale"].tolist() == [WHOLE_EVERY * is_whole]
        assert is_whole or (batch["input_ids"][:, -1] == 2).any()
        assert (batch["input_ids"] == 2).any(1).all()


def test_captions_come_once_an_epoch_with_their_marks():
    found = list(marked_captions().epoch(1, 0))
    numbers = [int(number) - 10 for batch in found for number in batch["input_ids"][:, 1]]
    marks = [bool(mark) for batch in found for mark in batch["has_new_word"]]
    assert sorted(numbers) == list(range(60))
    assert marks == [number % 3 == 0 for number in numbers]


def test_captions_from_a_position_equal_the_unbroken_epoch():
    whole, rest = list(marked_captions().epoch(2, 0)), list(marked_captions().epoch(2, 5))
    assert len(rest) == len(whole) - 5
    for ours, theirs in zip(rest, whole[5:], strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
