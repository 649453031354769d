"""The bridge stage and its captions: from any text file, few of them, and a base that cannot be taught by."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import tiny
from clipgraft.bridging.corpus import load_captions, split_captions
from clipgraft.bridging.fit import BridgeResult, bridge_recipe, fit_bridge, warn_of_collapse
from clipgraft.bridging.pairs import NUM_KEPT_PADDING, BridgeError, load_towers
from clipgraft.config import Recipe, apply_overrides, load_recipe, parse_overrides
from clipgraft.data.batches import StateBatches
from clipgraft.data.formats import read_lines
from clipgraft.errors import CheckpointError, DataError, UserError
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import BOS, PADDING, Bridge, position_weights, token_classes
from clipgraft.models.clip import load_clip
from clipgraft.models.graft import Graft
from clipgraft.runs.run import Run
from clipgraft.section import GIVEN
from clipgraft.training.objectives import BridgeObjective
from helpers import states_of

OLD_RUN = Path(__file__).resolve().parents[1] / "fixtures" / "old_run"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    captions = folder / "captions.txt"
    lines = [f"{tiny.CAPTIONS[index % 5]} {index}" for index in range(150)]
    captions.write_text("\n".join([*lines, "", lines[0]]) + "\n")
    return {
        "clip": tiny.write_clip(folder / "clip"),
        "base": tiny.write_base(folder / "base"),
        "captions": captions,
    }


def recipe_of(world, *overrides, **paths):
    paths = {**world, **paths}
    names = {"clip.name": paths["clip"], "base.name": paths["base"], "bridge.captions": paths["captions"]}
    texts = [f"{key}={json.dumps(str(value))}" for key, value in names.items()]
    small = ["bridge.hidden_size=8", "bridge.num_epochs=1", "bridge.mixed_precision=no"]
    return apply_overrides(Recipe(), parse_overrides([*texts, *small, *overrides]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("photos/", "expected captions, or a dataset that load_dataset returns; got 'photos/'"),
        (["a dog", "\ud83d"], r"captions are texts of whole characters; got '\\ud83d'"),
        (["a dog", None], "captions are texts of whole characters; got None"),
    ],
)
def test_what_is_no_list_of_captions_is_shown(given, message):
    with pytest.raises(UserError, match=message):
        split_captions(given)


def test_a_bridge_is_fitted_to_a_text_file_without_any_image(world, tmp_path):
    result = bridge_recipe(recipe_of(world), tmp_path)
    assert (result.num_captions, result.num_held_out_captions) == (135, 15)
    for error in (result.linear, result.residual):
        for figures in error.model_dump().values():
            assert {"words", "eos", "padding"} <= set(figures)
    assert result.collapsed == ()
    graft = Graft.from_pretrained(tmp_path / "graft")
    assert graft.text_encoder.bridge.config["num_maps"] == 3
    assert graft.base.sums["cross_attention_2"]


def test_captions_of_a_file_are_cut_in_two_and_come_once(world):
    captions = load_captions(recipe_of(world))
    assert not set(captions.train) & set(captions.held_out)
    assert len(captions.train) + len(captions.held_out) == 150
    assert load_captions(recipe_of(world, "bridge.max_captions=120")).train == captions.train[:120]


def test_a_bridge_of_one_map_with_attention_comes_back(world, tmp_path):
    options = ["bridge.by_token_class=false", "bridge.num_attention_blocks=1"]
    bridge_recipe(recipe_of(world, *options), tmp_path)
    config = Graft.from_pretrained(tmp_path / "graft").text_encoder.bridge.config
    assert (config["num_maps"], config["num_attention_blocks"]) == (1, 1)


def test_fewer_than_100_captions_are_refused(world, tmp_path, capsys):
    few = tmp_path / "few.txt"
    few.write_text("\n".join(f"a dog {index}" for index in range(40)))
    with pytest.raises(
        ValueError, match=r"only 36 .*few\.txt, with one in 10 lines held out\).* 0\.8 from 100"
    ):
        load_captions(recipe_of(world, captions=few))
    assert len(load_captions(recipe_of(world, "bridge.allow_few_captions=true", captions=few)).train) == 36
    assert "note: only 36 different captions" in capsys.readouterr().err


def test_captions_with_excluded_words_are_left_out(world, capsys):
    whole = load_captions(recipe_of(world))
    options = ["bridge.max_captions=70", "bridge.allow_few_captions=true"]
    without = load_captions(recipe_of(world, 'bridge.exclude_words=["Kite", "bicycle"]', *options))
    kept = [caption for caption in whole.train if "kite" not in caption and "bicycle" not in caption]
    assert without.train == kept[:70]
    assert not any("kite" in caption or "bicycle" in caption for caption in without.held_out)
    assert "45 of 135 captions are left out: they have new words" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"every training caption has a word of bridge\.exclude_words"):
        load_captions(recipe_of(world, 'bridge.exclude_words=["a"]'))


def test_a_source_without_training_captions_is_said(world, tmp_path):
    data = tiny.write_flickr8k(tmp_path / "data")
    (data / "Flickr_8k.trainImages.txt").write_text("")
    overrides = ['bridge.captions=""', f"data.source={data}"]
    with pytest.raises(
        ValueError, match=r"no training caption in .*data to fit the bridge on; name a source"
    ):
        load_captions(recipe_of(world, *overrides))


def test_files_without_captions_are_said(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="captions file not found"):
        read_lines(tmp_path / "none.txt", "caption")
    empty = tmp_path / "empty.txt"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match="holds no caption; write one per line"):
        load_captions(recipe_of(world, captions=empty))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("a café".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_lines(latin, "caption")


@pytest.mark.parametrize(
    "line", ["a.jpg,A dog .", "a.JPG#0\tA dog .", '{"file_name": "a.png", "text": "A dog"}']
)
def test_table_of_images_is_no_file_of_captions(tmp_path, line):
    table = tmp_path / "captions.txt"
    table.write_text(f"image,caption\n{line}\n{line}\n")
    with pytest.raises(DataError, match=r"is a table of images and captions .*; name it with --data, or"):
        read_lines(table, "caption")
    table.write_text(f"A dog .\nA cat .\n{line}\n")
    assert len(read_lines(table, "caption")) == 3


def test_a_base_whose_teacher_is_not_clips_is_refused(world, tmp_path):
    base = shutil.copytree(world["base"], tmp_path / "base")
    config = base / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "t5"}))
    with pytest.raises(CheckpointError, match="its text encoder is of type 't5'; only one of CLIP's"):
        bridge_recipe(recipe_of(world, base=base), tmp_path / "out")


def test_the_bases_own_tower_needs_no_bridge(world, tmp_path):
    """The teacher put into a CLIP: both towers are one, and the graft gives the teacher's states."""
    from transformers import CLIPModel

    from clipgraft.models.clip import save_clip

    parts = tiny.build_clip()
    teacher = FrozenBase.load(str(world["base"])).text_encoder
    config = parts.model.config
    config.text_config = teacher.config
    model = CLIPModel(config)
    model.text_model.load_state_dict(teacher.state_dict())
    save_clip(parts._replace(model=model), tmp_path / "clip")
    result = bridge_recipe(recipe_of(world, clip=tmp_path / "clip"), tmp_path / "out")
    assert max(result.linear.relative_error.values()) == 0
    assert result.residual is None


def test_far_padding_of_some_batches_stands_for_that_of_all(world):
    """Three batches, one of them whole: together they weigh what three whole ones do."""
    towers = load_towers(recipe_of(world))
    ids = towers.input_ids(load_captions(recipe_of(world)).train)
    weights = torch.zeros(2)
    for index, whole_every in enumerate((3, 1)):
        for batch in towers.positions(ids, "x", whole_every=whole_every):
            weights[index] += batch.weights.sum()
    assert weights[0].item() == pytest.approx(weights[1].item(), rel=0.05)


def test_kept_padding_of_some_captions_stands_for_that_of_all(world, tmp_path):
    """Three batches of captions, one with padding: words weigh 1 each, all padding as much as if of each."""
    towers = load_towers(recipe_of(world))
    ids = towers.input_ids([f"{caption} {n}" for n in range(60) for caption in tiny.CAPTIONS])
    states = towers.fit_linear(ids, tmp_path / "states.bin").states
    assert states.num_added == len(states.classes)
    [batch] = StateBatches(states, padding=PADDING, bos=BOS, batch_size=len(ids), seed=0).epoch(0, 0)
    is_padding = (batch["classes"] == PADDING) & (batch["weights"] > 0)
    assert 0 < is_padding.any(1).sum() < len(ids)
    assert batch["weights"][is_padding].sum().item() == pytest.approx(NUM_KEPT_PADDING * len(ids))
    assert batch["weights"][~is_padding].sum() == (towers.lengths(ids) - 1).sum()  # without BOS


def test_the_loss_in_keys_and_values_is_their_relative_error():
    torch.manual_seed(0)
    classes = token_classes(torch.tensor([[0, 5, 6, 9, 9, 9], [0, 5, 9, 9, 9, 9]]), 9)
    student, teacher, root = torch.randn(2, 6, 4), torch.randn(2, 6, 3), torch.randn(3, 3)
    weights = position_weights(classes)
    batch = {"student": student, "teacher": teacher, "classes": classes, "weights": weights}
    batch["positions"] = torch.arange(6).expand(2, 6)
    bridge = Bridge(4, 3, 5)
    plain = BridgeObjective(bridge, norm_weight=0.1)(batch)[0]
    loss, metrics = BridgeObjective(bridge, norm_weight=0.1, kv_metric_sqrt=root, key_value_weight=2.0)(batch)
    ours, theirs = bridge(student, classes) @ root.T, teacher @ root.T
    rows = [(row, place) for row in range(2) for place in range(6)]
    error = sum(weights[at] * (ours[at] - theirs[at]).square().sum() for at in rows)
    expected = error / sum(weights[at] * theirs[at].square().sum() for at in rows)
    torch.testing.assert_close(metrics["key_value_loss"], expected.detach())
    torch.testing.assert_close(loss, plain + 2 * expected)


def test_a_collapse_is_said(capsys):
    diversity, teachers = {"words": 0.1, "eos": 0.5}, {"words": 0.6, "eos": 0.6}
    figures = {key: {} for key in ("relative_error", "cosine", "key_value_error")}
    error = BridgeError(**figures, diversity=diversity, teacher_diversity=teachers)
    assert warn_of_collapse(error) == ("words",)
    message = " ".join(capsys.readouterr().err.split())
    assert (
        "the bridge's states of words are too much alike: from caption to caption they differ by 0.100"
        in message
    )


def test_metrics_json_is_the_result(world, tmp_path):
    result = bridge_recipe(recipe_of(world), tmp_path)
    assert Run(tmp_path).result(BridgeResult).model_dump() == result.model_dump()
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert (values["stage"], values["schema_version"]) == ("bridge", 1)


def test_figures_of_an_earlier_version_are_read():
    found = Run(OLD_RUN / "bridge").result(BridgeResult)
    assert found.error.diversity["words"] == pytest.approx(0.0319, abs=1e-4)


def test_objects_are_grafted_and_nothing_is_written(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip, base = load_clip(world["clip"]), FrozenBase.load(str(world["base"]))
    lines = world["captions"].read_text().splitlines()
    options = {"hidden_size": 8, "num_epochs": 1, "mixed_precision": "no"}
    before = states_of(clip.model.train(), base.text_encoder)
    result = fit_bridge(clip, base, [line for line in lines if line], **options)
    assert states_of(clip.model, base.text_encoder) == before
    assert list(tmp_path.iterdir()) == []
    assert (result.num_captions, result.num_held_out_captions) == (135, 15)
    [stage] = result.graft.lineage.stages
    assert (stage.recipe.clip.name, stage.recipe.bridge.hidden_size) == (str(world["clip"]), 8)
    by_name = bridge_recipe(recipe_of(world), tmp_path / "out").graft
    unnamed = fit_bridge(clip._replace(origin=None), base, lines, num_epochs=0).graft.lineage
    assert (stage.clip_given, unnamed.find("bridge").clip_given, unnamed.clips) == (False, True, ())
    assert stage.recipe.bridge.captions == GIVEN
    ours, theirs = (one.text_encoder.state_dict() for one in (result.graft, by_name))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_recipe_of_captions_given_in_python_is_refused(world, tmp_path):
    """It names no data, so that it would take flatland8k's."""
    clip, base = load_clip(world["clip"]), FrozenBase.load(str(world["base"]))
    options = {"num_epochs": 0, "mixed_precision": "no"}
    fit_bridge(clip, base, [f"a dog {index}" for index in range(120)], output_dir=tmp_path / "out", **options)
    recipe = load_recipe(tmp_path / "out" / "recipe.toml")
    with pytest.raises(UserError, match="captions of this recipe were given in Python, and it does not hold"):
        bridge_recipe(recipe, tmp_path / "again")
    named = apply_overrides(recipe, {"bridge.captions": str(world["captions"])})
    assert bridge_recipe(named, tmp_path / "again").num_captions == 135


def test_a_recipe_of_a_clip_given_in_python_is_refused(world, tmp_path):
    """Such as one just fine-tuned; by default a recipe names flatland's CLIP."""
    clip = load_clip(world["clip"])._replace(origin=None)
    recipe = recipe_of(world, "bridge.num_epochs=0")
    fit_bridge(clip, FrozenBase.load(str(world["base"])), load_captions(recipe), recipe=recipe,
               output_dir=tmp_path / "out")  # fmt: skip
    written = load_recipe(tmp_path / "out" / "recipe.toml")
    with pytest.raises(UserError, match="CLIP of this recipe was given in Python, so the recipe does"):
        bridge_recipe(written, tmp_path / "again")


def test_a_graft_makes_a_plain_pipeline_of_its_base(world):
    lines = [f"a dog {index}" for index in range(120)]
    clip, base = load_clip(world["clip"]), FrozenBase.load(str(world["base"]))
    graft = fit_bridge(clip, base, lines, num_epochs=0).graft
    pipeline = graft.pipeline()
    assert type(pipeline) is StableDiffusionPipeline
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert pipeline.text_encoder is graft.text_encoder
    assert graft.pipeline(base).unet is base.unet


def test_a_setting_that_is_none_is_named(world):
    with pytest.raises(UserError, match="unknown setting 'hiden_size'; did you mean 'hidden_size'"):
        fit_bridge(load_clip(world["clip"]), FrozenBase(), ["a dog"], hiden_size=8)
