"""A distilled text encoder, taken wherever a graft is."""

import pytest
import torch

import tiny
from clipgraft.config import build_recipe
from clipgraft.errors import CheckpointError, UserError
from clipgraft.generation.generator import load
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
from clipgraft.models.lineage import Lineage, Stage


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return FrozenBase.load(str(tiny.write_base(tmp_path_factory.mktemp("world") / "base")))


@pytest.fixture(scope="module")
def distilled(base):
    """The base's own text encoder, changed a little."""
    encoder = tiny.build_pipeline().text_encoder
    with torch.no_grad():
        encoder.final_layer_norm.bias += 0.1
    stage = Stage(stage="distill", recipe=build_recipe({}), words={"hound": 3})
    return Graft(encoder.eval(), base.tokenizer, base.record(), Lineage(stages=(stage,)))


def test_a_distilled_encoder_is_saved_and_loaded_as_a_plain_one(distilled, tmp_path):
    distilled.save_pretrained(tmp_path / "text_encoder")
    again = Graft.from_pretrained(tmp_path / "text_encoder")
    assert type(again.text_encoder).__name__ == "CLIPTextModel"
    ours, theirs = again.text_encoder.state_dict(), distilled.text_encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.lineage.find("distill").words == {"hound": 3}
    assert again.base == distilled.base


def test_images_are_generated_with_a_distilled_encoder(distilled, tmp_path):
    distilled.save_pretrained(tmp_path / "text_encoder")
    generator = load(tmp_path / "text_encoder", device="cpu")
    assert generator.models["text_encoder"] == "graft"
    [image] = generator.generate("A dog runs", num_inference_steps=2, guidance_scale=3.0)
    assert image.status == "ok"
    input_ids = distilled.tokenizer("A dog runs", return_tensors="pt").input_ids
    ours, theirs = (each(input_ids)[0] for each in (generator.pipeline.text_encoder, distilled.text_encoder))
    assert torch.equal(ours, theirs)


def test_a_distilled_encoder_has_no_bridge(distilled):
    with pytest.raises(UserError, match="has neither CLIP nor bridge; name the graft that it was distilled"):
        _ = distilled.bridge


def test_a_runs_folder_is_not_taken_for_its_encoder(distilled, tmp_path):
    distilled.save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(CheckpointError, match=f"distill, not a graft; name {tmp_path / 'text_encoder'}"):
        Graft.from_pretrained(tmp_path)
