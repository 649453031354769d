"""New words as embeddings: those of the distilled encoder, which diffusers and our own prompts take."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from distilled_world import PROMPTS, states
from safetensors.torch import load_file

from clipgraft.errors import UserError
from clipgraft.exporting.export import export
from clipgraft.generation.generator import load
from clipgraft.models.base import FrozenBase
from clipgraft.models.lineage import NO_LINEAGE
from helpers import call


@pytest.fixture(scope="module")
def in_embeddings(distilled, plain_base):
    """A distilled encoder whose words were learned in their vectors alone."""
    encoder = FrozenBase.load(str(plain_base)).text_encoder
    ids = distilled.tokenizer("kite sunset", add_special_tokens=False).input_ids
    torch.manual_seed(5)
    with torch.no_grad():
        encoder.embeddings.token_embedding.weight[ids] += torch.randn(len(ids), 24)
    return replace(distilled, text_encoder=encoder)


@pytest.fixture(scope="module")
def exported(in_embeddings, tmp_path_factory):
    run, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("out") / "words"
    in_embeddings.save_pretrained(run / "text_encoder")
    assert call("export", run, "--format", "embeddings", "--out", out) == 0
    return out


def test_a_file_holds_the_vectors_of_its_word(exported, in_embeddings):
    assert {path.name for path in exported.glob("*.safetensors")} == {
        "kite.safetensors",
        "sunset.safetensors",
    }
    [vectors] = load_file(exported / "kite.safetensors").values()
    ids = in_embeddings.tokenizer("kite", add_special_tokens=False).input_ids
    assert torch.equal(vectors, in_embeddings.text_encoder.embeddings.token_embedding.weight[ids])


def test_diffusers_gives_the_distilled_states(exported, in_embeddings, plain_base):
    pipeline = StableDiffusionPipeline.from_pretrained(plain_base)
    prompts = PROMPTS
    for word in ("kite", "sunset"):
        pipeline.load_textual_inversion(str(exported / f"{word}.safetensors"), token=f"<{word}>")
        prompts = [prompt.replace(word, f"<{word}>") for prompt in prompts]
    prompts = [pipeline.maybe_convert_prompt(prompt, pipeline.tokenizer) for prompt in prompts]
    found = states(pipeline.text_encoder, pipeline.tokenizer, prompts)
    torch.testing.assert_close(found, states(in_embeddings.text_encoder, in_embeddings.tokenizer))


@pytest.mark.integration
def test_the_base_draws_with_them_as_the_distilled_encoder_does(exported, in_embeddings, plain_base):
    own, distilled = load(plain_base, device="cpu"), load(plain_base, device="cpu")
    distilled.pipeline.text_encoder = copy.deepcopy(in_embeddings.text_encoder)
    files = [str(exported / f"{word}.safetensors") for word in ("kite", "sunset")]
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0}
    found, expected = (
        own.generate(PROMPTS, embeddings=files, **settings),
        distilled.generate(PROMPTS, **settings),
    )
    without = own.generate(PROMPTS, **settings)
    assert [a.image.tobytes() == b.image.tobytes() for a, b in zip(found, expected, strict=True)] == [
        True,
        True,
    ]
    assert [a.image.tobytes() == b.image.tobytes() for a, b in zip(without, expected, strict=True)] == [
        True,
        False,
    ]


def test_the_card_says_where_the_files_go(exported):
    card = (exported / "README.md").read_text()
    for part in ("kite, sunset", "`embedding:kite`", 'token="<kite>"', "Attachment A"):
        assert part in card


def test_words_that_are_not_recorded_are_asked_for(distilled, tmp_path):
    with pytest.raises(UserError, match="it is not recorded which words the text encoder learned"):
        export(replace(distilled, lineage=NO_LINEAGE), tmp_path / "words", file_format="embeddings")
    assert list(tmp_path.iterdir()) == []
