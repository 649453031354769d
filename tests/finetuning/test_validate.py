"""Validation during fine-tuning: losses, recall, drift and previews."""

from copy import deepcopy

import pytest
import torch
from accelerate import PartialState
from PIL import Image
from tiny_tuning import evaluations, recipe_of, tune, weights

import tiny
from clipgraft.config import build_recipe
from clipgraft.data.dataset import CaptionedImage
from clipgraft.data.formats import load_dataset
from clipgraft.data.transforms import tokenize
from clipgraft.finetuning.finetune import build_objective
from clipgraft.finetuning.validate import ValidationImages, Validator
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import load_clip
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder
from clipgraft.settings import FinetuneSettings
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.trainer import StepReport
from plain_step import Pass, plain_loss


@pytest.mark.integration
def test_every_epoch_tells_recall_validation_loss_and_drift(world, tmp_path):
    tune(world, tmp_path / "out")
    rows = evaluations(tmp_path / "out")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert rows[0]["drift_words"] == 0 < rows[1]["drift_words"] < rows[2]["drift_words"]
    assert rows[0]["num_images"] == 8
    assert {"val_loss", "text_to_image_recall@1", "paired_text_to_image_recall@1"} <= rows[0].keys()


@pytest.mark.integration
def test_validation_loss_of_single_images_is_that_of_two(world, tmp_path):
    tune(world, tmp_path / "out", batch_size=1, gradient_accumulation_steps=8, num_epochs=1)
    assert all(row["val_loss"] > 0.1 for row in evaluations(tmp_path / "out"))


@pytest.mark.parametrize("settings", [{}, {"distill_weight": 2.0}, {"captions_per_image": 2}])
def test_validation_loss_is_the_training_loss_of_the_images(world, settings):
    """Of two passes of two images, with their first captions; the tower has moved since it was remembered."""
    recipe = recipe_of(world, batch_size=2, gradient_accumulation_steps=2, num_epochs=1, **settings)
    clip = load_clip(world / "clip")
    images = load_dataset(recipe.data.source, include_unsplit=recipe.data.include_unsplit).train[:4]
    before = deepcopy(clip.model).double()
    objective = build_objective(clip, recipe.finetune)
    with torch.no_grad():
        for parameter in clip.model.text_model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    found = Validator(clip, objective, images, recipe.finetune, PartialState(cpu=True)).measure()["val_loss"]
    count = recipe.finetune.captions_per_image
    opened = [Image.open(image.file) for image in images]
    captions = [caption for image in images for caption in image.captions[:count]]
    whole = Pass(
        clip.image_processor(images=opened, return_tensors="pt").pixel_values.double(),
        tokenize(captions, clip.tokenizer, pad_to_context_length=True),
        owner=[index for index in range(4) for _ in range(count)],
        content=[image.file.read_bytes() for image in images],
    )
    weight = recipe.finetune.distill_weight
    plain = plain_loss(clip.model.double(), before, None, [whole], duplicate_images="mask", distill=weight)
    assert found == pytest.approx(plain.item(), rel=1e-5)


def test_validation_loss_takes_no_copy_for_a_wrong_answer(tmp_path):
    clip = tiny.build_clip()
    images = []
    for index, color in enumerate(("red", "red", "blue")):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (32, 32), color).save(path)
        images.append(CaptionedImage(path.name, path, (tiny.CAPTIONS[index],), "val"))
    objective, settings = ContrastiveObjective(clip.model), FinetuneSettings(batch_size=2)
    assert Validator(clip, objective, images[:2], settings, PartialState(cpu=True)).measure()["val_loss"] == 0
    assert (
        Validator(clip, objective, images[1:], settings, PartialState(cpu=True)).measure()["val_loss"] > 0.1
    )


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


def previews_of(world, base, folder, **settings):
    clip = write_graft(world, base, folder / "graft")
    defaults = {"num_inference_steps": 2, "engine": "torch"}
    previews = ValidationImages(
        clip,
        folder / "graft",
        build_recipe({"generate": defaults | settings}).generate,
        folder / "previews",
        1,
        torch.device("cpu"),
    )
    previews(StepReport(1, 1, 0.0, 0.0))
    return {path.name: Image.open(path) for path in sorted((folder / "previews/step-00000001").iterdir())}


@pytest.mark.integration
def test_previews_follow_the_recipe(world, tmp_path):
    base = tiny.write_base(tmp_path / "base")
    options = {"prompts": ["a dog"], "height": 32, "width": 64, "num_images_per_prompt": 2}
    drawn = previews_of(world, base, tmp_path / "plain", **options)
    assert [(name, image.size) for name, image in drawn.items()] == [("0.png", (64, 32)), ("1.png", (64, 32))]
    for name, change in {"negative": {"negative_prompt": "a cat"}, "other": {"scheduler": "euler"}}.items():
        other = previews_of(world, base, tmp_path / name, **options | change)
        assert other["0.png"].tobytes() != drawn["0.png"].tobytes(), name


def test_blocked_preview_is_not_kept_but_noted(world, tmp_path, capsys):
    base = tiny.write_checked_base(tmp_path / "base", threshold=-1.0)
    assert previews_of(world, base, tmp_path, prompts=["a dog"]) == {}
    message = "note: step 1, image 0 of 'a dog' was not written: blocked by the base's safety checker"
    assert message in capsys.readouterr().err


@pytest.mark.integration
def test_previews_do_not_change_the_training(world, tmp_path):
    write_graft(world, tiny.write_base(tmp_path / "base"), tmp_path / "graft")
    _, plain = tune(world, tmp_path / "plain", num_epochs=1)
    previews = {"preview_steps": 2, "preview_graft": str(tmp_path / "graft")}
    _, watched = tune(world, tmp_path / "watched", num_epochs=1, **previews)
    pictures = sorted((tmp_path / "watched/previews").glob("step-*/*.png"))
    assert [f"{path.parent.name}/{path.name}" for path in pictures] == [
        "step-00000002/0.png",
        "step-00000002/1.png",
        "step-00000004/0.png",
        "step-00000004/1.png",
    ]
    for name, value in weights(plain, "").items():
        assert torch.equal(value, weights(watched, "")[name]), name
