"""Prompts are encoded once, each by itself."""

import pytest
import torch

import tiny
from clipgraft.data.transforms import tokenize
from clipgraft.generation.pipeline import MAX_CACHED_PROMPTS, PromptEmbedCache

PROMPTS = ["A dog runs", "", "A red ball"]


def counted(pipeline):
    """Rows that the text encoder is given, one number a call."""
    rows = []
    pipeline.text_encoder.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    return rows


def test_states_are_diffusers_own():
    pipeline = tiny.build_pipeline()
    states = PromptEmbedCache(pipeline)(PROMPTS)
    for prompt, found in zip(PROMPTS, states, strict=True):
        expected, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)
        assert torch.equal(found, expected[0])


def test_each_prompt_is_encoded_once():
    pipeline = tiny.build_pipeline()
    rows, states = counted(pipeline), PromptEmbedCache(pipeline)
    states(PROMPTS)
    states([""] * 8)
    states(["A red ball", "A black cat"])
    assert rows == [1, 1, 1, 1]


def test_other_weights_are_seen_after_forgetting():
    pipeline = tiny.build_pipeline()
    states = PromptEmbedCache(pipeline)
    before = states(PROMPTS)
    with torch.no_grad():
        pipeline.text_encoder.final_layer_norm.bias += 1
    states.clear()
    assert torch.allclose(states(PROMPTS), before + 1, atol=1e-5)


def test_memory_does_not_grow_with_the_prompts():
    pipeline = tiny.build_pipeline()
    states = PromptEmbedCache(pipeline)
    for index in range(MAX_CACHED_PROMPTS + 20):
        states([f"ball {index}"])
    assert len(states._embeds) == MAX_CACHED_PROMPTS


LONG = "a black dog beside a skateboarding kite " * 12
TEXTS = ("A dog runs", "", LONG, "A dog <|endoftext|> on the beach")


@pytest.mark.parametrize("text", TEXTS)
def test_states_are_of_the_ids_that_are_measured(text):
    pipeline = tiny.build_pipeline()
    seen = []
    pipeline.text_encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    PromptEmbedCache(pipeline)([text])
    measured = tokenize([text], pipeline.tokenizer, pad_to_context_length=True)
    assert torch.equal(seen[0], measured)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_states_are_those_of_diffusers_own_pipeline(text):
    pipeline = tiny.build_pipeline()
    expected = pipeline.encode_prompt(text, "cpu", 1, False)[0]
    assert torch.equal(PromptEmbedCache(pipeline)([text]), expected)


def test_a_prompt_that_names_eos_is_drawn_to_its_end():
    states = PromptEmbedCache(tiny.build_pipeline())
    assert not torch.equal(states(["A dog <|endoftext|> on the beach"]), states(["A dog <|endoftext|>"]))
