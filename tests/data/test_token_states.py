"""Token states in a file: what goes in comes out, in batches that only seed, epoch and position decide."""

import shutil

import pytest
import torch

from clipgraft.data.batches import StateBatches, TokenStates
from clipgraft.errors import UserError

BOS, WORD, EOS, PADDING = range(4)
LENGTHS = [7, 6, 6, 5, 5, 4, 4, 4, 3, 3]


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


def test_what_fills_up_a_shorter_caption_weighs_nothing_and_is_padding(states):
    for batch in batches(states, batch_size=10).epoch(0, 0):
        captions = batch["student"][:, 0, 0].long().tolist()
        assert batch["weights"].sum(1).tolist() == [LENGTHS[caption] for caption in captions]
        for row, caption in enumerate(captions):
            assert batch["classes"][row, LENGTHS[caption] :].unique().tolist() == [PADDING]


def test_epoch_from_a_position_gives_what_the_unbroken_epoch_gives(states):
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


def test_room_on_the_disk_is_taken_at_once(tmp_path):
    TokenStates(tmp_path / "states.bin", torch.tensor([100_000]), (2, 2))
    assert (tmp_path / "states.bin").stat().st_blocks * 512 >= 100_000 * 4 * 2
