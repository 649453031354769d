"""The distill stage on tiny models: what it learns, what it leaves, and that it resumes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModel

from clipgraft.config import load_recipe
from clipgraft.data.formats import load_dataset, read_lines
from clipgraft.distilling.distill import DistillResult, distill, distill_recipe
from clipgraft.errors import CheckpointError, UserError
from clipgraft.exporting.lora_file import held_out_captions
from clipgraft.files import file_sha256
from clipgraft.models.base import FrozenBase
from clipgraft.models.graft import Graft
from clipgraft.runs.run import Run
from clipgraft.section import GIVEN
from clipgraft.settings import DataSettings
from helpers import states_of

WORDS = [f"encoder.layers.{layer}.{name}.weight" for layer in (0, 1) for name in ("mlp.fc1", "mlp.fc2")]
FAST = ["distill.learning_rate=5e-3", "distill.num_epochs=8"]


@pytest.fixture(scope="module")
def learned(distill_world, recipe_for, tmp_path_factory):
    """A distillation long enough to learn, and its folder."""
    folder = tmp_path_factory.mktemp("learned") / "out"
    return distill_recipe(recipe_for(distill_world, *FAST), distill_world.graft, folder), folder


def encoder_of(folder):
    return CLIPTextModel.from_pretrained(folder / "text_encoder").eval()


def weights_of(folder):
    return load_file(folder / "text_encoder" / "model.safetensors")


def states(encoder, tokenizer, *prompts):
    ids = tokenizer(list(prompts), padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder.double()(ids).last_hidden_state


def changed(folder, base):
    before, after = base.text_encoder.state_dict(), encoder_of(folder).state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_new_words_are_learned_and_the_rest_is_held(learned):
    result, folder = learned
    assert result.word_counts == {"kite": 27}
    assert result.num_captions == 135
    assert result.num_captions_with_new_words == 27
    assert result.after.new_words["words"] < 0.6 * result.before.new_words["words"]
    assert result.before.held["words"] == 0
    assert result.after.held["words"] < 0.6 * result.after.new_words["words"]
    assert Run(folder).result(DistillResult).model_dump() == result.model_dump()


def test_the_written_encoder_is_the_one_measured(learned, distill_world):
    _, folder = learned
    base = FrozenBase.load(str(distill_world.base))
    graft = Graft.from_pretrained(distill_world.graft)
    held_out = read_lines(distill_world.captions, "caption")[9::10]
    texts = [text for text in held_out if "kite" in text]
    target = states(graft.text_encoder, base.tokenizer, *texts)
    far, near = (
        (states(encoder, base.tokenizer, *texts) - target).norm()
        for encoder in (base.text_encoder, encoder_of(folder))
    )
    assert near < 0.7 * far


def test_the_empty_prompt_and_bos_are_the_bases_own(learned, distill_world):
    result, folder = learned
    base = FrozenBase.load(str(distill_world.base))
    prompts = ["", "A dog runs on the beach .", "kite"]
    own, ours = (
        states(encoder, base.tokenizer, *prompts) for encoder in (base.text_encoder, encoder_of(folder))
    )
    torch.testing.assert_close(ours[0], own[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[:, 0], own[:, 0], rtol=0, atol=1e-5)
    assert (ours[2, 1:] - own[2, 1:]).abs().max() > 0.1
    assert result.empty_prompt.largest < 1e-4


def test_what_decides_the_empty_prompt_is_not_trained(learned, distill_world):
    _, folder = learned
    base = FrozenBase.load(str(distill_world.base))
    names = changed(folder, base)
    assert set(WORDS) <= names
    assert not [name for name in names if "norm" in name or name.endswith("bias") or "position" in name]
    tokens = "embeddings.token_embedding.weight"
    moved = (encoder_of(folder).state_dict()[tokens] != base.text_encoder.state_dict()[tokens]).any(1)
    assert moved[base.tokenizer("kite").input_ids[1]]
    assert not moved[base.tokenizer.bos_token_id]
    assert not moved[base.tokenizer.eos_token_id]


@pytest.mark.integration
def test_the_base_is_not_touched(distill_world, recipe_for, tmp_path):
    files = [path for path in distill_world.base.rglob("*") if path.is_file()]
    before = {path: file_sha256(path) for path in files}
    distill_recipe(recipe_for(distill_world), distill_world.graft, tmp_path / "out")
    assert {path: file_sha256(path) for path in files} == before
    pipeline = Graft.from_pretrained(tmp_path / "out" / "text_encoder").pipeline()
    own = FrozenBase.load(str(distill_world.base)).weight_checksums()
    named = FrozenBase(unet=pipeline.unet, vae=pipeline.vae).weight_checksums()
    assert named == {name: own[name] for name in ("unet", "vae")}


@pytest.mark.integration
def test_a_resumed_distillation_ends_in_the_same_bits(distill_world, recipe_for, tmp_path):
    recipe = recipe_for(distill_world, "distill.checkpoint_every=3", "distill.save_total_limit=9")
    distill_recipe(recipe, distill_world.graft, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for checkpoint in (tmp_path / "cut" / "checkpoints").iterdir():
        if checkpoint.name != "step-00000003":
            shutil.rmtree(checkpoint)
    distill_recipe(recipe, distill_world.graft, tmp_path / "cut", resume=True)
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.integration
def test_a_distillation_is_not_resumed_with_other_words(distill_world, recipe_for, tmp_path):
    recipe = recipe_for(distill_world)
    distill_recipe(recipe, distill_world.graft, tmp_path / "out")
    other = tmp_path / "other.txt"
    other.write_text("horse\n")
    changed_recipe = recipe_for(distill_world, f"distill.new_words={json.dumps(str(other))}")
    with pytest.raises(CheckpointError, match="captions"):
        distill_recipe(changed_recipe, distill_world.graft, tmp_path / "out", resume=True)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("settings", "parts"),
    [(["distill.text_layers=1"], "encoder.layers.1."), (["distill.lora_rank=2"], ".self_attn.")],
)
def test_only_the_chosen_part_is_trained(distill_world, recipe_for, tmp_path, settings, parts):
    recipe = recipe_for(distill_world, *settings, "distill.learning_rate=1e-2")
    result = distill_recipe(recipe, distill_world.graft, tmp_path / "out")
    names = changed(tmp_path / "out", FrozenBase.load(str(distill_world.base)))
    assert names
    assert all(parts in name for name in names)
    assert result.after.new_words["words"] < result.before.new_words["words"]
    assert result.empty_prompt.largest < 1e-4


@pytest.mark.integration
def test_objects_are_distilled_without_a_folder(distill_world, recipe_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    graft, captions = (
        Graft.from_pretrained(distill_world.graft),
        read_lines(distill_world.captions, "caption"),
    )
    options = {"num_epochs": 2, "batch_size": 16, "warmup_steps": 0, "mixed_precision": "no"}
    base = FrozenBase.load(str(distill_world.base), components=("tokenizer", "text_encoder"))
    before = states_of(graft.text_encoder.train(), base.text_encoder)
    result = distill(graft, captions, base=base, new_words=["Kite"], **options)
    assert states_of(graft.text_encoder, base.text_encoder) == before
    assert list(tmp_path.iterdir()) == []
    by_name = distill_recipe(recipe_for(distill_world), distill_world.graft, tmp_path / "out").graft
    recipe = result.graft.lineage.find("distill").recipe
    assert recipe.distill.captions == GIVEN
    with pytest.raises(UserError, match="captions of this recipe were given in Python, and it does not hold"):
        distill_recipe(recipe, distill_world.graft, tmp_path / "again")
    with pytest.raises(UserError, match="it is not recorded which captions"):
        held_out_captions(result.graft)
    ours, theirs = result.graft.text_encoder.state_dict(), by_name.text_encoder.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_lineage_of_several_sources_names_each(distill_world, tmp_path):
    captions = read_lines(distill_world.captions, "caption")
    for number, caption in enumerate(captions[:20]):
        folder = tmp_path / ("one", "two")[number % 2] / ("train", "test")[number > 15]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(b"%d" % number)
        (folder / f"{number}.txt").write_text(caption)
    sources = [{"source": str(tmp_path / name)} for name in ("one", "two")]
    result = distill(
        Graft.from_pretrained(distill_world.graft),
        load_dataset(DataSettings.build({"sources": sources})),
        new_words=["kite"],
        num_epochs=1,
        mixed_precision="no",
    )
    data = result.graft.lineage.find("distill").recipe.data
    assert [each.source for each in data.sources] == [each["source"] for each in sources]
    assert sorted(held_out_captions(result.graft)) == sorted(captions[16:20])


def test_the_lineage_names_the_graft_and_the_words(learned, distill_world):
    _, folder = learned
    graft = Graft.from_pretrained(folder / "text_encoder")
    assert [stage.stage for stage in graft.lineage.stages] == ["bridge", "distill"]
    made = graft.lineage.find("distill")
    assert made.words == {"kite": 27}
    assert made.started_from == str(distill_world.graft)
    assert load_recipe(folder / "recipe.toml").distill.new_words == str(distill_world.words)


@pytest.mark.integration
def test_a_distilled_encoder_is_distilled_again(learned, distill_world, recipe_for, tmp_path):
    _, folder = learned
    recipe = recipe_for(distill_world, 'distill.new_words=["horse"]')
    again = distill_recipe(recipe, folder / "text_encoder", tmp_path / "out").graft
    assert [stage.stage for stage in again.lineage.stages] == ["bridge", "distill", "distill"]
