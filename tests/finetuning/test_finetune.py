"""Fine-tuning as a whole, on tiny real models: what its settings do to the weights, and what they refuse."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from PIL import Image

import tiny
from clipgraft.cli import training as cli
from clipgraft.config import build_recipe, load_recipe, to_toml
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import tokenize
from clipgraft.device import choose_mixed_precision
from clipgraft.errors import CheckpointError
from clipgraft.finetuning.finetune import build_objective, finetune, print_result, watch_validation
from clipgraft.finetuning.previews import Samples
from clipgraft.finetuning.validate import ClipWatch
from clipgraft.finetuning.wise_ft import interpolate, set_between
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import load_clip
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder
from clipgraft.runs.run import stage_folder
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.trainer import StepReport, settle_precision
from plain_step import Pass, plain_loss
from two_processes import run_in_two_processes


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


def distance(model, other):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return sum((mine - theirs).square().sum() for mine, theirs in pairs).sqrt()


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
    run(world, tmp_path / "held", num_epochs=4, distill_weight=10.0)
    free, held = (evaluations(tmp_path / name)[-1] for name in ("free", "held"))
    assert held["drift_words"] < 0.5 * free["drift_words"]
    assert held["drift_padding"] < 0.5 * free["drift_padding"]


def test_sigmoid_loss_starts_at_a_bias_that_expects_the_pairs_there_are(world, tmp_path):
    run(world, tmp_path / "out", loss="sigmoid", num_epochs=1)
    first = json.loads((tmp_path / "out/log.jsonl").read_text().splitlines()[0])
    # Random towers' cosines are all much alike: the bias has to undo what they have in common.
    assert first["loss"] < 12
    assert first["logit_bias"] == pytest.approx(-4.5, abs=1)


def test_validation_loss_of_single_images_is_that_of_two(world, tmp_path):
    run(world, tmp_path / "out", batch_size=1, gradient_accumulation_steps=8, num_epochs=1)
    assert all(row["val_loss"] > 0.1 for row in evaluations(tmp_path / "out"))


@pytest.mark.parametrize("settings", [{}, {"distill_weight": 2.0}, {"captions_per_image": 2}])
def test_validation_loss_is_the_trainings_of_the_same_images(world, settings):
    """Of two passes of two images, with their first captions; the tower has moved since it was remembered."""
    recipe = recipe_of(world, batch_size=2, gradient_accumulation_steps=2, num_epochs=1, **settings)
    clip = load_clip(world / "clip")
    images = load_dataset(recipe.data.source, include_unsplit=recipe.data.include_unsplit).train[:4]
    before = deepcopy(clip.model).double()
    objective = build_objective(clip, recipe.finetune)
    with torch.no_grad():
        for parameter in clip.model.text_model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    found = watch_validation(clip, objective, images, recipe.finetune).measure()["val_loss"]
    count = recipe.finetune.captions_per_image
    opened = [Image.open(image.path) for image in images]
    captions = [caption for image in images for caption in image.captions[:count]]
    whole = Pass(
        clip.image_processor(images=opened, return_tensors="pt").pixel_values.double(),
        tokenize(captions, clip.tokenizer, pad_to_context_length=True).input_ids,
        owner=[index for index in range(4) for _ in range(count)],
        content=[image.path.read_bytes() for image in images],
    )
    weight = recipe.finetune.distill_weight
    plain = plain_loss(clip.model.double(), before, None, [whole], duplicate_images="mask", distill=weight)
    assert found == pytest.approx(plain.item(), rel=1e-5)


def test_warm_up_that_is_cut_short_is_said(world, tmp_path, capsys):
    run(world, tmp_path / "out", num_epochs=1, warmup_steps=50)
    message = "note: warmup_steps=50 is more than half of the run's 4 steps; the learning rate rises for 2 of"
    assert message in capsys.readouterr().err
    rates = [
        json.loads(line)["learning_rate"] for line in (tmp_path / "out/log.jsonl").read_text().splitlines()
    ]
    assert rates == [5e-4, 1e-3, 1e-3, 1e-3]


def test_sigmoid_bias_starts_from_all_passes_of_the_first_step(world, tmp_path):
    """The first step is of the same images, whatever passes they are cut in."""
    logs = []
    for size in (32, 8, 1):
        out = tmp_path / str(size)
        passes = {"batch_size": size, "gradient_accumulation_steps": 32 // size}
        run(world, out, loss="sigmoid", num_epochs=1, **passes)
        logs.append(json.loads((out / "log.jsonl").read_text().splitlines()[0]))
    for log in logs[1:]:
        assert log["logit_bias"] == pytest.approx(logs[0]["logit_bias"], abs=1e-4)
        assert log["loss"] == pytest.approx(logs[0]["loss"], rel=1e-4)


def test_equal_images_are_no_wrong_answers_in_the_validation_loss(tmp_path):
    clip = tiny.build_clip()
    images = []
    for index, color in enumerate(("red", "red", "blue")):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (32, 32), color).save(path)
        images.append(CaptionedImage(path.name, path, (tiny.CAPTIONS[index],), "val"))
    objective = ContrastiveObjective(clip.model)
    assert ClipWatch(clip, objective, images[:2], 2).measure()["val_loss"] == 0
    assert ClipWatch(clip, objective, images[1:], 2).measure()["val_loss"] > 0.1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_automatic_precision_of_a_resumed_run_is_the_one_it_began_in(world, tmp_path, precision):
    run(world, tmp_path / "out", num_epochs=1, mixed_precision=precision)
    cpu = torch.device("cpu")
    assert settle_precision("auto", cpu, tmp_path / "out") == precision
    assert settle_precision("no", cpu, tmp_path / "out") == "no"
    assert settle_precision("auto", cpu, None) == choose_mixed_precision("auto", cpu)


def test_only_where_figures_are_written_may_change_when_a_run_is_gone_on_with(world, tmp_path):
    out = tmp_path / "out"
    run(world, out, num_epochs=1)
    run(world, out, num_epochs=1, resume=True, report_to="tensorboard")
    assert load_recipe(out / "recipe.toml").finetune.report_to == "tensorboard"
    message = r"begun with other settings \(finetune\.batch_size was 8, is 4\)"
    with pytest.raises(CheckpointError, match=message):
        run(world, out, batch_size=4, resume=True)


def test_resuming_where_there_is_no_checkpoint_says_that_training_begins_anew(world, tmp_path, capsys):
    run(world, tmp_path / "out", num_epochs=1, resume=True)
    assert "note: no checkpoint in" in capsys.readouterr().err
    run(world, tmp_path / "out", num_epochs=1, resume=True)
    assert "no checkpoint" not in capsys.readouterr().err


def test_photographs_in_two_splits_are_said_and_copies_are_one_in_the_gallery(world, tmp_path, capsys):
    images = shutil.copytree(world / "data", tmp_path / "data").glob("**/00*.jpg")
    paths = {path.name: path for path in images}
    shutil.copy(paths["0040.jpg"], paths["0041.jpg"])  # both are test's
    for source, copy in (("0000.jpg", "0042.jpg"), ("0001.jpg", "0043.jpg"), ("0002.jpg", "0044.jpg")):
        shutil.copy(paths[source], paths[copy])  # train's, and now test's too
    recipe = recipe_of(world, num_epochs=1)
    recipe = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"source": str(tmp_path / "data")})}
    )
    with stage_folder(tmp_path / "out", recipe, resume=False, overwrite=False) as folder:
        metrics = finetune(recipe, folder)
    said = " ".join(capsys.readouterr().err.split())
    assert "3 photographs lie in more than one split, byte for byte" in said
    assert "(0000.jpg (train) = 0042.jpg (test), 0001.jpg (train) = 0043.jpg (test), ...)" in said
    written = json.loads((tmp_path / "out" / "data.json").read_text())
    assert written["leakage"][0] == {"0000.jpg": "train", "0042.jpg": "test"}
    assert len(written["duplicates"]) == 4
    assert metrics["after"]["num_images"] == 7
    assert metrics["after"]["num_captions"] == 8 * 5


def test_captions_that_are_too_long_are_counted_aloud(world, tmp_path, capsys):
    source = tiny.write_flickr8k(tmp_path / "data")
    path = source / "Flickr8k.token.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + " dog" * 80, lines[1] + " dog" * 80, *lines[2:]]))
    recipe = recipe_of(world, num_epochs=1)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": str(source)})})
    finetune(recipe, tmp_path)
    assert "note: 2 training captions are longer than 77 tokens; the words" in capsys.readouterr().err


def test_result_is_recall_in_both_directions_before_and_after(world, tmp_path, capsys):
    (tmp_path / "recipe.toml").write_text(to_toml(recipe_of(world, num_epochs=1)))
    cli.finetune(tmp_path / "out", recipe=tmp_path / "recipe.toml")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    assert capsys.readouterr().out == (
        "recall@1 among 8 test images, 40 captions: "
        f"text to image {before['text_to_image_recall@1']:.1%} -> {after['text_to_image_recall@1']:.1%}, "
        f"image to text {before['image_to_text_recall@1']:.1%} -> {after['image_to_text_recall@1']:.1%}\n"
        f"clip: {tmp_path / 'out' / 'clip'}\n"
    )
    print_result({"before": None, "after": None})
    assert capsys.readouterr().out == "recall was not measured: the source has no test split\n"


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


def write_graft(world, base, folder):
    clip = load_clip(world / "clip")
    encoder = GraftedTextEncoder.graft(
        clip.model.text_model,
        Bridge(tiny.TEXT_WIDTH, tiny.TEACHER_WIDTH),
        torch.zeros(77, tiny.TEACHER_WIDTH),
        clip.tokenizer.eos_token_id,
    )
    Graft(encoder, clip.tokenizer, BaseRecord(name=str(base), sums={})).save_pretrained(folder)
    return clip


def samples_of(world, base, folder, **settings):
    clip = write_graft(world, base, folder / "graft")
    defaults = {"num_inference_steps": 2, "engine": "torch"}
    samples = Samples(
        clip,
        folder / "graft",
        build_recipe({"generate": defaults | settings}).generate,
        folder / "previews",
        1,
        torch.device("cpu"),
    )
    samples(StepReport(1, 1, 0.0, 0.0))
    return {path.name: Image.open(path) for path in sorted((folder / "previews/step-00000001").iterdir())}


def test_pictures_on_the_way_are_drawn_as_the_recipe_says(world, tmp_path):
    base = tiny.write_base(tmp_path / "base")
    options = {"prompts": ["a dog"], "height": 32, "width": 64, "num_images_per_prompt": 2}
    drawn = samples_of(world, base, tmp_path / "plain", **options)
    assert [(name, image.size) for name, image in drawn.items()] == [("0.png", (64, 32)), ("1.png", (64, 32))]
    for name, change in {"negative": {"negative_prompt": "a cat"}, "other": {"scheduler": "euler"}}.items():
        other = samples_of(world, base, tmp_path / name, **options | change)
        assert other["0.png"].tobytes() != drawn["0.png"].tobytes(), name


def test_picture_on_the_way_that_is_blocked_is_not_kept_and_it_is_said(world, tmp_path, capsys):
    base = tiny.write_checked_base(tmp_path / "base", threshold=-1.0)
    assert samples_of(world, base, tmp_path, prompts=["a dog"]) == {}
    message = "note: step 1, image 0 of 'a dog' was not written: blocked by the base's safety checker"
    assert message in capsys.readouterr().err


def test_pictures_are_drawn_on_the_way_without_changing_the_training(world, tmp_path):
    write_graft(world, tiny.write_base(tmp_path / "base"), tmp_path / "graft")
    _, plain = run(world, tmp_path / "plain", num_epochs=1)
    samples = {"preview_steps": 2, "preview_graft": str(tmp_path / "graft")}
    _, watched = run(world, tmp_path / "watched", num_epochs=1, **samples)
    pictures = sorted((tmp_path / "watched/previews").glob("step-*/*.png"))
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
            "a batch of one image has no wrong answer to learn from",
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


def test_two_processes_fine_tune_as_one_does(world, tmp_path):
    (tmp_path / "recipe.toml").write_text(to_toml(recipe_of(world)))
    run(world, tmp_path / "two", num_epochs=1)  # which the first of the two replaces, and it alone
    options = ["--recipe", tmp_path / "recipe.toml", "--out", tmp_path / "two", "--overwrite"]
    command = ["-m", "clipgraft", "finetune", *options]
    first, second = run_in_two_processes(*command)
    assert "recall@1 among 8 test images" in first
    assert second == ""
    alone, clip = run(world, tmp_path / "one")
    together = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert together["epoch_mean_loss"] == pytest.approx(alone["epoch_mean_loss"], rel=1e-5)
    assert together["after"]["text_to_image_recall@1"] == alone["after"]["text_to_image_recall@1"]
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
    from clipgraft.finetuning.wise_ft import _refuse_other_shapes

    with pytest.raises(CheckpointError, match=r"not of one shape.*differing: text_projection\.weight"):
        _refuse_other_shapes(tiny.build_clip().model, other.model)
