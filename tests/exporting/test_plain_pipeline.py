"""A distilled text encoder's diffusers folder: plain diffusers loads it; all else is the base's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from distilled_world import distilled_from, states, take_sizes
from safetensors.torch import load_file

import tiny
from clipgraft.exporting.export import export
from clipgraft.models.base import FrozenBase
from helpers import call, refused, states_of
from real_size import write_single_file

PLAIN = """
import sys
sys.modules["clipgraft"] = None
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
ids = pipeline.tokenizer(["A kite at sunset ."], padding="max_length", return_tensors="pt").input_ids
image = pipeline("A kite", num_inference_steps=1, output_type="np").images
save_file({"states": pipeline.text_encoder(ids)[0].detach().contiguous()}, sys.argv[2])
print(type(pipeline.text_encoder).__module__, image.shape)
"""


@pytest.fixture(scope="module")
def exported(distilled_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "pipeline"
    assert call("export", distilled_run, "--out", out) == 0
    return out


@pytest.mark.slow
def test_plain_diffusers_loads_it_without_clipgraft(exported, distilled, tmp_path):
    command = [sys.executable, "-c", PLAIN, str(exported), str(tmp_path / "states.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "transformers.models.clip.modeling_clip"
    found = load_file(tmp_path / "states.safetensors")["states"]
    expected = states(distilled.text_encoder, distilled.tokenizer, ["A kite at sunset ."])
    torch.testing.assert_close(found, expected)


def test_all_but_the_text_encoder_is_the_bases_by_bytes(exported, plain_base):
    kept = [path.relative_to(plain_base) for path in plain_base.rglob("*") if path.is_file()]
    differing = {path for path in kept if (exported / path).read_bytes() != (plain_base / path).read_bytes()}
    assert differing == {Path("text_encoder/model.safetensors")}


def test_text_weights_have_the_names_that_every_version_reads(exported, distilled):
    """transformers before 5 would start from random weights without the prefix."""
    weights = load_file(exported / "text_encoder" / "model.safetensors")
    assert weights.keys() == {f"text_model.{name}" for name in distilled.text_encoder.state_dict()}


def test_a_base_in_half_precision_stays_so(plain_base, tmp_path):
    half = shutil.copytree(plain_base, tmp_path / "half")
    tiny.halve(half)
    for path in half.rglob("*.fp16.safetensors"):
        path.with_name(path.name.replace(".fp16", "")).unlink()
    distilled = distilled_from(half)
    before = states_of(distilled.text_encoder.float())
    out = export(distilled, tmp_path / "out")
    assert states_of(distilled.text_encoder) == before
    for name in ("unet", "vae", "text_encoder"):
        files = [path.name for path in (out / name).glob("*.safetensors")]
        assert [file for file in files if "fp16" in file] == []
        assert {weight.dtype for weight in load_file(out / name / files[0]).values()} == {torch.float16}
    pipeline = StableDiffusionPipeline.from_pretrained(out, torch_dtype=torch.float16)
    assert {pipeline.unet.dtype, pipeline.text_encoder.dtype} == {torch.float16}


@pytest.mark.integration
def test_a_base_in_half_precision_generates_without_a_dtype(tmp_path):
    """transformers 5 takes the file's dtype, diffusers float32."""
    out = export(distilled_from(Path("flatland")), tmp_path / "out")
    pipeline = StableDiffusionPipeline.from_pretrained(out)
    assert pipeline.text_encoder.dtype == torch.float32
    assert len(pipeline("A kite", num_inference_steps=1).images) == 1


def test_a_sharded_base_is_copied_with_its_index(plain_base, tmp_path):
    sharded = shutil.copytree(plain_base, tmp_path / "sharded")
    tiny.shard(sharded / "unet", "diffusion_pytorch_model")
    tiny.shard(sharded / "text_encoder", "model")
    out = export(distilled_from(sharded), tmp_path / "out")
    assert len(list((out / "unet").glob("*.safetensors"))) == 2
    assert [path.name for path in (out / "text_encoder").glob("*.safetensors*")] == ["model.safetensors"]
    StableDiffusionPipeline.from_pretrained(out)


def test_a_base_in_one_file_becomes_a_folder(plain_base, tmp_path, monkeypatch):
    take_sizes(plain_base, monkeypatch)
    file = write_single_file(plain_base, tmp_path / "base.safetensors")
    graft = distilled_from(file)
    out = export(graft, tmp_path / "out")
    loaded = StableDiffusionPipeline.from_pretrained(out)
    own = FrozenBase.load(str(plain_base))
    for name in ("unet", "vae"):
        ours, theirs = getattr(loaded, name).state_dict(), getattr(own, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    torch.testing.assert_close(
        states(loaded.text_encoder, loaded.tokenizer), states(graft.text_encoder, graft.tokenizer)
    )
    assert (out / "tokenizer" / "vocab.json").is_file()


def test_a_safety_checker_is_copied_and_told_in_the_card(tmp_path):
    base = tiny.write_checked_base(tmp_path / "base", 0.5)
    out = export(distilled_from(base), tmp_path / "out")
    assert (out / "safety_checker" / "model.safetensors").read_bytes() == (
        base / "safety_checker" / "model.safetensors"
    ).read_bytes()
    assert "the included safety checker of the base is no guarantee" in (out / "README.md").read_text()
    assert StableDiffusionPipeline.from_pretrained(out).safety_checker is not None


def test_a_component_that_is_not_there_is_not_in_the_index(plain_base, tmp_path):
    """A base whose safety checker was not fetched."""
    partial = shutil.copytree(plain_base, tmp_path / "partial")
    index = json.loads((partial / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (partial / "model_index.json").write_text(json.dumps(index))
    config = json.loads((partial / "unet" / "config.json").read_text()) | {"_name_or_path": str(tmp_path)}
    (partial / "unet" / "config.json").write_text(json.dumps(config))
    out = export(distilled_from(partial), tmp_path / "out")
    assert json.loads((out / "model_index.json").read_text())["safety_checker"] == [None, None]
    assert "_name_or_path" not in json.loads((out / "unet" / "config.json").read_text())
    assert StableDiffusionPipeline.from_pretrained(out).safety_checker is None


def test_the_folder_names_no_place_on_this_machine(exported, plain_base):
    places = str(plain_base.parent), str(Path.cwd())
    for path in exported.rglob("*"):
        if path.suffix in (".json", ".md", ".toml", ".txt"):
            assert not any(place in path.read_text() for place in places), path


def test_the_card_says_words_figures_and_terms(exported):
    card = (exported / "README.md").read_text()
    for part in (
        "| kite | 16 |",
        "trained on captions alone",
        "| new words | 0.2500 |",
        "| held | 0.1250 |",
        "encoder is a changed copy of the base's own",
        "Attachment A",
        "Plain diffusers loads it",
    ):
        assert part in card
    assert "{reason}" not in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "bridge"], "a distilled text encoder has no bridge; choose one of diffusers, "),
        (["--dtype", "fp16"], "--dtype is for --format checkpoint and lora; diffusers keeps the base's own"),
        (["--rank", 4], "--rank is for --format lora; diffusers has none"),
        (["--format", "lora", "--rank", -1], "--rank must be 1 or more; got -1"),
        (["--format", "checkpoint", "--dtype", "int8"], "--dtype must be fp16 or float32; got 'int8'"),
        (["--format", "checkpoint"], "checkpoint is one file: name it with --out, ending in .safetensors"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(distilled_run, tmp_path, capsys, options, message):
    out = tmp_path / "out"
    assert message in refused(capsys, "export", distilled_run, "--out", out, *options)
    assert not out.exists()


def test_a_file_in_the_folders_place_is_refused(distilled_run, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    message = refused(capsys, "export", distilled_run, "--out", tmp_path / "out")
    assert "out is a file, and diffusers is a folder" in message


def test_another_base_is_refused(distilled_run, tmp_path, capsys):
    other = tiny.write_base(tmp_path / "other", seed=5)
    message = refused(capsys, "export", distilled_run, "--base", other, "--out", tmp_path / "out")
    assert "the graft was made for another base" in message
    assert not (tmp_path / "out").exists()
