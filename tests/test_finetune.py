"""Fine-tuning as a whole, on tiny real models: what its settings do to the weights, and what they refuse."""

import json

import pytest
import torch

import tiny
from clipgraft.config import build_recipe
from clipgraft.errors import CheckpointError
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import load_clip
from clipgraft.models.encoder import Graft, GraftedTextEncoder, save_graft
from clipgraft.stages.finetune import finetune
from clipgraft.stages.folder import stage_folder
from clipgraft.stages.interpolate import interpolate, set_between


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.write_clip(folder / "clip")
    tiny.write_flickr8k(folder / "data", 48)
    return folder


def recipe_of(world, **finetune_settings):
    defaults = {"batch_size": 8, "num_epochs": 2, "learning_rate": 1e-3, "mixed_precision": "no"}
    return build_recipe(
        {
            "device": "cpu",
            "data": {"source": str(world / "data")},
            "clip": {"name": str(world / "clip")},
            "finetune": defaults | finetune_settings,
        }
    )


def run(world, out, *, resume=False, **settings):
    recipe = recipe_of(world, **settings)
    with stage_folder(out, recipe, resume=resume, overwrite=False, in_parallel=True) as folder:
        metrics = finetune(recipe, folder, resume=resume)
    return metrics, load_clip(out / "clip").model


def weights(model, prefix):
    return {name: p.detach() for name, p in model.named_parameters() if name.startswith(prefix)}


def is_unchanged(world, model, prefix):
    before = weights(load_clip(world / "clip").model, prefix)
    after = weights(model, prefix)
    return all(torch.equal(before[name], after[name]) for name in before)


def evaluations(out):
    return [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]


def test_every_epoch_tells_recall_validation_loss_and_drift(world, tmp_path):
    run(world, tmp_path / "out")
    rows = evaluations(tmp_path / "out")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["drift_words"] == 0 < rows[1]["drift_words"] < rows[2]["drift_words"]
    assert rows[0]["num_images"] == 8
    assert {"val_loss", "text_to_image_recall@1", "paired_text_to_image_recall@1"} <= rows[0].keys()


def test_frozen_vision_tower_is_encoded_once_and_stays_as_it_was_to_the_bit(world, tmp_path):
    _, model = run(world, tmp_path / "table", frozen_vision_layers=-1)
    assert is_unchanged(world, model, "vision_model")
    assert not is_unchanged(world, model, "text_model")


def test_low_rank_updates_leave_a_plain_clip_with_other_attention(world, tmp_path):
    _, model = run(world, tmp_path / "out", lora_rank=2)
    assert not is_unchanged(world, model, "text_model.encoder.layers.0.self_attn.q_proj.weight")
    assert is_unchanged(world, model, "text_model.encoder.layers.0.mlp")


def test_preservation_holds_the_token_states(world, tmp_path):
    run(world, tmp_path / "free", num_epochs=4)
    run(world, tmp_path / "held", num_epochs=4, preservation_weight=10.0)
    free, held = (evaluations(tmp_path / name)[-1] for name in ("free", "held"))
    assert held["drift_words"] < 0.5 * free["drift_words"]
    assert held["drift_padding"] < 0.5 * free["drift_padding"]


def test_sigmoid_loss_starts_at_a_bias_that_expects_the_pairs_there_are(world, tmp_path):
    run(world, tmp_path / "out", loss="sigmoid", num_epochs=1)
    first = json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[0])
    # Random towers' cosines are all much alike: the bias has to undo what they have in common.
    assert first["loss"] < 12
    assert first["logit_bias"] == pytest.approx(-4.5, abs=1)


def test_resumed_run_with_every_option_ends_in_the_same_bits(world, tmp_path):
    options = {
        "captions_per_image": 3,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "crop_scale": 0.9,
        "layer_decay": 0.7,
        "preservation_weight": 0.5,
        "best_metric": "val_loss",
        "checkpoint_every": 1,
    }
    _, unbroken = run(world, tmp_path / "unbroken", **options)
    out = tmp_path / "broken"
    run(world, out, **options)
    newest = max((out / "checkpoints").iterdir())
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    _, resumed = run(world, out, resume=True, **options)
    for name, value in weights(unbroken, "").items():
        assert torch.equal(value, weights(resumed, "")[name]), name
    assert evaluations(out) == evaluations(tmp_path / "unbroken")


def test_pictures_are_drawn_on_the_way_without_changing_the_training(world, tmp_path):
    clip = load_clip(world / "clip")
    tiny.write_base(tmp_path / "base")
    encoder = GraftedTextEncoder.graft(
        clip.model.text_model,
        Bridge(tiny.TEXT_WIDTH, tiny.TEACHER_WIDTH),
        torch.zeros(77, tiny.TEACHER_WIDTH),
        clip.tokenizer.eos_token_id,
    )
    record = {"name": str(tmp_path / "base"), "revision": "", "sums": {}}
    save_graft(Graft(encoder, clip.tokenizer, record), tmp_path / "graft")
    _, plain = run(world, tmp_path / "plain", num_epochs=1)
    samples = {"samples_every": 2, "samples_graft": str(tmp_path / "graft")}
    _, watched = run(world, tmp_path / "watched", num_epochs=1, **samples)
    pictures = sorted((tmp_path / "watched/samples").glob("step-*/*.png"))
    assert [f"{path.parent.name}/{path.name}" for path in pictures] == [
        "step-00000002/0.png",
        "step-00000002/1.png",
        "step-00000004/0.png",
        "step-00000004/1.png",
    ]
    for name, value in weights(plain, "").items():
        assert torch.equal(value, weights(watched, "")[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "a batch of one image has no wrong answer to learn from"),
        ({"patience": 2}, "patience needs a best_metric: name one"),
        ({"samples_every": 5}, "samples_every and samples_graft belong together"),
        ({"frozen_vision_layers": -1, "crop_scale": 0.9}, "crop_scale below 1 augments images"),
        ({"samples_every": 1, "samples_graft": "x", "lora_rank": 2}, "samples_every needs whole weights"),
        ({"batch_size": 64}, "batch_size must be between 1 and the number of images, 32; got 64"),
        ({"best_metric": "recall"}, "best_metric 'recall' is not measured; known here: .*val_loss"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(world, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(world, tmp_path / "out", **settings)


def test_best_metric_without_a_validation_split_is_refused(world, tmp_path):
    recipe = recipe_of(world, best_metric="val_loss")
    source = tiny.write_flickr8k(tmp_path / "data")
    (source / "Flickr_8k.devImages.txt").write_text("")
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": str(source)})})
    with pytest.raises(ValueError, match="measured on a validation split, and the source has none"):
        finetune(recipe, tmp_path)


def test_captions_that_are_all_equal_are_refused(world, tmp_path):
    source = tiny.write_flickr8k(tmp_path / "data")
    path = source / "Flickr8k.token.txt"
    lines = [line.split("\t")[0] + "\tA dog ." for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    recipe = recipe_of(world)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": str(source)})})
    with pytest.raises(ValueError, match=r"every training caption is 'A dog \.'; captions have to tell"):
        finetune(recipe, tmp_path)


def test_only_fine_tuning_runs_in_several_processes(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(
            ValueError, match="grid, compare and evaluate run in several processes, and 2 were started"
        ),
        stage_folder(tmp_path / "out", recipe_of(world), resume=False, overwrite=False),
    ):
        pass


def test_ends_of_the_interpolation_are_both_models_to_the_bit():
    first, last, middle = (tiny.build_clip(seed).model for seed in (0, 1, 2))
    for alpha, model in ((0.0, first), (1.0, last)):
        set_between(middle, first, last, alpha)
        for mine, theirs in zip(middle.parameters(), model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    set_between(middle, first, last, 0.25)
    expected = 0.75 * first.logit_scale + 0.25 * last.logit_scale
    torch.testing.assert_close(middle.logit_scale, expected)


def test_interpolation_measures_eleven_places_and_writes_one(world, tmp_path, capsys):
    tiny.write_clip(tmp_path / "after", seed=1)
    metrics = interpolate(recipe_of(world), str(tmp_path / "after"), tmp_path, alpha=0.5)
    capsys.readouterr()
    assert [row["alpha"] for row in metrics["rows"]] == [k / 10 for k in range(11)]
    assert metrics["rows"][0]["drift_words"] == 0 < metrics["rows"][10]["drift_words"]
    assert (tmp_path / "interpolation.png").stat().st_size > 1000
    written = load_clip(tmp_path / "clip").model
    ends = [load_clip(path).model for path in (world / "clip", tmp_path / "after")]
    set_between(ends[0], *(load_clip(path).model for path in (world / "clip", tmp_path / "after")), 0.5)
    torch.testing.assert_close(written.visual_projection.weight, ends[0].visual_projection.weight)


def test_interpolation_refuses_what_has_no_meaning(world, tmp_path):
    with pytest.raises(ValueError, match=r"alpha must be between 0 \(before\) and 1 \(after\); got 1.5"):
        interpolate(recipe_of(world), str(world / "clip"), tmp_path, alpha=1.5)
    other = tiny.build_clip()
    other.model.text_projection = torch.nn.Linear(tiny.TEXT_WIDTH, 4, bias=False)
    from clipgraft.stages.interpolate import _refuse_other_shapes

    with pytest.raises(CheckpointError, match=r"not of one shape.*differing: text_projection\.weight"):
        _refuse_other_shapes(tiny.build_clip().model, other.model)
