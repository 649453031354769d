"""The probe: it learns to read drawings, and is read back as it was written."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipgraft.data.batches import from_uint8
from clipgraft.errors import CheckpointError
from clipgraft.evaluation.metrics.probe import (
    Probe,
    fidelity_scores,
    load_probe,
    probe_accuracy,
    read_attributes,
    save_probe,
)
from clipgraft.flatland import ATTRIBUTES, Scene, draw_scenes, sample_scene
from clipgraft.models.hub import embedded_models
from clipgraft.training.objectives import AttributeObjective
from tiny import fit


@pytest.fixture(scope="module")
def drawings():
    scenes = [sample_scene(5, index, "test") for index in range(64)]
    pixels = torch.from_numpy(draw_scenes(scenes, num_workers=1))
    return pixels, torch.tensor([scene.labels for scene in scenes])


class Cycled:
    """Images in fixed batches of 16."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.pixels) // 16

    def epoch(self, epoch, start):
        for rows in torch.arange(len(self.pixels)).split(16)[start:]:
            yield {"pixels": self.pixels[rows], "labels": self.labels[rows]}


@pytest.mark.slow
def test_probe_learns_training_images(drawings, tmp_path):
    torch.manual_seed(0)
    pixels, labels = drawings
    probe = Probe()
    batches = Cycled(from_uint8(pixels), labels)
    fit(AttributeObjective(probe), batches, run_dir=tmp_path, num_epochs=30, learning_rate=3e-3)
    accuracy = probe_accuracy(read_attributes(probe, pixels), labels)
    assert accuracy.keys() == ATTRIBUTES.keys()
    assert accuracy["place"] > 0.9
    assert accuracy["time"] > 0.9


def test_accuracy_is_the_share_of_equal_labels():
    labels = torch.arange(2 * len(ATTRIBUTES)).view(2, -1)
    read = labels.clone()
    read[0, 1] = read[:, 2] = -1
    expected = dict.fromkeys(ATTRIBUTES, 1.0) | {"time": 0.5, "weather": 0.0}
    assert probe_accuracy(read, labels) == expected


def test_probe_is_read_back_to_half_precision(drawings, tmp_path):
    torch.manual_seed(0)
    probe = Probe().eval()
    save_probe(probe, tmp_path / "probe.safetensors")
    loaded = load_probe(tmp_path / "probe.safetensors")
    pixels = drawings[0][:4].float() / 127.5 - 1
    for ours, theirs in zip(probe(pixels), loaded(pixels), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)


def test_file_that_is_no_probe_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"probe not found: .*; `clipgraft pretrain` trains one"):
        load_probe(tmp_path / "probe.safetensors")
    (tmp_path / "probe.safetensors").write_bytes(b"weights of something")
    with pytest.raises(CheckpointError, match="is damaged or no safetensors file"):
        load_probe(tmp_path / "probe.safetensors")


@pytest.mark.integration
def test_shipped_probe_reads_every_attribute_of_new_images():
    scenes = [sample_scene(77, index, "test") for index in range(300)]
    read = read_attributes(
        load_probe(embedded_models() / "probe.safetensors"), torch.from_numpy(draw_scenes(scenes))
    )
    accuracy = probe_accuracy(read, torch.tensor([scene.labels for scene in scenes]))
    # At least 0.98 of 1,000 in the model card; a sample of 300 strays by 0.016 (two standard errors).
    assert min(accuracy.values()) > 0.96


DOG = Scene("beach", "sunset", "dog", "brown", "running", "")
CATS = Scene("street", "night", "cat", "black", "sitting", "", number="two", weather="rainy")
VIEW = Scene("garden", "day", "", "", "", "")
GIRL = Scene(
    "park", "day", "girl", "red", "holding", "", size="little", companion="kite", companion_colour="pink"
)


def test_shares_are_those_of_a_case_worked_out_by_hand():
    found = [
        DOG,  # 5 of 5
        replace(CATS, subject="dog", colour="white", number="three"),  # 4 of 7
        replace(VIEW, time="night", weather="foggy"),  # 1 of 2: a clear sky is not named, so not looked for
        replace(GIRL, action="playing", side="left", companion_colour="red"),  # 6 of 8
    ]
    scores = fidelity_scores(torch.tensor([scene.labels for scene in found]), [DOG, CATS, VIEW, GIRL])
    nan = np.nan
    expected = {
        "": [1, 4 / 7, 0.5, 0.75],
        "_all_at_once": [1, 0, 0, 0],
        "_place": [1, 1, 1, 1],
        "_time": [1, 1, 0, 1],
        "_weather": [nan, 1, nan, nan],
        "_subject": [1, 0, nan, 1],
        "_colour": [1, 0, nan, 1],
        "_number": [nan, 0, nan, nan],
        "_action": [1, 1, nan, 0],
        "_size": [nan, nan, nan, 1],
        "_side": [nan, nan, nan, nan],
        "_companion": [nan, nan, nan, 1],
        "_companion_colour": [nan, nan, nan, 0],
    }
    assert scores.keys() == {f"prompt_fidelity{name}" for name in expected}
    for name, values in expected.items():
        np.testing.assert_allclose(scores[f"prompt_fidelity{name}"], values)


def test_prompt_without_a_picture_has_no_score():
    scores = fidelity_scores(torch.full((1, len(ATTRIBUTES)), -1), [DOG])
    assert all(np.isnan(values).all() for values in scores.values())
