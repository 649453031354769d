"""Fine-tuning as a whole, on tiny real models: what its settings do, and what they refuse."""

import json
import shutil

import pytest
import torch
from tiny_tuning import evaluations, recipe_of, run, tune, weights, with_source

import tiny
from clipgraft.cli import training as cli
from clipgraft.config import load_recipe, to_toml
from clipgraft.data.formats import load_dataset
from clipgraft.device import choose_mixed_precision
from clipgraft.errors import CheckpointError, UserError
from clipgraft.finetuning.finetune import (
    FinetuneResult,
    finetune,
    load_inputs,
)
from clipgraft.models.clip import load_clip
from clipgraft.runs.run import Run
from clipgraft.training.trainer import settle_precision
from two_processes import run_in_two_processes


def distance(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return sum((mine - theirs).square().sum() for mine, theirs in pairs).sqrt()


def is_unchanged(world, model, prefix):
    before = weights(load_clip(world / "clip").model, prefix)
    after = weights(model, prefix)
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.integration
def test_frozen_vision_tower_stays_the_same_to_the_bit(world, tmp_path):
    _, model = tune(world, tmp_path / "table", frozen_vision_layers=-1)
    assert is_unchanged(world, model, "vision_model")
    assert not is_unchanged(world, model, "text_model")


@pytest.mark.integration
def test_lora_leaves_a_plain_clip_with_other_attention(world, tmp_path):
    _, model = tune(world, tmp_path / "out", lora_rank=2)
    assert not is_unchanged(world, model, "text_model.encoder.layers.0.self_attn.q_proj.weight")
    assert is_unchanged(world, model, "text_model.encoder.layers.0.mlp")


@pytest.mark.slow
def test_distillation_holds_the_token_states(world, tmp_path):
    tune(world, tmp_path / "free", num_epochs=4)
    tune(world, tmp_path / "held", num_epochs=4, distill_weight=10.0)
    free, held = (evaluations(tmp_path / name)[-1] for name in ("free", "held"))
    assert held["drift_words"] < 0.5 * free["drift_words"]
    assert held["drift_padding"] < 0.5 * free["drift_padding"]


def test_sigmoid_loss_starts_at_a_balanced_bias(world, tmp_path):
    tune(world, tmp_path / "out", loss="sigmoid", num_epochs=1)
    first = json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[0])
    # Random towers' cosines are all much alike: the bias has to undo what they have in common.
    assert first["loss"] < 12
    assert first["logit_bias"] == pytest.approx(-4.5, abs=1)


def test_shortened_warm_up_is_noted(world, tmp_path, capsys):
    tune(world, tmp_path / "out", num_epochs=1, warmup_steps=50)
    message = "note: warmup_steps=50 is more than half of the run's 4 steps; the learning rate rises for 2 of"
    assert message in capsys.readouterr().err
    rates = [
        json.loads(line)["learning_rate"] for line in (tmp_path / "out/log.jsonl").read_text().splitlines()
    ]
    assert rates == [5e-4, 1e-3, 1e-3, 1e-3]


@pytest.mark.slow
def test_sigmoid_bias_starts_from_all_passes_of_the_first_step(world, tmp_path):
    """The first step is of the same images, whatever passes they are cut in."""
    logs = []
    for size in (32, 8, 1):
        out = tmp_path / str(size)
        passes = {"batch_size": size, "gradient_accumulation_steps": 32 // size}
        tune(world, out, loss="sigmoid", num_epochs=1, **passes)
        logs.append(json.loads((out / "log.jsonl").read_text().splitlines()[0]))
    for log in logs[1:]:
        assert log["logit_bias"] == pytest.approx(logs[0]["logit_bias"], abs=1e-4)
        assert log["loss"] == pytest.approx(logs[0]["loss"], rel=1e-4)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_resumed_run_keeps_its_automatic_precision(world, tmp_path, precision):
    tune(world, tmp_path / "out", num_epochs=1, mixed_precision=precision)
    cpu = torch.device("cpu")
    assert settle_precision("auto", cpu, tmp_path / "out") == precision
    assert settle_precision("no", cpu, tmp_path / "out") == "no"
    assert settle_precision("auto", cpu, None) == choose_mixed_precision("auto", cpu)


@pytest.mark.integration
def test_resume_allows_only_settings_without_effect(world, tmp_path):
    out = tmp_path / "out"
    tune(world, out, num_epochs=1)
    tune(world, out, num_epochs=1, resume=True, report_to="tensorboard")
    assert load_recipe(out / "recipe.toml").finetune.report_to == ("tensorboard",)
    message = r"begun with other settings \(finetune\.batch_size was 8, is 4\)"
    with pytest.raises(CheckpointError, match=message):
        tune(world, out, batch_size=4, resume=True)


@pytest.mark.integration
def test_resume_without_a_checkpoint_is_noted(world, tmp_path, capsys):
    tune(world, tmp_path / "out", num_epochs=1, resume=True)
    assert "note: no checkpoint in" in capsys.readouterr().err
    tune(world, tmp_path / "out", num_epochs=1, resume=True)
    assert "no checkpoint" not in capsys.readouterr().err


def test_leaked_photographs_are_noted_and_copies_merged(world, tmp_path, capsys):
    images = shutil.copytree(world / "data", tmp_path / "data").glob("**/00*.jpg")
    paths = {path.name: path for path in images}
    shutil.copy(paths["0040.jpg"], paths["0041.jpg"])  # both are test's
    for source, copy in (("0000.jpg", "0042.jpg"), ("0001.jpg", "0043.jpg"), ("0002.jpg", "0044.jpg")):
        shutil.copy(paths[source], paths[copy])  # train's, and now test's too
    recipe = recipe_of(world, num_epochs=1)
    recipe = with_source(recipe, tmp_path / "data")
    metrics = run(recipe, tmp_path / "out")
    said = " ".join(capsys.readouterr().err.split())
    assert "3 photographs lie in more than one split, byte for byte" in said
    assert "(0000.jpg (train) = 0042.jpg (test), 0001.jpg (train) = 0043.jpg (test), ...)" in said
    written = json.loads((tmp_path / "out" / "data.json").read_text())
    assert written["leakage"][0] == {"0000.jpg": "train", "0042.jpg": "test"}
    assert len(written["duplicates"]) == 4
    assert metrics.recall_after["num_images"] == 7
    assert metrics.recall_after["num_captions"] == 8 * 5


def test_truncated_captions_are_noted(world, tmp_path, capsys):
    source = tiny.write_flickr8k(tmp_path / "data")
    path = source / "Flickr8k.token.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + " dog" * 80, lines[1] + " dog" * 80, *lines[2:]]))
    recipe = recipe_of(world, num_epochs=1)
    recipe = with_source(recipe, source)
    run(recipe, tmp_path / "out")
    assert "note: 2 training captions are longer than 77 tokens; their ends" in capsys.readouterr().err


def test_result_is_recall_in_both_directions_before_and_after(world, tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(to_toml(recipe_of(world, num_epochs=1)))
    cli.finetune(tmp_path / "out", recipe=tmp_path / "recipe.toml")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["stage"], metrics["schema_version"]) == ("finetune", 1)
    before, after = metrics["before"], metrics["after"]
    assert capsys.readouterr().out == (
        "recall@1 among 8 test images, 40 captions: "
        f"text to image {before['text_to_image_recall@1']:.1%} -> {after['text_to_image_recall@1']:.1%}, "
        f"image to text {before['image_to_text_recall@1']:.1%} -> {after['image_to_text_recall@1']:.1%}\n"
        f"clip: {tmp_path / 'out' / 'clip'}\n"
    )
    result = FinetuneResult.model_validate(metrics | {"before": None, "after": None})
    result.print()
    assert capsys.readouterr().out == "recall was not measured: the source has no test split\n"


@pytest.mark.integration
def test_resumed_run_with_every_option_ends_in_the_same_bits(world, tmp_path):
    options = {
        "captions_per_image": 3,
        "gradient_accumulation_steps": 2,
        "ema_decay": 0.9,
        "crop_scale": 0.9,
        "layer_decay": 0.7,
        "distill_weight": 0.5,
        "best_metric": "val_loss",
        "checkpoint_every": 1,
    }
    _, unbroken = tune(world, tmp_path / "unbroken", **options)
    out = tmp_path / "broken"
    tune(world, out, **options)
    newest = max((out / "checkpoints").iterdir())
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    _, resumed = tune(world, out, resume=True, **options)
    for name, value in weights(unbroken, "").items():
        assert torch.equal(value, weights(resumed, "")[name]), name
    assert evaluations(out) == evaluations(tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 1}, "a batch of one image has no negatives"),
        (
            {"frozen_vision_layers": -1, "frozen_text_layers": -1},
            "frozen_vision_layers=-1 and frozen_text_layers=-1 leave nothing to train but the logit scale; "
            "lower one of them",
        ),
        ({"lora_rank": 2, "frozen_vision_layers": 2, "frozen_text_layers": 2}, "leave nothing to train but"),
        (
            {"batch_size": 1, "gradient_accumulation_steps": 31},
            "batch_size=1 and gradient_accumulation_steps=31 leave one of 32 training images to an epoch",
        ),
        (
            {"batch_size": 1, "gradient_accumulation_steps": 8, "accumulation": "separate"},
            "a batch of one image has no negatives",
        ),
        ({"patience": 2}, "patience needs a best_metric: name one"),
        ({"preview_steps": 5}, "preview_steps and preview_graft belong together"),
        ({"frozen_vision_layers": -1, "crop_scale": 0.9}, "crop_scale below 1 augments images"),
        ({"preview_steps": 1, "preview_graft": "x", "lora_rank": 2}, "preview_steps needs whole weights"),
        ({"batch_size": 64}, "batch_size must be between 1 and the number of images, 32; got 64"),
        ({"best_metric": "recall"}, "best_metric 'recall' is not measured; known here: .*val_loss"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(world, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        tune(world, tmp_path / "out", **settings)


def test_best_metric_without_a_validation_split_is_refused(world, tmp_path):
    recipe = recipe_of(world, best_metric="val_loss")
    source = tiny.write_flickr8k(tmp_path / "data")
    (source / "Flickr_8k.devImages.txt").write_text("")
    recipe = with_source(recipe, source)
    with pytest.raises(ValueError, match="measured on a validation split, and the source has none"):
        run(recipe, tmp_path / "out")


def test_captions_that_are_all_equal_are_refused(world, tmp_path):
    source = tiny.write_flickr8k(tmp_path / "data")
    path = source / "Flickr8k.token.txt"
    lines = [line.split("\t")[0] + "\tA dog ." for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    recipe = recipe_of(world)
    recipe = with_source(recipe, source)
    with pytest.raises(ValueError, match=r"every training caption is 'A dog \.'; captions have to tell"):
        run(recipe, tmp_path / "out")


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(world, tmp_path):
    (tmp_path / "recipe.toml").write_text(to_toml(recipe_of(world)))
    tune(world, tmp_path / "two", num_epochs=1)  # which the first of the two replaces, and it alone
    options = ["--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "two", "--overwrite"]
    command = ["-m", "clipgraft", "finetune", *options]
    first, second = run_in_two_processes(*command)
    assert "recall@1 among 8 test images" in first
    assert second == ""
    alone, clip = tune(world, tmp_path / "one")
    together = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert together["epoch_mean_loss"] == pytest.approx(alone.epoch_mean_loss, rel=1e-5)
    assert together["after"]["text_to_image_recall@1"] == alone.recall_after["text_to_image_recall@1"]
    before, found = load_clip(world / "clip").model, load_clip(tmp_path / "two" / "clip").model
    # AdamW lifts rounding to the size of a step where a gradient is next to nothing.
    assert distance(found, clip) < 0.01 * distance(before, clip)


def test_only_fine_tuning_runs_in_several_processes(world, tmp_path, monkeypatch):
    started = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "::1", "MASTER_PORT": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(
            ValueError, match="grid, compare and evaluate run in several processes, and 2 were started"
        ),
        Run.begin(tmp_path / "out", recipe_of(world)),
    ):
        pass


@pytest.mark.integration
def test_objects_go_in_and_a_typed_result_comes_out(world, tmp_path):
    """As the command line's result, to the bit; the CLIP that was given stays as it was."""
    clip, data = load_clip(world / "clip"), load_dataset(world / "data")
    settings = {"batch_size": 8, "num_epochs": 1, "learning_rate": 1e-3, "mixed_precision": "no"}
    result = finetune(clip, data, device="cpu", best_metric="val_loss", ema_decay=0.5, **settings)
    written, model = tune(world, tmp_path / "out", num_epochs=1, best_metric="val_loss", ema_decay=0.5)
    assert result.model_dump(exclude={"seconds"}) == written.model_dump(exclude={"seconds"})
    assert distance(result.clip.model, model) == 0
    assert distance(clip.model, load_clip(world / "clip").model) == 0 < distance(clip.model, model)
    assert result.recall_before["num_images"] == 8
    assert Run(tmp_path / "out").result(FinetuneResult).model_dump() == written.model_dump()
    assert result.clip.lineage[0].recipe.clip == clip.origin
    assert not result.clip.lineage[0].clip_given


def test_without_an_output_folder_nothing_is_written(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip, data = load_clip(world / "clip"), load_dataset(world / "data")
    clip = clip._replace(origin=None)
    result = finetune(clip, data, device="cpu", num_epochs=1, batch_size=8, best_metric="val_loss")
    assert list(tmp_path.iterdir()) == []
    assert result.clip.lineage[0].clip_given
    with pytest.raises(UserError, match="CLIP of this recipe was given in Python, so the recipe does"):
        load_inputs(result.clip.lineage[0].recipe)
    with pytest.raises(UserError, match="need an output_dir; name one"):
        finetune(clip, data, device="cpu", preview_steps=1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"learning_rat": 1e-4}, "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        ({"batch_size": 0}, "setting 'batch_size': .*greater than or equal to 1; got 0"),
        ({"device": "gpu"}, "'device'.*; got 'gpu'"),
    ],
)
def test_wrong_argument_names_the_nearest_setting(world, setting, message):
    with pytest.raises(UserError, match=message):
        finetune(load_clip(world / "clip"), load_dataset(world / "data"), **setting)
