"""Prompt embeds: weighted words, long prompts, clip skip."""

import numpy as np
import pytest
import torch

import clipgraft
import tiny
from clipgraft.data.transforms import tokenize
from clipgraft.errors import UserError
from clipgraft.generation.prompt_embeds import MAX_CACHED_PROMPTS, PromptEmbedCache, split_prompt
from clipgraft.generation.prompt_syntax import parse_prompt
from clipgraft.sampling_params import PromptParams

PLAIN, CUT = PromptParams(), PromptParams(long_prompts="cut")
WEIGHTED = PromptParams(prompt_syntax="weighted")

PROMPTS = ["A dog runs", "", "A red ball"]


def many(states, prompts):
    """Embeds of several prompts (B, L, W)."""
    return torch.cat([states(prompt, PLAIN) for prompt in prompts])


def counted(pipeline):
    """Rows that the text encoder is given, one number a call."""
    rows = []
    pipeline.text_encoder.register_forward_pre_hook(lambda _module, inputs: rows.append(len(inputs[0])))
    return rows


def test_states_are_diffusers_own():
    pipeline = tiny.build_pipeline()
    states = many(PromptEmbedCache(pipeline), PROMPTS)
    for prompt, found in zip(PROMPTS, states, strict=True):
        expected, _ = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)
        assert torch.equal(found, expected[0])


def test_each_prompt_is_encoded_once():
    pipeline = tiny.build_pipeline()
    rows, states = counted(pipeline), PromptEmbedCache(pipeline)
    many(states, PROMPTS)
    many(states, [""] * 8)
    many(states, ["A red ball", "A black cat"])
    assert rows == [1, 1, 1, 1]


def test_other_weights_are_seen_after_forgetting():
    pipeline = tiny.build_pipeline()
    states = PromptEmbedCache(pipeline)
    before = many(states, PROMPTS)
    with torch.no_grad():
        pipeline.text_encoder.final_layer_norm.bias += 1
    states.clear()
    assert torch.allclose(many(states, PROMPTS), before + 1, atol=1e-5)


@pytest.mark.integration
def test_memory_does_not_grow_with_the_prompts():
    pipeline = tiny.build_pipeline()
    states = PromptEmbedCache(pipeline)
    for index in range(MAX_CACHED_PROMPTS + 20):
        states(f"ball {index}", PLAIN)
    assert len(states._embeds) == MAX_CACHED_PROMPTS


LONG = "a black dog beside a skateboarding kite " * 12
TEXTS = ("A dog runs", "", LONG, "A dog <|endoftext|> on the beach")


@pytest.mark.parametrize("text", TEXTS)
def test_states_are_of_the_ids_that_are_measured(text):
    pipeline = tiny.build_pipeline()
    seen = []
    pipeline.text_encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    PromptEmbedCache(pipeline)(text, CUT)
    measured = tokenize([text], pipeline.tokenizer, pad_to_context_length=True)
    assert torch.equal(seen[0], measured)


@pytest.mark.parametrize("text", TEXTS[:3])
def test_states_are_those_of_diffusers_own_pipeline(text):
    pipeline = tiny.build_pipeline()
    expected = pipeline.encode_prompt(text, "cpu", 1, False)[0]
    assert torch.equal(PromptEmbedCache(pipeline)(text, CUT), expected)


def test_a_prompt_that_names_eos_is_generated_to_its_end():
    states = PromptEmbedCache(tiny.build_pipeline())
    assert not torch.equal(
        states("A dog <|endoftext|> on the beach", PLAIN), states("A dog <|endoftext|>", PLAIN)
    )


def spans(prompt):
    return [
        [(span.text, round(span.weight, 4)) for span in part] for part in parse_prompt(prompt, "weighted")
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("an [unimportant] word", [("an ", 1), ("unimportant", 0.9091), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("un]balanced) too", [("un]balanced) too", 1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"a back\slash", [("a backslash", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("a red: ball (x: y)", [("a red: ball ", 1), ("x: y", 1.1)]),
        ("(sky:-.5) and:2)", [("sky", -0.5), (" and:2)", 1)]),
        ("", []),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *[("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55)],
                *[(", sun, ", 1.1), ("sky", 1.4641), (".", 1.1)],
            ],
        ),
    ],
)
def test_brackets_weigh_as_in_a1111(prompt, expected):
    assert spans(prompt) == [expected]


def test_break_begins_a_new_part():
    assert spans("a dog BREAK (a cat\nBREAK a BREAKER") == [
        [("a dog", 1)],
        [("a cat", 1.1)],
        [("a BREAKER", 1.1)],
    ]
    assert spans("a dog BREAK") == [[("a dog", 1)]]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a dog AND a cat", "AND (composed prompts)"),
        ("a dog <lora:fur:0.8>", "--lora"),
        ("a [dog:cat:0.5]", "prompt editing"),
        ("a [dog|cat]", "prompt editing"),
        ("a (dog:1.2.3)", "'1.2.3' is no number"),
        ("a (dog:50)", "'dog' weighs 50; -10 to 10 are allowed"),
        ("(" * 40 + "dog", "-10 to 10 are allowed"),
    ],
)
def test_other_syntax_is_refused_before_a_base_is_loaded(prompt, message):
    with pytest.raises(UserError, match="prompt: ") as error:
        clipgraft.generation.requests.ImageRequest(prompt, clipgraft.SamplingParams(prompt_syntax="weighted"))
    assert message in str(error.value)
    assert parse_prompt(prompt, "plain") == [[(prompt, 1.0)]]


def test_weighted_states_are_those_worked_by_hand():
    pipeline = tiny.build_pipeline()
    with torch.no_grad():
        pipeline.text_encoder.final_layer_norm.bias += 0.3  # CLIP's states have a mean
    found = PromptEmbedCache(pipeline)("a (red:1.5) ball [on] grass", WEIGHTED)[0].double().numpy()
    tokenizer, ids, factors = pipeline.tokenizer, [], [1.0]
    for text, weight in [("a ", 1), ("red", 1.5), (" ball ", 1), ("on", 1 / 1.1), (" grass", 1)]:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += own
        factors += [weight] * len(own)
    padded = [tokenizer.bos_token_id, *ids, *[tokenizer.eos_token_id] * (76 - len(ids))]
    states = pipeline.text_encoder(torch.tensor([padded]))[0][0].detach().double().numpy()
    weighted = states * np.array(factors + [1] * (77 - len(factors)))[:, None]
    assert np.abs(found - weighted * states.mean() / weighted.mean()).max() < 1e-5


def test_a_mean_of_rounding_errors_is_not_restored():
    pipeline = tiny.build_pipeline()
    embeds = PromptEmbedCache(pipeline)
    plain, weighted = embeds("a red ball", PLAIN), embeds("a (red:2) ball", WEIGHTED)
    assert plain.mean().abs() < 1e-6
    factors = torch.ones(77)
    factors[2] = 2
    assert torch.equal(weighted, plain * factors[:, None])


def test_long_prompts_continue_in_further_chunks():
    pipeline = tiny.build_pipeline()
    words = ["dog"] * 100 + ["ball"] * 20
    found = PromptEmbedCache(pipeline)(" ".join(words), PLAIN)
    eos, bos = pipeline.tokenizer.eos_token_id, pipeline.tokenizer.bos_token_id
    ids = pipeline.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    assert found.shape[1] == 77 * -(-len(ids) // 75)
    for start in range(0, len(ids), 75):
        part = ids[start : start + 75]
        row = torch.tensor([[bos, *part, *[eos] * (76 - len(part))]])
        position = start // 75 * 77
        assert torch.equal(found[:, position : position + 77], pipeline.text_encoder(row)[0])


def test_chunks_end_at_a_near_comma():
    tokenizer = tiny.build_pipeline().tokenizer
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    assert comma is not None
    near, far = ("dog " * 65 + ", " + "cat " * 20), ("dog " * 20 + ", " + "cat " * 60)
    assert [len(chunk.tokens) for chunk in split_prompt(near, tokenizer, PLAIN)] == [66, 20]
    assert [len(chunk.tokens) for chunk in split_prompt(far, tokenizer, PLAIN)] == [75, 6]
    assert [len(chunk.tokens) for chunk in split_prompt(near, tokenizer, CUT)] == [75]


@pytest.mark.integration
def test_prompts_of_other_lengths_in_a_batch_are_as_alone(tmp_path):
    generator = clipgraft.load(tiny.write_base(tmp_path / "base"), device="cpu")
    prompts = ["a dog", "a red ball " * 40, "a (cat:1.4) BREAK a dog", "a cat"]
    options = {"num_inference_steps": 2, "prompt_syntax": "weighted", "negative_prompt": "grass " * 90}
    together = generator.generate(prompts, batch_size=4, **options)
    for prompt, image in zip(prompts, together, strict=True):
        alone = generator.generate(prompt, **options)[0].image
        difference = np.abs(np.asarray(image.image, int) - np.asarray(alone, int))
        assert difference.max() <= 1
    assert any("encoded in 2 chunks" in note for note in together[1].notes)


def test_clip_skip_is_diffusers_own():
    pipeline = tiny.build_pipeline()
    expected = pipeline.text_encoder(
        tokenize(["a dog"], pipeline.tokenizer, pad_to_context_length=True), output_hidden_states=True
    ).hidden_states[-2]
    found = PromptEmbedCache(pipeline)("a dog", PromptParams(clip_skip=1))
    assert torch.equal(found, pipeline.text_encoder.final_layer_norm(expected))


def test_clip_skip_beyond_the_encoder_is_one_line():
    cache = PromptEmbedCache(tiny.build_pipeline())
    with pytest.raises(UserError, match="clip_skip must be from 0 to 1 with this encoder; got 2"):
        cache("a dog", PromptParams(clip_skip=2))


def test_prompts_without_end_are_one_line():
    with pytest.raises(UserError, match="chunks, and 32 are allowed"):
        PromptEmbedCache(tiny.build_pipeline())("a dog " * 9000, PLAIN)
