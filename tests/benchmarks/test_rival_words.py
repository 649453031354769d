"""Today's ways of teaching words, on a tiny base."""

import sys
from pathlib import Path

import pytest
import torch

import tiny
from clipgraft.models.base import FrozenBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import rival_words

WORDS = frozenset({"kite", "beach"})


@pytest.fixture
def base(tmp_path):
    return FrozenBase.load(str(tiny.write_base(tmp_path / "base")))


@pytest.fixture
def images():
    latents = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return rival_words.Images(latents, [[tiny.CAPTIONS[row % 5], tiny.CAPTIONS[2]] for row in range(6)])


def test_only_captions_with_the_words_are_kept(images):
    found = images.with_words(frozenset({"beach"}))
    assert found.captions == [[tiny.CAPTIONS[0]], [tiny.CAPTIONS[0]]]
    assert torch.equal(found.latents, images.latents[[0, 5]])


def test_textual_inversion_trains_the_words_rows_alone(base, images):
    before = {name: value.clone() for name, value in base.text_encoder.state_dict().items()}
    unet = {name: value.clone() for name, value in base.unet.state_dict().items()}
    found = rival_words.textual_inversion(base, images, WORDS, 1e-2, seconds=0.2, seed=0)
    after = found.encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    [table] = changed
    rows = (before[table] != after[table]).any(1).nonzero().flatten().tolist()
    assert sorted(rows) == sorted(rival_words.word_rows(base.tokenizer, WORDS))
    assert found.num_steps > 0
    assert all(torch.equal(unet[name], value) for name, value in base.unet.state_dict().items())


@pytest.mark.integration
def test_the_text_encoder_learns_to_predict_the_noise(base, images):
    before = rival_words.noise_error(base, images)
    found = rival_words.text_encoder(base, images, 1e-2, seconds=1.0, seed=0)
    assert found.processor_seconds >= 1
    assert rival_words.noise_error(base, images) < before
