"""What is exported is loaded by other tools and draws the same; every folder has a card."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file

import tiny
from clipgraft.config import load_recipe
from clipgraft.generation.pipeline import build_pipeline
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge, token_classes
from clipgraft.models.clip import text_hidden_states
from clipgraft.models.graft import Graft
from helpers import call, refused

OLD_RUN = Path(__file__).resolve().parents[1] / "fixtures" / "old_run"
PROMPTS = ["A dog runs on the beach .", "A black cat"]


@pytest.fixture(scope="module")
def graft_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    clip, base = tiny.write_clip(folder / "clip"), tiny.write_base(folder / "base")
    data = tiny.write_flickr8k(folder / "data")
    sizes = [
        "--set",
        "bridge.hidden_size=16",
        "--set",
        "bridge.num_epochs=1",
        "--set",
        "bridge.batch_size=16",
        "--allow-few-captions",
    ]
    arguments = ["--clip", clip, "--base", base, "--data", data, "--out", folder / "bridge"]
    assert call("bridge", *arguments, *sizes) == 0
    return folder / "bridge" / "graft"


@pytest.fixture(scope="module")
def refined_dir(graft_dir, tmp_path_factory):
    """The graft, refined on other pictures; no recipe names its CLIP."""
    folder = tmp_path_factory.mktemp("refined")
    photos = tiny.write_flickr8k(folder / "photos")
    options = ["--graft", graft_dir, "--base", graft_dir.parents[1] / "base", "--data", photos]
    assert call("refine", *options, "--out", folder / "refine", "--set", "refine.batch_size=8") == 0
    return folder / "refine" / "graft"


def latents(pipeline, **prompt):
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed) for seed in range(2)]
    return pipeline(**prompt, generator=generator, num_inference_steps=3, output_type="latent").images


def test_out_folder_within_the_graft_is_refused(graft_dir, capsys):
    assert "lies in the graft" in refused(capsys, "export", graft_dir, "--out", graft_dir / "exported")
    assert not (graft_dir / "exported").exists()


def test_a_stock_pipeline_draws_the_same_from_prompt_embeds(graft_dir, tmp_path):
    out = tmp_path / "embeds"
    file = tmp_path / "prompts.txt"
    file.write_text(PROMPTS[1] + "\n\n")
    arguments = ["--format", "prompt-embeds", "--prompts-file", file, "--negative-prompt", "A red ball"]
    assert call("export", graft_dir, PROMPTS[0], "--out", out, *arguments) == 0
    graft = Graft.from_pretrained(graft_dir)
    base = graft.base.name
    embeds = load_file(out / "prompt_embeds.safetensors")
    stock = StableDiffusionPipeline.from_pretrained(base)
    ours = StableDiffusionPipeline.from_pretrained(base, text_encoder=graft.text_encoder)
    drawn = latents(ours, prompt=PROMPTS, negative_prompt=["A red ball"] * 2)
    torch.testing.assert_close(latents(stock, **embeds), drawn)
    assert json.loads((out / "prompts.json").read_text()) == {
        "prompts": PROMPTS,
        "negative_prompt": "A red ball",
    }


def test_no_negative_prompt_is_the_bases_own_empty_prompt(graft_dir, tmp_path):
    assert call("export", graft_dir, "A dog", "--out", tmp_path / "out", "--format", "prompt-embeds") == 0
    negative = load_file(tmp_path / "out" / "prompt_embeds.safetensors")["negative_prompt_embeds"]
    assert torch.equal(
        negative[0], FrozenBase.load(Graft.from_pretrained(graft_dir).base.name).empty_prompt_embeds()
    )


def test_a_diffusers_folder_generates_the_same_without_paths(graft_dir, tmp_path):
    out = tmp_path / "pipeline"
    assert call("export", graft_dir, "--out", out) == 0
    graft = Graft.from_pretrained(graft_dir)
    ours = build_pipeline(FrozenBase.load(graft.base.name), graft.text_encoder)
    loaded = DiffusionPipeline.from_pretrained(out)
    assert torch.equal(latents(loaded, prompt=PROMPTS), latents(ours, prompt=PROMPTS))
    machine = str(graft_dir.parents[1]), str(Path.cwd())
    for path in out.rglob("*"):
        if path.suffix in (".json", ".md", ".toml", ".txt"):
            assert not any(place in path.read_text() for place in machine), path


def test_the_place_of_what_was_written_is_told_as_it_is(graft_dir, tmp_path, capsys):
    out = tmp_path / "[red] cats"  # rich takes brackets for colours, unless told not to
    assert call("export", graft_dir, "--out", out, "--format", "bridge") == 0
    assert capsys.readouterr().out == f"bridge: {out}\n"


def test_the_bridge_alone_maps_as_in_the_graft(graft_dir, tmp_path):
    assert call("export", graft_dir, "--out", tmp_path / "out", "--format", "bridge") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    weights = load_file(tmp_path / "out" / "bridge.safetensors")
    bridge = Bridge(**config["bridge"])
    empty_states = weights.pop("empty_states")
    bridge.load_state_dict(weights)
    graft = Graft.from_pretrained(graft_dir)
    ids = graft.tokenizer(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = graft.text_encoder(ids).last_hidden_state
        classes = token_classes(ids, graft.tokenizer.eos_token_id)
        mapped = bridge(text_hidden_states(graft.text_encoder.text_model, ids), classes)
    torch.testing.assert_close(mapped[:, 1:], expected[:, 1:])
    torch.testing.assert_close(empty_states[0].expand(2, -1), expected[:, 0])


@pytest.mark.parametrize("file_format", ["diffusers", "prompt-embeds", "bridge"])
def test_every_folder_has_a_card_and_a_recipe_that_is_one(graft_dir, tmp_path, file_format):
    prompts = ["A dog"] if file_format == "prompt-embeds" else []
    assert call("export", graft_dir, *prompts, "--out", tmp_path / "out", "--format", file_format) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    metrics = json.loads((graft_dir.parent / "metrics.json").read_text())
    assert f"{metrics['residual']['relative_error']['words']:.4f}" in card
    for part in ("`base`", "`data`", "`clip`", "- Bridge: 80 captions", "Attachment A", "## Limits"):
        assert part in card
    assert call("run", tmp_path / "out" / "recipe.toml", "--out", tmp_path / "again") == 2  # data not here


def test_a_graft_without_its_run_has_the_same_card(graft_dir, tmp_path):
    alone = shutil.copytree(graft_dir, tmp_path / "alone" / "graft")
    cards = []
    for name, graft in (("here", graft_dir), ("there", alone)):
        assert call("export", graft, "--out", tmp_path / name, "--format", "bridge") == 0
        cards.append((tmp_path / name / "README.md").read_text())
    assert cards[0] == cards[1]


def test_an_older_graft_without_its_run_says_so(tmp_path):
    alone = shutil.copytree(OLD_RUN / "refine" / "graft", tmp_path / "alone" / "graft")
    assert call("export", alone, "--out", tmp_path / "out", "--format", "bridge") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "How this graft was made is not recorded" in card
    assert "None were recorded" in card


def test_an_older_refined_graft_has_a_card_by_its_runs_recipe(tmp_path):
    assert call("export", OLD_RUN / "refine" / "graft", "--out", tmp_path, "--format", "bridge") == 0
    card = (tmp_path / "README.md").read_text()
    for part in ("- CLIP: `clip`.", "- Refining: 16 train images", "| after refining | 0.5871"):
        assert part in card


def test_a_refined_graft_has_a_card_of_bridge_and_refinement(graft_dir, refined_dir, tmp_path):
    assert call("export", refined_dir, "--out", tmp_path / "out", "--format", "bridge") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    bridged = json.loads((graft_dir.parent / "metrics.json").read_text())
    refined = json.loads((refined_dir.parent / "metrics.json").read_text())
    for figure in (
        bridged["residual"]["relative_error"]["words"],
        refined["before"]["500"],
        refined["after"]["50"],
    ):
        assert f"{figure:.4f}" in card
    for part in (
        "`data`",
        "on `photos`",
        "- CLIP: `clip`",
        "- Bridge: 80 captions",
        "- Refining: 16 train images",
    ):
        assert part in card
    assert "None were recorded" not in card
    recipe = load_recipe(tmp_path / "out" / "recipe.toml")
    assert (recipe.clip.name, recipe.bridge.hidden_size, recipe.refine.num_epochs) == ("clip", 16, 1)


def test_a_card_says_whether_a_safety_checker_is_included(tmp_path, graft_dir):
    base = tiny.write_checked_base(tmp_path / "base", 0.5)
    cards = []
    for name, options in (("diffusers", ["--base", base]), ("bridge", [])):
        out = tmp_path / name
        assert call("export", graft_dir, "--out", out, "--format", name, *options) == 0
        cards.append((out / "README.md").read_text())
    assert "the included safety checker of the base is no guarantee" in cards[0]
    assert "no safety checker is included" in cards[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--format", "onnx"],
            "format must be one of diffusers, prompt-embeds, bridge, checkpoint, lora, embeddings; got",
        ),
        (["--format", "prompt-embeds"], "prompt-embeds needs prompts, as arguments or in a --prompts-file"),
        (
            ["--negative-prompt", "fog", "--format", "bridge"],
            "--negative-prompt is for --format prompt-embeds; bridge encodes none",
        ),
        (
            ["A dog", "--format", "bridge"],
            "prompts are for --format prompt-embeds and lora; bridge encodes none",
        ),
        (
            ["--format", "prompt-embeds", "--prompts-file", "nowhere.txt"],
            "file of prompts not found: nowhere.txt",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(graft_dir, tmp_path, capsys, options, message):
    assert message in refused(capsys, "export", graft_dir, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_prompts_file_without_prompts_is_refused(graft_dir, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n \n")
    options = ["--format", "prompt-embeds", "--prompts-file", tmp_path / "empty.txt"]
    message = refused(capsys, "export", graft_dir, "--out", tmp_path / "out", *options)
    assert "holds no prompt; put one on each line" in message


def test_export_onto_another_base_is_refused(graft_dir, tmp_path, capsys):
    other = tiny.write_base(tmp_path / "other", seed=5)
    message = refused(capsys, "export", graft_dir, "--out", tmp_path / "out", "--base", other)
    assert "the graft was made for another base" in message
    message = refused(
        capsys, "generate", "A dog", "--graft", graft_dir, "--out", tmp_path / "out", "--base", other
    )
    assert "the graft was made for another base" in message


def test_the_same_base_in_another_place_is_taken(graft_dir, tmp_path):
    same = tiny.write_base(tmp_path / "same")
    assert call("export", graft_dir, "--out", tmp_path / "out", "--base", same) == 0
