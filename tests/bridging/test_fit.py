"""The bridge stage and its captions: from any text file, few of them, and a base that cannot be taught by."""

import json
import shutil

import pytest
import torch

import tiny
from clipgraft.bridging.corpus import load_captions
from clipgraft.bridging.fit import bridge, say_collapse
from clipgraft.bridging.pairs import Towers
from clipgraft.config import Recipe, apply_overrides, parse_overrides
from clipgraft.data.formats import read_lines
from clipgraft.errors import CheckpointError, DataError
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge, position_weights, token_classes
from clipgraft.models.graft import Graft
from clipgraft.training.objectives import BridgeObjective


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


def test_a_bridge_is_fitted_to_a_text_file_without_any_image(world, tmp_path):
    metrics = bridge(recipe_of(world), tmp_path)
    assert (metrics["num_captions"], metrics["num_held_out_captions"]) == (135, 15)
    for part in ("linear", "residual"):
        for figure in ("relative_error", "cosine", "key_value_error", "spread", "teacher_spread"):
            assert {"words", "eos", "padding"} <= set(metrics[part][figure])
    assert metrics["collapsed"] == []
    graft = Graft.from_pretrained(tmp_path / "graft")
    assert graft.text_encoder.bridge.config["num_maps"] == 3
    assert graft.base.sums["cross_attention_2"]


def test_captions_of_a_file_are_cut_in_two_and_come_once(world):
    captions = load_captions(recipe_of(world))
    assert not set(captions.train) & set(captions.held_out)
    assert len(captions.train) + len(captions.held_out) == 150
    assert load_captions(recipe_of(world, "bridge.max_captions=120")).train == captions.train[:120]


def test_the_bridge_of_one_map_and_that_with_attention_are_saved_and_come_back(world, tmp_path):
    options = ["bridge.by_token_class=false", "bridge.num_attention_blocks=1"]
    bridge(recipe_of(world, *options), tmp_path)
    config = Graft.from_pretrained(tmp_path / "graft").text_encoder.bridge.config
    assert (config["num_maps"], config["num_attention_blocks"]) == (1, 1)


def test_fewer_than_100_captions_are_refused_with_what_to_expect(world, tmp_path, capsys):
    few = tmp_path / "few.txt"
    few.write_text("\n".join(f"a dog {index}" for index in range(40)))
    with pytest.raises(
        ValueError, match=r"only 36 .*few\.txt, of which one in 10 lines is held out\).* 0\.77"
    ):
        load_captions(recipe_of(world, captions=few))
    assert len(load_captions(recipe_of(world, "bridge.allow_few_captions=true", captions=few)).train) == 36
    assert "note: only 36 different captions" in capsys.readouterr().err


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
    with pytest.raises(DataError, match="holds no caption; write one a line"):
        load_captions(recipe_of(world, captions=empty))
    latin = tmp_path / "latin.txt"
    latin.write_bytes("a café".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_lines(latin, "caption")


def test_a_base_whose_teacher_is_not_clips_is_refused(world, tmp_path):
    base = shutil.copytree(world["base"], tmp_path / "base")
    config = base / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "t5"}))
    with pytest.raises(CheckpointError, match="its text encoder is of type 't5'; only one of CLIP's"):
        bridge(recipe_of(world, base=base), tmp_path / "out")


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
    metrics = bridge(recipe_of(world, clip=tmp_path / "clip"), tmp_path / "out")
    assert max(metrics["linear"]["relative_error"].values()) == 0
    assert "residual" not in metrics


def test_far_padding_of_some_batches_stands_for_that_of_all(world):
    """Three batches, of which one is whole: together they weigh what three whole ones do."""
    towers = Towers(recipe_of(world))
    ids = towers.input_ids(load_captions(recipe_of(world)).train)
    weights = torch.zeros(2)
    for index, whole_every in enumerate((3, 1)):
        for batch in towers.positions(ids, "x", whole_every=whole_every):
            weights[index] += batch.weights.sum()
    assert weights[0].item() == pytest.approx(weights[1].item(), rel=0.05)


def test_the_loss_in_keys_and_values_is_their_weighted_error_over_the_teachers_power():
    torch.manual_seed(0)
    classes = token_classes(torch.tensor([[0, 5, 6, 9, 9, 9], [0, 5, 9, 9, 9, 9]]), 9)
    student, teacher, root = torch.randn(2, 6, 4), torch.randn(2, 6, 3), torch.randn(3, 3)
    weights = position_weights(classes)
    batch = {"student": student, "teacher": teacher, "classes": classes, "weights": weights}
    batch["positions"] = torch.arange(6).expand(2, 6)
    bridge = Bridge(4, 3, 5)
    plain = BridgeObjective(bridge, norm_weight=0.1)(batch)[0]
    loss, metrics = BridgeObjective(bridge, norm_weight=0.1, key_value_root=root, key_value_weight=2.0)(batch)
    ours, theirs = bridge(student, classes) @ root.T, teacher @ root.T
    rows = [(row, place) for row in range(2) for place in range(6)]
    error = sum(weights[at] * (ours[at] - theirs[at]).square().sum() for at in rows)
    expected = error / sum(weights[at] * theirs[at].square().sum() for at in rows)
    torch.testing.assert_close(metrics["key_value_loss"], expected.detach())
    torch.testing.assert_close(loss, plain + 2 * expected)


def test_a_collapse_is_said_aloud(capsys):
    assert say_collapse({"words": 0.1, "eos": 0.5}, {"words": 0.6, "eos": 0.6}) == ["words"]
    message = " ".join(capsys.readouterr().err.split())
    assert "warning: the bridge has collapsed: its states of words differ by 0.100" in message
