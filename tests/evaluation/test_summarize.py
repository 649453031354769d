"""Figures between floors and ceilings, paired differences, notes, counts."""

import shutil

import pytest
import torch
from evaluated import evaluate_grafts, evaluate_recipe
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.config import Recipe
from clipgraft.evaluation.figures import METRICS
from clipgraft.evaluation.results import RANDOM, TEACHER
from clipgraft.models.base import FrozenBase
from clipgraft.models.bridge import Bridge
from clipgraft.models.clip import save_clip
from clipgraft.models.configs import BaseRecord
from clipgraft.models.graft import Graft, GraftedTextEncoder


def test_figures_have_floors_ceilings_and_intervals(record):
    roles = {column["name"]: column["role"] for column in record["variants"]}
    by_metric: dict[str, set[str]] = {}
    for row in record["figures"]:
        by_metric.setdefault(row["metric"], set()).add(roles[row["variant"]])
    for metric in ("clip_score_raw", "clip_score_2.5", "clip_r_precision", "cmmd", "kid", "fid"):
        assert by_metric[metric] == {"measured", "floor", "ceiling"}, metric
    for metric in ("same_seed_psnr", "state_error_words", "text_to_image_recall@1"):
        assert by_metric[metric] == {"measured", "floor"}, metric  # against the teacher
    for row in record["figures"]:
        if row["metric"] == "clip_score_raw":
            assert row["interval"][0] <= row["value"] <= row["interval"][1]
            assert row["interval_method"] == "bca"


def test_differences_are_over_the_same_prompts_and_seeds(record):
    scores = {
        column: {
            (row["prompt_id"], row["seed"]): row["scores"]["clip_score_raw"]
            for row in record["images"]
            if row["variant"] == column
        }
        for column in ("before", "after")
    }
    expected = sum(scores["after"][key] - value for key, value in scores["before"].items()) / 8
    found = [
        row
        for row in record["differences"]
        if (row["metric"], row["baseline"], row["variant"]) == ("clip_score_raw", "before", "after")
    ]
    assert [row["value"] for row in found] == pytest.approx([expected])
    assert found[0]["num"] == 4


def test_a_note_says_that_the_scorer_is_not_independent(record):
    assert record["settings"]["scorer"]["is_independent"] is False
    assert any("not independent" in note for note in record["notes"])


@pytest.mark.integration
def test_scorer_tuned_into_a_graft_is_not_independent(run_dir, tmp_path):
    recipe = Recipe.model_validate(
        {"data": {"source": str(run_dir.parent / "data")}, "evaluate": {"num_prompts": 1, "batch_size": 2}}
    )
    settings = recipe.evaluate.model_copy(update={"num_inference_steps": 1})
    graft, found = run_dir / "bridge" / "graft", {}
    scorers = {
        "another": tiny.write_clip(tmp_path / "another", seed=7),
        "tuned": run_dir / "finetune" / "clip",
        "as it was before": run_dir.parent / "clip",
    }
    for name, scorer in scorers.items():
        own = settings.model_copy(update={"scorer": str(scorer)})
        record = evaluate_grafts(recipe.model_copy(update={"evaluate": own}), [graft], tmp_path / "out")
        notes = [note for note in record["notes"] if "not independent" in note]
        found[name] = record["settings"]["scorer"]["is_independent"], "".join(notes)[:50]
    assert found == {
        "another": (True, ""),
        "tuned": (False, "The scorer is the CLIP of 'bridge' itself, so CLIP"),
        "as it was before": (False, "The scorer is the CLIP that 'bridge' was tuned fro"),
    }


@pytest.mark.integration
def test_teachers_own_clip_is_not_independent(run_dir, tmp_path):
    base, clip = FrozenBase.load(str(run_dir.parent / "base")), tiny.build_clip()
    clip.model.config.text_config.hidden_size = tiny.TEACHER_WIDTH
    clip.model.text_model = base.text_encoder
    clip.model.text_projection = torch.nn.Linear(tiny.TEACHER_WIDTH, 8, bias=False)
    clip.model.config.text_config = base.text_encoder.config
    save_clip(clip, tmp_path / "clip")
    recipe = Recipe.model_validate(
        {"data": {"source": str(run_dir.parent / "data")}}
        | {"evaluate": {"num_prompts": 1, "num_inference_steps": 1, "scorer": str(tmp_path / "clip")}}
    )
    record = evaluate_grafts(recipe, [run_dir / "bridge" / "graft"], tmp_path / "out")
    assert record["settings"]["scorer"]["is_independent"] is False
    assert "The scorer is the CLIP of 'teacher' itself" in record["notes"][0]


def test_reference_images_are_not_those_of_the_prompts(record):
    images = [prompt["image_id"] for prompt in record["prompts"]]
    assert images == [f"{number:04d}.jpg" for number in range(40, 44)]
    assert record["data"]["num_reference_images"] == 4


def test_nearest_training_images_are_copied(record, run_dir):
    rows = record["nearest_training_images"]
    assert rows == sorted(rows, key=lambda row: -row["cosine"])
    for row in rows:
        assert int(row["image_id"].removesuffix(".jpg")) < 32  # training's
        assert (run_dir / "evaluate" / row["training_file"]).is_file()
        assert (run_dir / "evaluate" / row["file"]).is_file()


def test_untrained_bridge_has_larger_state_errors(record):
    errors = {
        row["variant"]: row["value"] for row in record["figures"] if row["metric"] == "state_error_words"
    }
    assert errors[RANDOM] > 2 * errors["after"]


@pytest.mark.integration
def test_failed_images_are_counted_and_never_scored(run_dir, tmp_path):
    base = shutil.copytree(run_dir.parent / "base", tmp_path / "base")
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    for name in ("conv_norm_out", "conv_out"):  # finite, as a model has to be; what comes out is not
        tensors[f"decoder.{name}.weight"] *= 1e30
    save_file(tensors, weights, metadata={"format": "pt"})
    recipe = Recipe.model_validate(
        {
            "data": {"source": str(run_dir.parent / "data")},
            "clip": {"name": str(run_dir.parent / "clip")},
            "evaluate": {"num_prompts": 2, "num_inference_steps": 1, "force": True},
        }
    )
    encoders = {"teacher": None, "graft": run_dir / "bridge" / "graft"}
    record = evaluate_recipe(recipe, encoders, tmp_path / "out", base=str(base))
    assert all(row["failed_nan"] == row["num_images"] == 2 for row in record["counts"])
    assert all(row["scores"] == {} for row in record["images"])
    real = [row["variant"] for row in record["figures"] if row["metric"] == "clip_score_raw"]
    assert real == ["real_images"]


@pytest.mark.integration
def test_variant_without_images_has_no_distance(run_dir, tmp_path):
    graft = Graft.from_pretrained(run_dir / "bridge" / "graft")
    next(graft.text_encoder.bridge.parameters()).data.fill_(3e38)  # finite; its states are not
    graft.save_pretrained(tmp_path / "broken" / "graft")
    recipe = Recipe.model_validate(
        {
            "data": {"source": str(run_dir.parent / "data")},
            "evaluate": {"num_prompts": 3, "num_inference_steps": 1, "force": True}
            | {"scorer": str(run_dir.parent / "clip")},
        }
    )
    record = evaluate_grafts(recipe, [tmp_path / "broken" / "graft"], tmp_path / "out")
    found = {row["variant"]: row for row in record["figures"] if row["metric"] == "kid"}
    assert found[TEACHER]["value"] is not None
    assert (found[TEACHER]["num"], found["broken"]["num"]) == (3, 0)
    assert found["broken"]["value"] is None
    lack = "KID was not computed: it needs 2 images of each set, got 0 generated and 5 real ones"
    assert found["broken"]["note"] == lack
    assert f"{lack} (broken)." in record["notes"]
    assert "--force" not in "".join(record["notes"])


@pytest.mark.slow
def test_every_metric_finds_an_untrained_bridge(tmp_path):
    """On flatland: a graft of the teacher's own text tower against the same with an untrained map."""
    base = FrozenBase.load("flatland", components=("tokenizer", "text_encoder"))
    identity = Bridge(base.text_encoder.config.hidden_size, base.text_encoder.config.hidden_size)
    identity.set_identity()
    eos = base.tokenizer.eos_token_id
    encoder = GraftedTextEncoder.graft(base.text_encoder, identity, base.empty_prompt_embeds(), eos)
    record = BaseRecord(name="flatland", sums={})
    Graft(encoder, base.tokenizer, record).save_pretrained(tmp_path / "graft")
    recipe = Recipe.model_validate(
        {
            "data": {"max_train_images": 64, "max_test_images": 40},
            "evaluate": {"num_prompts": 12, "num_inference_steps": 8},
        }
    )
    record = evaluate_recipe(recipe, {"teacher": None, "whole": tmp_path / "graft"}, tmp_path / "out")
    found = {
        row["metric"]: row
        for row in record["differences"]
        if (row["prompt_set"], row["baseline"], row["variant"]) == ("plain", RANDOM, "whole")
    }
    metrics = ["prompt_fidelity", "clip_score_raw", "clip_r_precision"]
    metrics += [name for name in METRICS if name.startswith(("same_seed", "state_error"))]
    for metric in metrics:
        sign = 1 if METRICS[metric].higher_is_better else -1
        assert min(sign * bound for bound in found[metric]["interval"]) > 0, found[metric]
