"""A distilled text encoder in its base's one-file checkpoint, read back by diffusers."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from distilled_world import WORDS, distilled_from, states, take_sizes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.errors import UserError
from clipgraft.exporting.export import export
from clipgraft.models import single_file as sd15
from clipgraft.models.base import FrozenBase
from clipgraft.models.modelspec import HASH_KEY, content_hash
from helpers import call, refused
from real_size import write_single_file

TEXT = "cond_stage_model.transformer.text_model."


@pytest.fixture
def sized(plain_base, monkeypatch):
    take_sizes(plain_base, monkeypatch)


def read_back(path, base):
    return StableDiffusionPipeline.from_single_file(path, config=str(base), local_files_only=True)


@pytest.fixture
def one_file(plain_base, tmp_path, sized):
    """The base as one file with what published ones hold besides: averages, a schedule, metadata."""
    path = write_single_file(plain_base, tmp_path / "published.safetensors")
    weights = load_file(path) | {
        "alphas_cumprod": torch.linspace(1, 0, 1000, dtype=torch.float64),
        "model_ema.diffusion_modelout2bias": torch.ones(4),
    }
    weights = {
        name: weight.half() if name.startswith("model.") else weight for name, weight in weights.items()
    }
    save_file(weights, path, metadata={"format": "pt", "modelspec.title": "The original"})
    return path


def test_diffusers_reads_back_the_base_and_the_distilled_states(plain_base, distilled, sized, tmp_path):
    out = export(distilled, tmp_path / "kite.safetensors", file_format="checkpoint")
    loaded, own = read_back(out, plain_base), FrozenBase.load(str(plain_base))
    assert torch.equal(
        states(loaded.text_encoder, distilled.tokenizer), states(distilled.text_encoder, distilled.tokenizer)
    )
    for name in ("unet", "vae"):
        ours, theirs = getattr(loaded, name).state_dict(), getattr(own, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_single_files_other_tensors_stay_as_they_were(one_file, tmp_path):
    graft = distilled_from(one_file)
    out = export(graft, tmp_path / "kite.safetensors", file_format="checkpoint")
    before, after = load_file(one_file), load_file(out)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert (after[name].dtype, after[name].shape) == (weight.dtype, weight.shape)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = [name for name in before if name.startswith(TEXT) and "layers" in name and "norm" not in name]
    assert changed == {name for name in layers if name.endswith("weight")}
    own = graft.text_encoder.state_dict()
    assert all(torch.equal(after[name], own[name.removeprefix(TEXT)]) for name in changed)


def test_a_folder_gives_the_keys_and_dtypes_of_its_file(plain_base, distilled, sized, tmp_path):
    published = load_file(write_single_file(plain_base, tmp_path / "published.safetensors"))
    found = load_file(export(distilled, tmp_path / "kite.safetensors", file_format="checkpoint"))
    described = [{name: (w.dtype, w.shape) for name, w in each.items()} for each in (published, found)]
    assert described[0] == described[1]
    ids = found[f"{TEXT}embeddings.position_ids"]
    assert ids.dtype == torch.int64
    assert ids.tolist() == [list(range(77))]


@pytest.mark.parametrize(("dtype", "expected"), [("fp16", torch.float16), ("float32", torch.float32)])
def test_a_dtype_is_that_of_all_but_integers(one_file, tmp_path, dtype, expected):
    out = tmp_path / "kite.safetensors"
    export(distilled_from(one_file), out, file_format="checkpoint", dtype=dtype)
    found = load_file(out)
    assert {weight.dtype for name, weight in found.items() if "position_ids" not in name} == {expected}
    assert found[f"{TEXT}embeddings.position_ids"].dtype == torch.int64


def test_half_precision_reads_back_with_close_states(plain_base, distilled, sized, tmp_path):
    out = export(distilled, tmp_path / "k.safetensors", file_format="checkpoint", dtype="fp16")
    found = states(read_back(out, plain_base).text_encoder, distilled.tokenizer)
    torch.testing.assert_close(
        found, states(distilled.text_encoder, distilled.tokenizer), rtol=1e-2, atol=1e-2
    )


def test_the_exported_file_is_a_base_again(plain_base, distilled, sized, tmp_path):
    out = export(distilled, tmp_path / "kite.safetensors", file_format="checkpoint")
    again = FrozenBase.load(str(out), tokenizer=distilled.tokenizer)
    assert torch.equal(
        states(again.text_encoder, distilled.tokenizer), states(distilled.text_encoder, distilled.tokenizer)
    )
    again.check_record(distilled.base)


def test_the_header_says_what_the_file_is(one_file, tmp_path):
    out = export(distilled_from(one_file), tmp_path / "kite.safetensors", file_format="checkpoint")
    with safe_open(out, "pt") as file:
        found = file.metadata()
    expected = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "kite",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.usage_hint": f"New words: {', '.join(WORDS)}",
        "format": "pt",
        HASH_KEY: content_hash(out),
    }
    assert {key: found.get(key) for key in expected} == expected
    assert "published.safetensors" in found["modelspec.description"]
    assert str(tmp_path) not in json.dumps(found)
    assert found["modelspec.license"] == "that of published.safetensors"


def test_the_card_lies_beside_the_file(distilled_run, sized, tmp_path):
    out = tmp_path / "models" / "kite.safetensors"
    assert call("export", distilled_run, "--format", "checkpoint", "--out", out) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["kite.md", "kite.safetensors"]
    card = out.with_suffix(".md").read_text()
    for part in (
        "`kite.safetensors`",
        "models/checkpoints/",
        "| kite | 16 |",
        "## Recipe",
        "[distill]",
        "Attachment A",
    ):
        assert part in card
    assert str(distilled_run) not in card


@pytest.mark.parametrize("taken", ["kite.safetensors", "kite.md"])
def test_an_existing_file_is_not_replaced(distilled_run, sized, tmp_path, capsys, taken):
    (tmp_path / taken).write_text("mine")
    options = ["--format", "checkpoint", "--out", tmp_path / "kite.safetensors"]
    assert f"{taken} exists already; name another" in refused(capsys, "export", distilled_run, *options)
    assert [path.name for path in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


@pytest.mark.parametrize("file_format", ["checkpoint", "lora", "diffusers"])
def test_a_full_disk_leaves_nothing(distilled_run, sized, tmp_path, capsys, monkeypatch, file_format):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    # Each writes its weights of the text encoder last, after the card or the base's files.
    monkeypatch.setattr("clipgraft.models.weights.save_file", full)
    name = "kite" if file_format == "diffusers" else "kite.safetensors"
    prompts = ["A kite"] if file_format == "lora" else []
    options = [*prompts, "--format", file_format, "--out", tmp_path / name]
    assert "no space left" in refused(capsys, "export", distilled_run, *options)
    assert list(tmp_path.iterdir()) == []


def test_a_value_beyond_half_precision_is_named(plain_base, distilled, sized, monkeypatch, tmp_path):
    base = tiny.write_base(tmp_path / "base")
    path = base / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.bias"] += 70000
    save_file(weights, path)
    out = tmp_path / "kite.safetensors"
    with pytest.raises(UserError, match=r"decoder\.conv_out\.bias has values beyond float16's range"):
        export(distilled, out, base=str(base), file_format="checkpoint", dtype="fp16")
    assert not out.exists()
    export(distilled, out, base=str(base), file_format="checkpoint", dtype="float32")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_hidden_layers", 23, "text encoder has another architecture: layers 2, not 23; tools"),
        ("hidden_size", 1024, "text encoder has another architecture: width 24, not 1024; tools"),
        ("hidden_act", "gelu", "text encoder has another architecture: activation quick_gelu, not gelu"),
    ],
)
def test_another_text_encoder_is_refused(
    distilled_run, sized, tmp_path, monkeypatch, capsys, key, value, message
):
    monkeypatch.setattr(sd15, "TEXT_CONFIG", {**sd15.TEXT_CONFIG, key: value})
    options = ["--format", "checkpoint", "--out", tmp_path / "kite.safetensors"]
    assert message in refused(capsys, "export", distilled_run, *options)
    assert list(tmp_path.iterdir()) == []


def test_another_unet_is_refused(distilled_run, sized, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sd15, "UNET_CONFIG", {**sd15.UNET_CONFIG, "in_channels": 9})
    options = ["--format", "checkpoint", "--out", tmp_path / "kite.safetensors"]
    message = refused(capsys, "export", distilled_run, *options)
    assert (
        "U-Net has another architecture: conv_in.weight has shape (8, 4, 3, 3), not (8, 9, 3, 3)" in message
    )
    assert "--format diffusers" in message
