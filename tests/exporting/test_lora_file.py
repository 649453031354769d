"""A distilled text encoder as a LoRA, loaded by diffusers."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from distilled_world import PROMPTS, WORDS, states, take_sizes
from safetensors import safe_open
from safetensors.torch import load_file

import clipgraft
from clipgraft.config import build_recipe
from clipgraft.errors import UserError
from clipgraft.exporting.export import export
from clipgraft.models.base import FrozenBase
from clipgraft.models.lineage import NO_LINEAGE, Lineage
from clipgraft.models.modelspec import HASH_KEY, content_hash
from clipgraft.sampling_params import InferenceConfig, Lora, SamplingParams
from helpers import call, refused


@pytest.fixture(scope="module")
def exported(distilled_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "kite.safetensors"
    assert call("export", distilled_run, *PROMPTS, "--format", "lora", "--rank", 1, "--out", out) == 0
    return out


def with_lora(base, path):
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.load_lora_weights(path.parent, weight_name=path.name)
    return pipeline


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_a_lora_of_whole_rank_gives_the_distilled_states(distilled, plain_base, tmp_path):
    out = tmp_path / "kite.safetensors"
    export(distilled, out, file_format="lora", rank=2, prompts=PROMPTS)
    pipeline = with_lora(plain_base, out)
    found = states(pipeline.text_encoder, pipeline.tokenizer)
    expected = states(distilled.text_encoder, distilled.tokenizer)
    own = states(FrozenBase.load(str(plain_base)).text_encoder, distilled.tokenizer)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert error(own, expected) > 0.05


def test_diffusers_gives_the_states_whose_error_was_printed(distilled, plain_base, tmp_path, capsys):
    out = tmp_path / "kite.safetensors"
    export(distilled, out, file_format="lora", rank=1, prompts=PROMPTS[1:])
    printed = float(re.search(r"rank 1  +(\d\.\d+) with new words", capsys.readouterr().out)[1])
    pipeline = with_lora(plain_base, out)
    ids = pipeline.tokenizer(PROMPTS[1:], return_tensors="pt").input_ids
    words = slice(1, ids.shape[1] - 1)  # between BOS and EOS
    found, expected = (
        states(encoder, distilled.tokenizer, PROMPTS[1:])[:, words]
        for encoder in (pipeline.text_encoder, distilled.text_encoder)
    )
    assert error(found, expected) == pytest.approx(printed, abs=2e-3)
    assert printed > 0.01


def test_errors_fall_with_the_rank(distilled, tmp_path, capsys):
    export(distilled, tmp_path / "kite.safetensors", file_format="lora", rank=1, prompts=PROMPTS)
    out = capsys.readouterr().out
    rows = re.findall(
        r"^  (no LoRA|rank \d+|any rank) +(\d\.\d+) with new words, (\d\.\d+) without", out, re.M
    )
    assert [name for name, *_ in rows] == [
        "no LoRA", "rank 1", *(f"rank {rank}" for rank in (4, 8, 16, 32, 64)), "any rank"
    ]  # fmt: skip
    values = [float(value) for _, value, _ in rows]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0.0
    assert "not in a LoRA: embeddings (changed by 0.0%), biases (changed by 0.0%), layer norms" in out


def test_names_dtype_and_size_are_kohyas(exported, distilled):
    found = load_file(exported)
    layers = 6 * distilled.text_encoder.config.num_hidden_layers
    assert len(found) == 3 * layers
    assert {name.split(".")[0][:19] for name in found} == {"lora_te_text_model_"}
    assert {weight.dtype for weight in found.values()} == {torch.float32}


def test_half_precision_halves_it(distilled, tmp_path):
    out = tmp_path / "kite.safetensors"
    export(distilled, out, file_format="lora", prompts=PROMPTS, dtype="fp16")
    found = load_file(out)
    assert {weight.dtype for weight in found.values()} == {torch.float16}
    assert found["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"].shape[0] == 16


def test_the_header_says_what_the_file_is(exported):
    with safe_open(exported, "pt") as file:
        found = file.metadata()
    expected = {
        "modelspec.architecture": "base/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "kite",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "1",
        "ss_network_alpha": "1",
        HASH_KEY: content_hash(exported),
    }
    assert {key: found.get(key) for key in expected} == expected


def test_a_lora_of_stable_diffusions_sizes_says_so(distilled, plain_base, tmp_path, monkeypatch):
    take_sizes(plain_base, monkeypatch)
    out = tmp_path / "kite.safetensors"
    export(distilled, out, file_format="lora", prompts=PROMPTS)
    with safe_open(out, "pt") as file:
        found = file.metadata()
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["ss_base_model_version"] == "sd_v1"


def test_the_card_says_how_to_load_it_and_its_error(exported):
    card = exported.with_suffix(".md").read_text()
    for part in (
        "a LoRA of rank 1",
        "<lora:kite:1>",
        "| rank 1 | 0.",
        "| with new words | without |",
        "Attachment A",
    ):
        assert part in card


def recorded(distilled, **distill):
    recipe = build_recipe({"distill": {"num_epochs": 1, "new_words": list(WORDS), **distill}})
    stage = distilled.lineage.find("distill").model_copy(update={"recipe": recipe})
    return replace(distilled, lineage=Lineage(stages=(stage,)))


def test_errors_are_of_the_captions_held_out_of_distilling(distilled, tmp_path, capsys):
    captions = tmp_path / "captions.txt"
    captions.write_text(
        "\n".join(f"{caption} {index}" for index in range(20) for caption in (*PROMPTS, "A ball"))
    )
    graft = recorded(distilled, captions=str(captions))
    export(graft, tmp_path / "kite.safetensors", file_format="lora")
    out = capsys.readouterr().out
    assert "against the distilled ones, 6 captions:" in out  # one in ten of 60
    assert re.search(r"rank 16 +0\.000 with new words", out)


def test_captions_that_are_gone_have_to_be_named(distilled, tmp_path):
    graft = recorded(distilled, captions=str(tmp_path / "gone.txt"))
    remedy = r"cannot be read \(.*gone\.txt.*\); name some with --prompts-file, to measure the LoRA's error"
    with pytest.raises(UserError, match=remedy):
        export(graft, tmp_path / "kite.safetensors", file_format="lora")
    with pytest.raises(UserError, match=r"it is not recorded which captions .* --prompts-file"):
        export(replace(graft, lineage=NO_LINEAGE), tmp_path / "kite.safetensors", file_format="lora")
    assert list(tmp_path.iterdir()) == []


def test_words_learned_in_the_embeddings_are_told(distilled, tmp_path, capsys):
    export(distilled, tmp_path / "whole.safetensors", file_format="lora", prompts=PROMPTS)
    assert "outside the linear layers" not in capsys.readouterr().err
    encoder = copy.deepcopy(distilled.text_encoder)
    with torch.no_grad():
        encoder.embeddings.token_embedding.weight.mul_(-3)
    graft = replace(distilled, text_encoder=encoder)
    export(graft, tmp_path / "poor.safetensors", file_format="lora", rank=4, prompts=PROMPTS)
    said = capsys.readouterr()
    assert "the words were learned outside the linear layers" in said.err
    assert "their vectors are --format embeddings" in said.err
    assert "not in a LoRA: embeddings (changed by 3" in said.out


def test_a_graft_has_no_lora_and_says_what_to_do(tmp_path, capsys):
    from test_export import OLD_RUN

    options = ["A dog", "--format", "lora", "--out", tmp_path / "kite.safetensors"]
    message = refused(capsys, "export", OLD_RUN / "refine" / "graft", *options)
    assert "lora has no place for a graft's bridge: distill it" in message
    assert "clipgraft distill --graft GRAFT --out RUN" in message


def test_an_exported_lora_gives_the_distilled_states_here(distilled, plain_base, tmp_path):
    out = tmp_path / "kite.safetensors"
    export(distilled, out, file_format="lora", rank=2, prompts=PROMPTS)
    generator = clipgraft.load(plain_base, inference=InferenceConfig(engine="torch"))
    own, adapted = (generator.adapters.with_loras(loras) for loras in ((), (Lora(file=str(out)),)))
    expected = states(distilled.text_encoder, distilled.tokenizer)
    params = SamplingParams()
    found = torch.cat([adapted(prompt, params) for prompt in PROMPTS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert error(torch.cat([own(prompt, params) for prompt in PROMPTS]), expected) > 0.05
    assert adapted.pipeline.unet is generator.pipeline.unet
